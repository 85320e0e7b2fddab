"""What all looks ahead have in common: they know a value of prefixes and of next tokens, at the completion of their
constraint."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_align.lm.base import Ids
from ppl_align.lm.decoding import Rows
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.matcher import Matcher
from ppl_align.lm.transfer import CPU
from ppl_align.twists.hard_constraint import per_particle, running_texts
from ppl_align.twists.twist import Prefixes, Scene, Twist

DEFENSIVE = 0.1  # share of the tokens drawn from the confined prior


class SiteLookAhead(Twist):
    """psi of one constraint, wherever it stands."""

    @property
    @abstractmethod
    def constraint(self) -> Matcher:
        """The matcher that it was made for."""

    @abstractmethod
    def checked(self, source: CompletionDistribution) -> SiteLookAhead:
        """The same for this completion; raises ``InputError`` where it cannot serve there."""

    @abstractmethod
    def now(self, prefixes: Sequence[Ids], left: int) -> Tensor:
        """log psi of running prefixes of at least one token with ``left`` tokens to come, ``[m]`` nats on the host."""

    @abstractmethod
    def then(self, prefixes: Sequence[Ids], left: int, device: torch.device = CPU) -> Tensor:
        """log psi after each next token, when ``left`` more may follow, ``[m, V]`` float32 on the device."""

    def at(self, scene: Scene) -> Twist | None:
        """Where the constraint that it was made for stands."""
        matchers = () if scene.restriction is None else scene.restriction.matchers
        if not any(part is self.constraint for matcher in matchers for part in matcher.parts):
            return None
        return AtSite(self.checked(scene.site.fn), scene.site.fn.max_new_tokens)


class AtSite(Twist):
    """A look ahead in one completion of at most ``max_new_tokens`` tokens."""

    defensive = DEFENSIVE
    of_constraints = True
    by_ids = True
    certain = True

    def __init__(self, look: SiteLookAhead, max_new_tokens: int) -> None:
        self.look, self.max_new_tokens = look, max_new_tokens

    def next_token(self, rows: Rows) -> Tensor:
        assert rows.ids is not None
        return self.look.then(rows.ids, self.max_new_tokens - len(rows.ids[0]) - 1, rows.log_probs.device)

    def prefix(self, prefixes: Prefixes) -> Tensor:
        """log psi; a text that has ended, where a plate holds several, is judged by the program."""
        running, texts = running_texts(prefixes)
        log_psi = torch.zeros(len(running), dtype=torch.float64)
        if texts:
            log_psi[running] = self.look.now(texts, self.max_new_tokens - len(texts[0]))
        return per_particle(log_psi, prefixes).sum(-1)
