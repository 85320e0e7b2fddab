"""Sequential Monte Carlo: importance sampling that notices on the way which prefixes are worth continuing."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ppl_align.constraints.automata import AutomatonReader
from ppl_align.core.errors import AllDeadError, InputError, RunError
from ppl_align.core.runs import speaking
from ppl_align.engines.base import Engine, Task, at_least, one_of
from ppl_align.engines.boundaries import Schedule, check_schedule
from ppl_align.engines.constrained import foreseen
from ppl_align.engines.lookahead import LookAhead, LookingAhead, learn
from ppl_align.engines.partial import asked_about_prefixes, run_on_prefixes
from ppl_align.engines.proposals import as_proposal
from ppl_align.engines.sweep import Sweep, all_dead
from ppl_align.engines.twists import Prefixes, Twist, evaluate_twist, parts_of_twist
from ppl_align.guides.program import ProgramGuide
from ppl_align.lm.decoding import Population
from ppl_align.lm.restriction import Restriction
from ppl_align.particles.resampling import CONDITIONAL, SCHEMES
from ppl_align.particles.weights import effective_sample_size
from ppl_align.posterior import Posterior
from ppl_align.program import Program, Site

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SMC(Engine):
    """Particles that are weighed while they grow, and resampled when few of them carry the weight.

    ``num_particles``   particles of each population, N       ``num_replicates``  independent populations, R
    ``ess_threshold``   resample a population when its ESS falls below this share of N (0: never, 1: always)
    ``resampling``      "systematic" (default), "stratified", "residual", "multinomial"
    ``twist``           the intermediate potential psi_t: None (weights only between the sites of a program),
                        "prefix": what the rest of the program says of the text so far, "lookahead": how likely
                        constraints such as ``Contains`` are still to be met (:mod:`ppl_align.engines.lookahead`;
                        a ``LookAhead`` that was made before is used as it is),
                        or a function ``Prefixes -> log psi [m]``: what the program is expected to say of the finished
                        text (:mod:`ppl_align.engines.twists`). A pair is their sum: ``("prefix", "lookahead")``, where
                        a program has rewards and such a constraint
    ``num_pool``        draws of the prior that "lookahead" learns from, before each completion it is used on
    ``every``           when psi is refreshed: a number of tokens, or where a "word" or "sentence" of the particle ends
                        (the others keep their last one, or count as the average before they have had any)
    ``proposal``        as for importance sampling
    ``prefix_floor``    what a factor of -inf is worth on a *prefix*, nats (at the end it is -inf). The lower, the more
                        eagerly prefixes that have not succeeded yet are given up, and the heavier the tail of Zhat

    Weights: increment psi_t - psi_{t-1} + log p - log q; a finished particle has its final potential and increment 0.
    Never resamples after the last step, so the weights returned are honest. E[Zhat] = Z for every setting.
    Sources: Naesseth et al. 2019 (arXiv:1903.04797); Lew et al. 2023 (arXiv:2306.03081); Zhao et al. 2024
    (arXiv:2404.17546).
    """

    num_particles: int = 64
    num_replicates: int = 4
    ess_threshold: float = 0.5
    resampling: str = "systematic"
    twist: str | LookAhead | Twist | tuple[str | LookAhead | Twist, ...] | None = None
    every: int | str = 1
    num_pool: int = 64
    proposal: Any = None
    prefix_floor: float = -2.0

    name: ClassVar[str] = "smc"

    def __post_init__(self) -> None:
        at_least(1, num_particles=self.num_particles, num_replicates=self.num_replicates, num_pool=self.num_pool)
        if not 0 <= self.ess_threshold <= 1:
            raise InputError(f"ess_threshold is a share of the particles, between 0 and 1; got {self.ess_threshold}")
        if not np.isfinite(self.prefix_floor):
            raise InputError(f"prefix_floor must be finite, got {self.prefix_floor}")
        one_of("resampling", self.resampling, list(SCHEMES))
        parts_of_twist(self.twist)
        check_schedule(self.every)
        as_proposal(self.proposal)
        if isinstance(self.proposal, ProgramGuide):
            raise InputError("this guide proposes whole values, not tokens: SMC cannot steer with it; use importance")

    def _infer(self, task: Task) -> Posterior:
        size = self.num_replicates * self.num_particles
        program = Program(task.model, task.args, task.kwargs, size)
        shape = (self.num_replicates, self.num_particles)
        sweep = Sweep(program, *shape, as_proposal(self.proposal), task.progress, task.retained, foreseen(program))
        steering = _Steering(self, sweep)
        execution = sweep.run(during=steering.during, between=steering.between)
        if speaking():
            steering.say_what_had_no_effect()
        return sweep.posterior(execution, independent=not steering.resampled, history=steering.history())


class _Steering:
    """What SMC adds to a sweep: refresh the potentials of prefixes, resample, and keep the history."""

    def __init__(self, config: SMC, sweep: Sweep) -> None:
        self.config, self.sweep = config, sweep
        self.soft, self.ahead = parts_of_twist(config.twist)
        self.looked = False
        sweep.prepare = None if self.ahead is None else self.look_ahead
        self.events: list[dict[str, Any]] = []
        self.evidence = sweep.current_log_evidence()
        self.step = 0
        self.stale = np.ones(len(sweep.psi), dtype=bool)  # [P] may be something else by now
        self.judged = torch.zeros(len(sweep.psi), dtype=torch.bool)  # [P] its prefix of this completion has been
        self.before = torch.zeros_like(sweep.psi)  # [P] psi at the beginning of this completion
        self.schedule: Schedule | None = None
        self.hope = torch.zeros_like(sweep.psi)

    @property
    def resampled(self) -> bool:
        return any(bool(event["resampled"].any()) for event in self.events)

    def between(self, sweep: Sweep) -> None:
        """Before a completion starts: factors met so far may already tell particles apart."""
        self.schedule = None
        self.hope = torch.zeros_like(sweep.psi)
        self.stale[:] = True
        self.judged[:] = False
        self.before = sweep.psi.clone()
        if bool((sweep.log_weight != sweep.log_weight[0]).any()):
            self._maybe_resample(None, "before the first token")

    def during(self, sweep: Sweep, site: Site, population: Population) -> None:
        """After a token, before the forward: refresh the particles that are due, then maybe resample."""
        if self.soft is None and population.source.restriction is None:
            return  # nothing is known of a prefix: weights wait for the end
        self.step += 1
        self.schedule = self.schedule or Schedule(self.config.every, site.fn.lm)
        size = len(sweep.psi)
        alive = np.asarray(population.alive.reshape(size, -1).any(-1))
        due = self.schedule.due(population).reshape(size, -1).any(-1) & alive
        due = due | (~alive & self.stale)
        if not due.any():
            return
        self.stale = alive
        chosen = torch.from_numpy(np.flatnonzero(due))
        psi = sweep.psi.clone()
        psi[chosen] = self._prefix_potential(site, population, chosen, torch.from_numpy(alive)[chosen])
        self.judged[chosen] = True
        psi = torch.where(self.judged, psi, self.before + self._usual(psi))
        sweep.reweight(psi, sweep.per_particle(population.log_p - population.log_q))
        self._maybe_resample(population, f"after {population.t} tokens of {site.name!r}")

    def _usual(self, psi: Tensor) -> Tensor:
        """What the judged particles of a replicate have gained or lost in this completion, the log of their mean, [P].

        A potential is compared with potentials, so one that is not judged yet counts as the average of those that are:
        a constant added to a reward then says nothing for or against it. (E[Zhat] = Z whatever psi is made of, as long
        as it is known when it is used.)"""
        gain = torch.where(self.judged & psi.isfinite(), psi - self.before, -torch.inf).reshape(self.sweep.shape)
        count = gain.isfinite().sum(-1, keepdim=True)
        mean = gain.logsumexp(-1, keepdim=True) - count.clamp_min(1).log()
        return torch.where(count > 0, mean, 0.0).expand(self.sweep.shape).reshape(-1)

    def _prefix_potential(self, site: Site, population: Population, chosen: Tensor, running: Tensor) -> Tensor:
        """The potential of the chosen particles' prefixes, [m] nats; of finished ones it is the true one."""
        sweep = self.sweep
        if self.soft is None:
            before, self.hope[chosen] = self.hope[chosen], self._hope(population, chosen)
            return sweep.psi[chosen] - before.clamp_min(-1e300) + self.hope[chosen]
        hope = 0.0 if self.ahead is None else self._hope(population, chosen)
        upstream = {name: value[chosen.to(value.device)] for name, value in sweep.values.items()}
        tokens = sweep.prefix(site, population, population.t)
        tokens = tokens[chosen.to(tokens.device)]
        if callable(self.soft):
            whole = sweep.prefix(site, population, site.fn.max_new_tokens)
            whole = whole[chosen.to(whole.device)]  # of those that have ended: padded to its full length
            return self._twisted(self.soft, site, upstream, tokens, whole, running) + hope
        sweep.leave_scores(population, population.t)
        program = sweep.program.with_particles(len(chosen))
        execution = run_on_prefixes(program, {**upstream, site.name: tokens}, site)
        prefix_potential = execution.prefix_potential(self.config.prefix_floor)
        return torch.where(running, prefix_potential, execution.log_potential) + hope

    def look_ahead(self, site: Site, restriction: Restriction) -> Restriction:
        """The constraints on a completion, looking ahead where they can."""
        readers = [reader for reader in restriction.readers if isinstance(reader, AutomatonReader)]
        if isinstance(self.ahead, LookAhead):
            looks = [self.ahead.checked(site.fn) for reader in readers if reader is self.ahead.constraint]
        else:
            looks = [learn(site.fn, reader, self.config.num_pool) for reader in readers]
        self.looked = self.looked or bool(looks)
        return LookingAhead(restriction, looks) if looks else restriction

    def _hope(self, population: Population, chosen: Tensor) -> Tensor:
        """What the hard constraints make of the chosen particles' text so far, [m] nats.

        -inf where they can no longer be met; looking ahead, the log-probability that they will be. 0 for text that has
        ended: that is judged by the program."""
        restriction, size = population.source.restriction, len(self.sweep.psi)
        if restriction is None:
            return torch.zeros(len(chosen), dtype=torch.float64)
        lanes = torch.arange(len(population.alive)).reshape(size, -1)[chosen].reshape(-1).numpy()
        running = torch.from_numpy(population.alive[lanes])
        prefixes = [tuple(row) for row in population.written[lanes, : population.t].tolist()]
        unfinished = [prefix for prefix, alive in zip(prefixes, running.tolist(), strict=True) if alive]
        hope = torch.zeros(len(lanes), dtype=torch.float64)
        if unfinished:
            possible = torch.where(restriction.viable(unfinished), 0.0, -torch.inf).double()
            if isinstance(restriction, LookingAhead):
                possible = possible + restriction.log_success(unfinished)
            hope[running] = possible
        return hope.reshape(len(chosen), -1).sum(-1)

    def _twisted(
        self, twist: Twist, site: Site, upstream: dict[str, Tensor], tokens: Tensor, full: Tensor, running: Tensor
    ) -> Tensor:
        """A twist for the prefixes that are running; finished ones never see it."""
        program = self.sweep.program
        ended = program.with_particles(int((~running).sum()))
        psi = torch.zeros(len(running), dtype=torch.float64)
        if ended.num_particles:
            whole = {name: value[(~running).to(value.device)] for name, value in {**upstream, site.name: full}.items()}
            psi[~running] = ended.run(whole, draw=False).log_potential
        if bool(running.any()):
            before = {name: value[running.to(value.device)] for name, value in upstream.items()}
            reached = program.with_particles(int(running.sum())).run(before, draw=False)
            assert reached.pending is not None
            prompts = reached.pending.fn.prompt_rows(reached.pending.fn.batch_shape)
            seen = tokens[running.to(tokens.device)]
            prefixes = Prefixes(site.name, seen, prompts, before, reached.log_potential)
            with asked_about_prefixes(site.name, tokens.shape[-1], "the twist"):
                psi[running] = reached.log_potential + evaluate_twist(twist, prefixes)
        return psi

    def _maybe_resample(self, population: Population | None, where: str) -> None:
        sweep, config = self.sweep, self.config
        log_weight = sweep.log_weight.reshape(sweep.shape)
        best = log_weight.amax(-1, keepdim=True)
        if bool(best.isneginf().all()):
            dead = sweep.program.run(sweep.values, draw=False)
            raise AllDeadError(all_dead(where, dead, sweep.foreseen.hint(dead)))
        if sweep.retained is not None and bool(log_weight[:, 0].isneginf().any()):
            raise RunError(f"a retained draw has weight zero {where}: it is not a draw of this program's posterior")
        weights = (log_weight - best.clamp_min(-1e300)).exp()
        total = weights.sum(-1, keepdim=True)
        weights = weights / total.clamp_min(1e-300)
        ess = effective_sample_size(weights)
        chosen = (ess < config.ess_threshold * config.num_particles) & (total[:, 0] > 0)
        own = torch.arange(config.num_particles).expand(sweep.shape)
        ancestors = own
        evidence = sweep.current_log_evidence()
        if bool(chosen.any()):
            scheme = (SCHEMES if sweep.retained is None else CONDITIONAL)[config.resampling]
            drawn = scheme(torch.where(chosen[:, None], weights, torch.ones(())), None)
            ancestors = torch.where(chosen[:, None], drawn, own)
            sweep.resample(ancestors, chosen, population)
            flat = (ancestors + torch.arange(sweep.shape[0])[:, None] * config.num_particles).reshape(-1)
            self.stale, self.hope = self.stale[flat.numpy()], self.hope[flat]
            self.judged, self.before = self.judged[flat], self.before[flat]
        self.events.append(
            {
                "step": self.step,
                "ess": ess,
                "resampled": chosen,
                "log_evidence_increment": evidence - self.evidence,
                "ancestors": ancestors,
            }
        )
        self.evidence = evidence

    def say_what_had_no_effect(self) -> None:
        """A warning where there was nothing to look ahead to, or nothing to resample on."""
        instead = "goes on without it" if self.events else "is importance sampling"
        if self.ahead == "lookahead" and not self.looked:
            wanted = "Contains, EndsWith or AcceptedBy"
            log.warning(
                'twist="lookahead": no completion has a constraint (%s) to look ahead to; SMC %s', wanted, instead
            )
        elif self.ahead is not None and not self.looked:
            log.warning("twist=LookAhead(...): no completion has the constraint that it was made for; SMC %s", instead)
        elif not self.events:
            why = "twist=None" if self.soft is self.ahead is None else "too few tokens"
            log.warning("SMC had no weights before the end (%s): this run %s", why, instead)

    def history(self) -> dict[str, Any]:
        """Stacked over the S times the weights were looked at: see ``Posterior.history``."""
        replicates, particles = self.sweep.shape
        names = {"ess": (replicates,), "resampled": (replicates,), "log_evidence_increment": (replicates,)}
        stacked: dict[str, Any] = {
            name: torch.stack([event[name] for event in self.events]) if self.events else torch.zeros(0, *shape)
            for name, shape in {**names, "ancestors": (replicates, particles)}.items()
        }
        stacked["step"] = torch.tensor([event["step"] for event in self.events], dtype=torch.long)
        stacked["lineage"] = self.sweep.lineage.reshape(self.sweep.shape)
        return stacked
