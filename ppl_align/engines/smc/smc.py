"""Sequential Monte Carlo: importance sampling that notices on the way which prefixes are worth continuing."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ppl_align.core.errors import InputError
from ppl_align.core.runs import is_top_level
from ppl_align.core.validation import at_least, one_of
from ppl_align.engines.base import Engine, Task, all_dead
from ppl_align.engines.smc.schedule import check_schedule
from ppl_align.engines.smc.twisted import TwistedSMC
from ppl_align.kernels.kernel import Kernel
from ppl_align.particles.particles import Particles
from ppl_align.particles.resampling import SCHEMES
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.of_particles import of_particles
from ppl_align.runner.proposals import ProposesValues, as_proposal
from ppl_align.twists.lookahead import CAN, LearnedLookAhead
from ppl_align.twists.site_lookahead import SiteLookAhead
from ppl_align.twists.twist import PrefixReward, Twist, parts_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SMC(Engine):
    """Particles that are weighed while they grow, and resampled when few of them carry the weight.

    ``num_particles``   particles of each population, N       ``num_replicates``  independent populations, R
    ``ess_threshold``   resample a population when its ESS falls below this share of N (0: never, 1: always)
    ``resampling``      "systematic" (default), "stratified", "residual", "multinomial",
                        "chopthin" (weights stay unequal: :mod:`ppl_align.particles.chopthin`)
    ``twist``           the intermediate potential psi_t: None (weights only between the sites of a program),
                        "prefix": what the rest of the program says of the text so far, "lookahead": how likely
                        ``Contains``, ``Regex`` and the like are still to be met (:mod:`ppl_align.twists.lookahead`; one
                        that was made before is used as it is), a function ``Prefixes -> log psi [m]``:
                        what the program is expected to say of the finished text, or a
                        :class:`~ppl_align.twists.Twist` of your own, which may know a value for each next token and
                        then proposes as well. A tuple is their sum: ``("prefix", "lookahead")``, where a program has
                        rewards and such a constraint
    ``num_pool``        draws that "lookahead" learns from, before each completion it is used on: of the prior, or from
                        within a pattern or a length
    ``every``           when psi is refreshed: a number of tokens, or where a "word" or "sentence" of the particle ends
                        (the others keep their last one, or count as the average before they have had any)
    ``proposal``        as for importance sampling
    ``prefix_floor``    what a factor of -inf is worth on a *prefix*, nats (at the end it is -inf). The lower, the more
                        eagerly prefixes that have not succeeded yet are given up, and the heavier the tail of Zhat
    ``rejuvenate``      a kernel that moves unfinished texts whenever psi is refreshed, so that copies become different
                        again (:mod:`ppl_align.engines.smc.rejuvenation`); asks for ``every`` as a number of tokens

    Weights: increment psi_t - psi_{t-1} + log p - log q; a finished particle has its final potential and increment 0.
    Never resamples after the last step, so the weights returned are honest. E[Zhat] = Z for every setting.
    Sources: Naesseth et al. 2019 (arXiv:1903.04797); Lew et al. 2023 (arXiv:2306.03081); Zhao et al. 2024
    (arXiv:2404.17546).
    """

    num_particles: int = 64
    num_replicates: int = 4
    ess_threshold: float = 0.5
    resampling: str = "systematic"
    twist: Any = None
    every: int | str = 1
    num_pool: int = 64
    proposal: Any = None
    prefix_floor: float = -2.0
    rejuvenate: Kernel | None = None

    name: ClassVar[str] = "smc"

    def __post_init__(self) -> None:
        at_least(1, num_particles=self.num_particles, num_replicates=self.num_replicates, num_pool=self.num_pool)
        if not 0 <= self.ess_threshold <= 1:
            raise InputError(f"ess_threshold is a share of the particles, between 0 and 1; got {self.ess_threshold}")
        if not np.isfinite(self.prefix_floor):
            raise InputError(f"prefix_floor must be finite, got {self.prefix_floor}")
        one_of("resampling", self.resampling, list(SCHEMES))
        _ = self.twists  # raises for what is no twist
        check_schedule(self.every)
        if self.rejuvenate is not None:
            check_rejuvenation(self.rejuvenate, self.every)
        if isinstance(as_proposal(self.proposal), ProposesValues):
            raise InputError("this guide proposes whole values, not tokens: SMC cannot steer with it; use importance")

    @property
    def twists(self) -> list[Twist]:
        """What ``twist`` stands for."""
        named = {
            "prefix": lambda: PrefixReward(self.prefix_floor),
            "lookahead": lambda: LearnedLookAhead(self.num_pool),
        }
        return parts_of(self.twist, named)

    def _infer(self, task: Task) -> Posterior:
        # A search for a token that passes has no log q that a move could compare: without them where texts are moved.
        runner = task.runner(as_proposal(self.proposal), self.num_particles, tests=self.rejuvenate is None)
        smc = TwistedSMC(self, runner, self.twists)
        particles = runner.finish(Particles(self.num_replicates * self.num_particles), smc)
        log_weight = smc.log_weight + smc.log_evidence[:, None]
        if bool(log_weight.isneginf().all()):
            raise all_dead("at the end of the program", particles, runner.constraints.hint(particles))
        if is_top_level():
            self._say_what_had_no_effect(smc)
        kind = Kind.RESAMPLED if smc.resampled else Kind.WEIGHTED
        steered = self.proposal is not None or smc.steered
        moved = {} if self.rejuvenate is None else {"log_proposal": None}
        return of_particles(particles, log_weight, kind, steered=steered, history=smc.history(), **moved)

    def _say_what_had_no_effect(self, smc: TwistedSMC) -> None:
        """A warning where there was nothing to look ahead to, or nothing to resample on."""
        instead = "goes on without it" if smc.events else "is importance sampling"
        for i, part in enumerate(smc.parts):
            if isinstance(part, LearnedLookAhead) and i not in smc.known:
                text = 'twist="lookahead": no completion has a constraint (%s) to look ahead to; SMC %s'
                return log.warning(text, CAN, instead)
            if isinstance(part, SiteLookAhead) and i not in smc.known:
                text = "twist=LookAhead(...): no completion has the constraint that it was made for; SMC %s"
                return log.warning(text, instead)
        if not smc.events:
            why = "twist=None" if not smc.parts else "too few tokens"
            log.warning("SMC had no weights before the end (%s): this run %s", why, instead)


def check_rejuvenation(kernel: Any, every: int | str) -> None:
    """Raises ``InputError`` unless unfinished texts can be moved by this kernel, all of them at a time."""
    if not isinstance(kernel, Kernel):
        raise InputError(f"rejuvenate= takes a kernel, such as SuffixMH(), got {type(kernel).__name__}")
    if not kernel.follows_engine:
        raise InputError("the kernel of rejuvenate= draws as the engine does: give proposal= and twist= to SMC")
    if any(move.cuts.reads_entropy for move in kernel.on_prefix(1)):
        raise InputError("rejuvenate= takes cuts that do not ask for entropies: uniform, word or sentence")
    if isinstance(every, str):
        raise InputError(f"rejuvenate= moves all particles at a time: give every= a number of tokens, not {every!r}")
