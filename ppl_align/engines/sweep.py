"""Particles sweeping through a program, once: what importance sampling and SMC have in common.

Each particle holds a value for every site reached so far. Write ``psi`` for the log-potential of the program on these
values and ``log p - log q`` for prior against proposal. Its log-weight is ``log p - log q + psi``, brought up to date
whenever ``psi`` is refreshed, minus what was already taken into account at the last resampling::

    log_weight += (log p - log q + psi) - absorbed;   absorbed = log p - log q + psi

Any finite ``psi`` on the way leaves E[Zhat] = Z (the telescope closes with the true potential of the whole program);
a good one makes Zhat less variable. (Naesseth, Lindsten & Schön 2019, arXiv:1903.04797.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.errors import AllDeadError, ModelError
from ppl_align.engines.base import Progress
from ppl_align.engines.constrained import Foreseen, hold
from ppl_align.engines.proposals import Proposal, Retaining
from ppl_align.lm.completions import Completion
from ppl_align.lm.decoding import Population
from ppl_align.lm.restriction import Restriction
from ppl_align.lm.score_cache import leave_scores
from ppl_align.particles.weights import log_mean_exp
from ppl_align.posterior import Posterior
from ppl_align.program import Execution, Program, Site
from ppl_align.program.per_particle import differing, for_each
from ppl_align.program.plates import as_written

Observer = Callable[["Sweep", Site, Population], None]
"""Called after every step of the decoding of a site, before the network moves on."""


class Sweep:
    """R replicates of N particles, flat: P = R * N. Tensors [P], on the CPU, float64."""

    def __init__(
        self,
        program: Program,
        replicates: int,
        particles: int,
        proposal: Proposal,
        progress: Progress,
        retained: Mapping[str, Tensor] | None = None,
        foreseen: Foreseen = Foreseen(),
    ) -> None:
        """``foreseen``: hard constraints by completion site, which proposals are confined to."""
        self.program, self.progress, self.retained = program, progress, retained
        self.foreseen = foreseen
        self.prepare: Callable[[Site, Restriction], Restriction] | None = None  # SMC may look further ahead
        self.mend: Callable[[Site, Population], None] | None = None  # a policy does not leave dead ends as they are
        self.proposal = proposal if retained is None else Retaining(proposal, retained, particles)
        self.shape = (replicates, particles)
        size = replicates * particles
        self.values: dict[str, Tensor] = {}
        self.log_prior: dict[str, Tensor] = {}
        self.log_proposal: dict[str, Tensor] = {}
        self.psi = torch.zeros(size, dtype=torch.float64)
        self.absorbed = torch.zeros(size, dtype=torch.float64)
        self.log_weight = torch.zeros(size, dtype=torch.float64)
        self.log_evidence = torch.zeros(replicates, dtype=torch.float64)  # of the populations already resampled
        self.lineage = torch.arange(particles).repeat(replicates)
        self.unscored: set[str] = set()
        self.waiting: Site | None = None  # the completion that comes next

    def adopt(self, values: dict[str, Tensor], log_proposal: dict[str, Tensor]) -> None:
        """Start from values drawn elsewhere (a user's own guide); the program will score them under the prior."""
        self.values |= values
        self.log_proposal |= log_proposal
        self.unscored |= set(values)

    def run(self, during: Observer | None = None, between: Callable[[Sweep], None] | None = None) -> Execution:
        """To the end of the program. ``during``: see :data:`Observer`; ``between``: after a site, before the next."""
        execution = self._execute()
        while execution.pending is not None:
            self.waiting = execution.pending
            if between is not None:
                between(self)
            self._decode(self.waiting, during)
            execution = self._execute()
        hold(self.foreseen, execution)
        return execution

    def _execute(self) -> Execution:
        """Run the program on what is known: draws ordinary latents, brings the weights up to date."""
        execution = self.program.run(self.values, draw=True, propose=self.proposal.latent, score=self.unscored)
        self.unscored -= set(execution.log_prior)
        self.values |= execution.drawn
        self.log_prior |= execution.log_prior
        self.log_proposal |= execution.log_proposal
        self.reweight(execution.log_potential)
        return execution

    def reweight(self, psi: Tensor, log_ratio: Tensor | float = 0.0) -> None:
        """Bring the log-weights up to date; ``log_ratio``: log p - log q of the site being decoded."""
        self.psi = psi
        total = psi + log_ratio
        for name, log_prior in self.log_prior.items():
            total = total + log_prior - self.log_proposal[name]
        gain = total - self.absorbed
        # A particle of weight zero stays there: -inf - -inf is not a number.
        self.log_weight = torch.where(self.log_weight.isneginf(), self.log_weight, self.log_weight + gain)
        self.absorbed = total

    def _decode(self, site: Site, during: Observer | None) -> None:
        proposal = None if site.environment else self.proposal.tokens(site.name)
        if site.environment:  # the world is drawn as it is, not steered
            during = None
        population = Population(site.fn.within(self.restriction(site)), proposal)
        if self.retained is not None:
            population.hold(*self._first_particles(site))
        while not population.done:
            population.step()
            if during is not None and not population.done:
                during(self, site, population)
            population.advance()
            self.progress(population.t, site.fn.max_new_tokens, site.name)
        if self.mend is not None:
            self.mend(site, population)
        self.values[site.name] = self.prefix(site, population, site.fn.max_new_tokens)
        self.log_prior[site.name] = self.per_particle(population.log_p)
        self.leave_scores(population, site.fn.max_new_tokens)
        self.log_proposal[site.name] = self.per_particle(population.log_q)

    def restriction(self, site: Site) -> Restriction | None:
        """The hard constraints on a completion, as far as they were foreseen."""
        restriction = self.foreseen.restriction(site)
        return restriction if restriction is None or self.prepare is None else self.prepare(site, restriction)

    def _first_particles(self, site: Site) -> tuple[Tensor, Tensor]:
        """Where the first particle of each replicate sits among the lanes, and the tokens it has to write."""
        assert self.retained is not None
        lanes = site.fn.index.numel() // len(self.psi)
        first = torch.arange(self.shape[0])[:, None] * self.shape[1] * lanes + torch.arange(lanes)
        return first.reshape(-1), self.retained[site.name].reshape(-1, site.fn.max_new_tokens)

    def prefix(self, site: Site, population: Population, width: int) -> Tensor:
        """The tokens drawn so far as the program sees them: [P, plates..., width]."""
        return population.tokens[:, :width].reshape(*site.fn.batch_shape, width)

    def leave_scores(self, population: Population, width: int) -> None:
        """log p0 of what was drawn, for a power prior that asks for it."""
        site = self.waiting
        assert site is not None
        log_p = population.log_p.reshape(site.fn.batch_shape)
        leave_scores(site.name, site.fn, self.prefix(site, population, width), log_p)

    def per_particle(self, value: Tensor) -> Tensor:
        """Sum over the lanes (plates of the program) of each particle: [P * K] -> [P]."""
        return value.reshape(len(self.psi), -1).sum(-1).cpu()

    def resample(self, ancestors: Tensor, chosen: Tensor, population: Population | None) -> None:
        """Replicates ``chosen [R]`` continue as copies of ``ancestors [R, N]``; weights there start anew."""
        replicates, particles = self.shape
        own = torch.arange(particles).expand(replicates, particles)
        offset = torch.arange(replicates)[:, None] * particles
        flat = (torch.where(chosen[:, None], ancestors, own) + offset).reshape(-1)
        if population is not None:
            lanes = len(population.row) // len(flat)
            population.resample((flat[:, None] * lanes + torch.arange(lanes)).reshape(-1))
        if self.waiting is not None:  # its prompts may hold what has just been permuted
            index = self.waiting.fn.index
            self.waiting = replace(self.waiting, fn=self.waiting.fn.with_index(index[flat.to(index.device)]))
        for group in (self.values, self.log_prior, self.log_proposal):
            group.update({name: value[flat.to(value.device)] for name, value in group.items()})
        self.psi, self.absorbed, self.lineage = self.psi[flat], self.absorbed[flat], self.lineage[flat]
        weights = self.log_weight.reshape(self.shape)
        self.log_evidence = torch.where(chosen, self.log_evidence + log_mean_exp(weights), self.log_evidence)
        self.log_weight = torch.where(chosen[:, None], torch.zeros_like(weights), weights).reshape(-1)

    def current_log_evidence(self) -> Tensor:
        """log Zhat of the program as far as it was seen, [R]."""
        return self.log_evidence + log_mean_exp(self.log_weight.reshape(self.shape))

    def posterior(self, execution: Execution, **fields: Any) -> Posterior:
        """The result, in the shape users see: [R, N, ...]."""
        log_weight = self.log_weight.reshape(self.shape) + self.log_evidence[:, None]
        if bool(log_weight.isneginf().all()):
            raise AllDeadError(all_dead("at the end of the program", execution, self.foreseen.hint(execution)))
        # In the order of the program, which a guide that proposes whole values need not follow.
        met = {name: self.values[name] for name in self.program.order if name in self.values}
        return assemble(execution, met | self.values, log_weight, self.log_prior, self.log_proposal, **fields)


def assemble(
    execution: Execution,
    values: dict[str, Tensor],
    log_weight: Tensor,
    log_prior: dict[str, Tensor],
    log_proposal: dict[str, Tensor],
    **fields: Any,
) -> Posterior:
    """A :class:`Posterior` from flat values [P, ...] and log-weights [R, N]."""
    shape = tuple(log_weight.shape)
    if not values:
        raise ModelError("the program has no latent site: there is nothing to infer; add a completion(...)")

    def view(value: Tensor) -> Tensor:
        return value.detach().cpu().reshape(*shape, *value.shape[1:])

    plates = {name: execution.plates.get(name, ()) for name in values}

    particles: dict[str, Completion | Tensor] = {}
    for name, value in values.items():
        source, value = execution.sources.get(name), as_written(value, plates[name], execution.nesting)
        particles[name] = view(value)
        if source is not None:
            own = value.shape[1:-1]  # the dimensions of its plates
            particles[name] = Completion(view(value), source.reshaped((*shape, *own)))
    if execution.answers:
        fields["history"] = {**fields.get("history", {}), "answers": dict(execution.answers)}
    least = list(execution.log_lower.values())
    if least and None not in least:
        fields["history"] = {**fields.get("history", {}), "log_lower": sum(one for one in least if one is not None)}
    lm_names = sorted({source.lm.name for source in execution.sources.values()})
    return Posterior(
        engine="",
        log_weight=log_weight,
        particles=particles,
        rewards={k: view(v) for k, v in execution.rewards.items()},
        scales={k: view(for_each(v, log_weight.numel())) for k, v in execution.scales.items()},
        drawn_scales=differing(execution.scales),
        targets=dict(execution.targets),
        factors={k: view(v) for k, v in execution.factors.items()},
        log_upper={k: view(for_each(v, log_weight.numel())) for k, v in execution.log_upper.items()},
        log_prior={k: view(v) for k, v in log_prior.items()},
        log_proposal=view(sum(log_proposal.values(), torch.zeros(log_weight.numel(), dtype=torch.float64))),
        lm=", ".join(lm_names),
        environment=tuple(execution.environment),
        plates=plates,
        **fields,
    )


def all_dead(where: str, execution: Execution, hint: str = "") -> str:
    """Which factor killed them all, and what to try."""
    killers = [name for name, value in execution.factors.items() if bool(value.isneginf().all())]
    blame = f" ({killers[0]!r} is -inf for each of them)" if killers else ""
    return (
        f"every particle has weight zero {where}{blame}: no draw satisfies the program. Try more particles, more room "
        f"(max_new_tokens) if it can be met at all, a softer reward than -inf, or a proposal= that knows what is wanted"
        f"{hint}"
    )
