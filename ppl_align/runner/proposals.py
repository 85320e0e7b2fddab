"""What particles may be drawn from instead of the prior: one protocol for guides, functions and other LMs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.lm.base import LM
from ppl_align.lm.decoding import TokenProposal
from ppl_align.program.compiled import Program


@runtime_checkable
class Proposal(Protocol):
    """Where the values of a program are drawn from."""

    def tokens(self, site: str) -> TokenProposal | LM | None:
        """For a completion site: a function ``Rows -> log_q [rows, V]``, an LM, or None for the prior."""
        ...

    def latent(self, site: str, prior: Any) -> Any:
        """For any other latent: the distribution to draw from, given its prior."""
        ...


@runtime_checkable
class ProposesValues(Protocol):
    """A proposal that draws whole values before the program runs; what it leaves out is drawn as it comes."""

    def draw(self, program: Program, size: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Values [P, ...] and log q [P] by site, for P = ``size`` particles."""
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


class Retaining:
    """Another proposal, except that the first particle of each replicate gets a given value (conditional SMC).

    What is retained is scored under the proposal like everybody else."""

    def __init__(self, inner: Proposal, retained: Mapping[str, Tensor], num_particles: int) -> None:
        self.inner, self.retained, self.num_particles = inner, retained, num_particles

    def tokens(self, site: str) -> TokenProposal | LM | None:
        return self.inner.tokens(site)

    def latent(self, site: str, prior: Any) -> Any:
        return _Held(self.inner.latent(site, prior), self.retained[site], self.num_particles)


class _Held:
    """A distribution whose draws have every ``num_particles``-th row replaced."""

    def __init__(self, base: Any, value: Tensor, num_particles: int) -> None:
        self.base, self.value, self.num_particles = base, value, num_particles

    def sample(self) -> Tensor:
        drawn = self.base.sample()
        first = drawn[:: self.num_particles]
        first.copy_(self.value.reshape(first.shape))
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(value)


def as_proposal(proposal: Any) -> Proposal:
    """``None`` (the prior), a trained guide, another LM over the same vocabulary, or ``Rows -> log_q [rows, V]``."""
    if proposal is None:
        return FromPrior()
    if isinstance(proposal, Proposal) and not isinstance(proposal, LM):
        return proposal
    if isinstance(proposal, LM) or callable(proposal):
        return FromTokens(proposal)
    raise InputError(
        f"proposal must be a trained guide (posterior.guide), an LM or a function of Rows, "
        f"got {type(proposal).__name__}"
    )
