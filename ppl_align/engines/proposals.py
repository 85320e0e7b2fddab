"""What particles may be drawn from instead of the prior: one protocol for guides, functions and other LMs."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from ppl_align.errors import InputError
from ppl_align.guides.program import ProgramGuide
from ppl_align.lm.base import LM
from ppl_align.lm.decoding import TokenProposal


@runtime_checkable
class Proposal(Protocol):
    """Where the values of a program are drawn from."""

    def tokens(self, site: str) -> TokenProposal | LM | None:
        """For a completion site: a function ``Rows -> log_q [rows, V]``, an LM, or None for the prior."""
        ...

    def latent(self, site: str, prior: Any) -> Any:
        """For any other latent: the distribution to draw from, given its prior."""
        ...


class FromPrior:
    """Draw everything from the prior; then no prior term ever needs to be scored."""

    def tokens(self, site: str) -> TokenProposal | LM | None:
        return None

    def latent(self, site: str, prior: Any) -> Any:
        return prior


class FromTokens(FromPrior):
    """Completions from a token-level proposal, everything else from the prior."""

    def __init__(self, proposal: TokenProposal | LM) -> None:
        self.proposal = proposal

    def tokens(self, site: str) -> TokenProposal | LM | None:
        return self.proposal


def as_proposal(proposal: Any) -> Proposal:
    """``None`` (the prior), a trained guide, another LM over the same vocabulary, or ``Rows -> log_q [rows, V]``."""
    if proposal is None or isinstance(proposal, ProgramGuide):
        return FromPrior()  # a program proposes whole values before the sweep; what it leaves out comes from the prior
    if isinstance(proposal, Proposal) and not isinstance(proposal, LM):
        return proposal
    if isinstance(proposal, LM) or callable(proposal):
        return FromTokens(proposal)
    raise InputError(
        f"proposal must be a trained guide (posterior.guide), an LM or a function of Rows, "
        f"got {type(proposal).__name__}"
    )
