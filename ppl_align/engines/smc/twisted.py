"""What SMC does while particles move: judge prefixes by a twist, bring weights up to date, resample.

With psi the log-potential of the program on what is written, or a twist in its place, and log p - log q of what was
drawn, the weight is brought up to date whenever psi is refreshed, minus what the last resampling has already counted::

    log_weight += (log p - log q + psi) - absorbed;   absorbed = log p - log q + psi

Any finite psi on the way leaves E[Zhat] = Z (the telescope closes with the true potential of the whole program); a good
one makes Zhat less variable. (Naesseth, Lindsten & Schön 2019, arXiv:1903.04797.)
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_align.core.errors import RunError
from ppl_align.engines.base import all_dead
from ppl_align.engines.smc.rejuvenation import rejuvenate
from ppl_align.engines.smc.schedule import Schedule
from ppl_align.lm.restriction import Restriction
from ppl_align.particles.particles import Particles, Site
from ppl_align.particles.resampling import CONDITIONAL, SCHEMES, resample
from ppl_align.particles.weights import log_mean_exp
from ppl_align.runner.decode import Decode
from ppl_align.runner.prefixes import run_on_prefixes
from ppl_align.runner.runner import Observer, Runner
from ppl_align.twists.hard_constraint import HardConstraint
from ppl_align.twists.twist import Prefixes, Scene, Sum, Twist, evaluate, judgement

if TYPE_CHECKING:
    from ppl_align.engines.smc.ancestor_sampling import AncestorSampling
    from ppl_align.engines.smc.smc import SMC


@dataclass(frozen=True, eq=False)
class State:
    """What SMC knows of each particle besides the particle itself: one value for each, [P]; float64 on the CPU.

    ``log_weight``, ``absorbed``, ``psi``  nats, see above
    ``has_potential``   its text has been judged since the completion began
    ``needs_refresh``   that judgement may be another one by now
    ``lineage``         which particle of the start it comes from
    """

    log_weight: Tensor
    absorbed: Tensor
    psi: Tensor
    has_potential: Tensor
    needs_refresh: Tensor
    lineage: Tensor

    @classmethod
    def start(cls, replicates: int, particles: int) -> State:
        zeros = torch.zeros(replicates * particles, dtype=torch.float64)
        no = torch.zeros(replicates * particles, dtype=torch.bool)
        return cls(zeros, zeros, zeros, no, ~no, torch.arange(particles).repeat(replicates))

    def take(self, index: Tensor) -> State:
        """That of the particles at ``index [P]``."""
        return State(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def reweight(self, psi: Tensor, log_ratio: Tensor) -> State:
        """With the weights brought up to date; ``log_ratio``: log p - log q of all that was drawn, [P]."""
        total = psi + log_ratio
        gain = total - self.absorbed
        # A particle of weight zero stays there: -inf - -inf is not a number.
        log_weight = torch.where(self.log_weight.isneginf(), self.log_weight, self.log_weight + gain)
        return replace(self, log_weight=log_weight, absorbed=total, psi=psi)

    def at_a_new_completion(self) -> State:
        """Nothing has been judged of it."""
        no = torch.zeros_like(self.has_potential)
        return replace(self, has_potential=no, needs_refresh=~no)


class TwistedSMC(Observer):
    """R replicates of N particles. ``state`` [P], ``log_evidence`` [R] of the populations already resampled, and
    ``events``: what was seen each time the weights were looked at."""

    def __init__(
        self, config: SMC, runner: Runner, parts: list[Twist], ancestry: AncestorSampling | None = None
    ) -> None:
        """``ancestry``: the retained particles find new ancestors when they are resampled."""
        self.config, self.runner, self.parts, self.ancestry = config, runner, parts, ancestry
        self.shape = (config.num_replicates, config.num_particles)
        self.state = State.start(*self.shape)
        self.log_evidence = torch.zeros(self.shape[0], dtype=torch.float64)
        self.evidence = self.log_evidence  # when the weights were last looked at
        self.events: list[dict[str, Any]] = []
        self.steered = False  # by a table that may leave out what the prior writes
        self.known: set[int] = set()  # parts that knew something of a completion
        self.twist: Twist | None = None
        self.judges_ended = False  # the twist still has something to say of texts that have ended
        self.schedule: Schedule | None = None
        self.step = 0

    # -- as an observer of the runner ----------------------------------------------------------------------------------

    def executed(self, particles: Particles) -> None:
        """The true potential of what is written so far."""
        self.state = self.state.reweight(particles.log_potential, particles.log_ratio)

    def before_decoding(self, particles: Particles) -> Particles:
        """Factors met so far may already tell particles apart."""
        self.schedule = None
        self.state = self.state.at_a_new_completion()
        if not bool((self.state.log_weight != self.state.log_weight[0]).any()):
            return particles
        index = self._ancestors("before the first token", particles)
        return particles if index is None else particles.take(index)

    def lean(self, site: Site, restriction: Restriction | None) -> Twist | None:
        """All that is known of a completion: its hard constraints and, of the twist, what has to do with it."""
        asks = any(part.asks_program for part in self.parts)  # then the program itself judges its constraints
        scene = Scene(site, restriction)
        found = [part.at(scene) for part in (HardConstraint(weighs=not asks), *self.parts)]
        self.steered |= any(part.proposes and not (part.of_constraints or part.defensive) for part in found if part)
        self.known |= {i for i, one in enumerate(found[1:]) if one is not None}
        known = [one for one in found if one is not None]
        self.twist = None if not known else known[0] if len(known) == 1 else Sum(known)
        return self.twist if self.twist is not None and self.twist.proposes else None

    @property
    def block(self) -> int | None:
        """As often as potentials are refreshed; where words and sentences end is known token by token."""
        every = self.config.every
        return None if self.twist is None else every if isinstance(every, int) else 1

    def drew(self, decode: Decode) -> None:
        """Refresh the potentials of the particles that are due, then maybe resample."""
        if self.twist is None:
            return  # nothing is known of a prefix: weights wait for the end
        self.step += 1
        self.schedule = self.schedule or Schedule(self.config.every, decode.site.fn.lm)
        state = self.state
        alive = torch.from_numpy(decode.alive)
        due = torch.from_numpy(self.schedule.due(decode)) & alive
        due = due | (~alive & state.needs_refresh)
        if not bool(due.any()):
            return
        judged = state.has_potential | due
        chosen = due.nonzero()[:, 0]
        psi = state.psi.clone()
        psi[chosen] = self.potential(decode, chosen, alive[chosen])
        start = decode.particles.log_potential
        psi = torch.where(judged, psi, start + self._mean_gain(psi, start, judged))
        state = replace(state, has_potential=judged, needs_refresh=alive | self.judges_ended)
        self.state = state.reweight(psi, decode.particles.log_ratio + decode.log_ratio)
        index = self._ancestors(f"after {decode.t} tokens of {decode.site.name!r}", decode.particles, decode)
        if index is not None:
            decode.take(index)
        if self.config.rejuvenate is not None and self.schedule.all_due(decode.t):
            accepted = rejuvenate(self.config.rejuvenate, self, decode)
            self.events[-1]["moved"] = accepted.reshape(self.shape).mean(-1)

    # -- potentials ----------------------------------------------------------------------------------------------------

    def potential(self, decode: Decode, chosen: Tensor, running: Tensor) -> Tensor:
        """psi of the chosen particles, [m] nats: of prefixes by the twist, of what has ended the true one."""
        assert self.twist is not None
        twist, upstream, width = self.twist, decode.particles.take(chosen), decode.site.fn.max_new_tokens
        site, psi, said = upstream.site, upstream.log_potential, None
        if twist.asks_program:
            decode.leave_scores(decode.t)
            said = run_on_prefixes(self.runner.program, _with(upstream, decode.prefix(decode.t), chosen), site)
            psi = torch.where(running, psi, said.log_potential)
        elif not twist.of_constraints and not bool(running.all()):
            ended = (~running).nonzero()[:, 0]
            decode.leave_scores(width, chosen[ended])
            whole = _with(upstream.take(ended), decode.prefix(width), chosen[ended])  # padded to its full length
            psi = psi.index_copy(0, ended, self.runner.program.run(whole, draw=False).log_potential)
        self.judges_ended = False
        if not twist.of_constraints and not bool(running.all()):
            ended = (~running).nonzero()[:, 0]
            more = judgement(twist.ended, twist, self._prefixes(decode, upstream.take(ended), chosen[ended]))
            if more is not None:
                psi, self.judges_ended = psi.index_add(0, ended, more), True
        if bool(running.any()):
            now = running.nonzero()[:, 0]
            judged = self._judged(decode, upstream.take(now), chosen[now], None if said is None else said.take(now))
            psi = psi.index_add(0, now, judged)
        return psi

    def _judged(self, decode: Decode, upstream: Particles, chosen: Tensor, said: Particles | None) -> Tensor:
        """log psi of prefixes, [m] nats."""
        assert self.twist is not None
        log_psi = evaluate(self.twist, self._prefixes(decode, upstream, chosen, said))
        if self.twist.table_weighs:
            log_psi = log_psi + decode.log_psi[chosen]
        return log_psi

    def _prefixes(self, decode: Decode, upstream: Particles, chosen: Tensor, said: Particles | None = None) -> Prefixes:
        """The texts so far of the particles ``chosen``, as a twist sees them."""
        assert self.twist is not None
        source, tokens = upstream.site.fn, decode.prefix(decode.t)
        parts = self.twist.parts if isinstance(self.twist, Sum) else (self.twist,)
        return Prefixes(
            decode.site.name,
            tokens[chosen.to(tokens.device)],
            [] if self.twist.by_ids else source.prompt_rows(source.batch_shape),
            upstream.values,
            upstream.log_potential,
            said,
            torch.from_numpy(decode.running_texts)[chosen],
            decode.texts_so_far(chosen) if any(part.of_constraints for part in parts) else None,
            source,
            decode.log_prior[chosen],
        )

    def _mean_gain(self, psi: Tensor, start: Tensor, judged: Tensor) -> Tensor:
        """What the judged particles of a replicate have gained or lost in this completion, the log of their mean, [P].

        A potential is compared with potentials, so one that is not judged yet counts as the average of those that are:
        a constant added to a reward then says nothing for or against it. (E[Zhat] = Z whatever psi is made of, as long
        as it is known when it is used.)"""
        gain = torch.where(judged & psi.isfinite(), psi - start, -torch.inf).reshape(self.shape)
        count = gain.isfinite().sum(-1, keepdim=True)
        mean = gain.logsumexp(-1, keepdim=True) - count.clamp_min(1).log()
        return torch.where(count > 0, mean, 0.0).expand(self.shape).reshape(-1)

    # -- resampling ----------------------------------------------------------------------------------------------------

    @property
    def log_weight(self) -> Tensor:
        """[R, N] nats, since the last resampling of each replicate."""
        return self.state.log_weight.reshape(self.shape)

    def _ancestors(self, where: str, particles: Particles, decode: Decode | None = None) -> Tensor | None:
        """Look at the weights: whose copies go on, flat [P], once ``state`` is theirs; None: everybody stays."""
        log_weight, config = self.log_weight, self.config
        if bool(log_weight.isneginf().all()):
            values = dict(particles.values)
            if decode is not None:
                values[decode.site.name] = decode.prefix(decode.site.fn.max_new_tokens)
            dead = self.runner.program.run(particles.replace(values=values), draw=False)
            raise all_dead(where, dead, self.runner.constraints.hint(dead))
        if self.runner.retained is not None and bool(log_weight[:, 0].isneginf().any()):
            raise RunError(f"a retained draw has weight zero {where}: it is not a draw of this program's posterior")
        schemes = SCHEMES if self.runner.retained is None else CONDITIONAL
        found = resample(log_weight, config.ess_threshold, schemes[config.resampling])
        evidence, index, resampled = self.log_evidence + log_mean_exp(log_weight), None, found.resampled
        if bool(resampled.any()):
            if self.ancestry is not None:
                ancestors = found.ancestors.clone()
                ancestors[resampled, 0] = self.ancestry.draw(particles, decode, self.state, log_weight)[resampled]
                found = found._replace(ancestors=ancestors)
            index = found.flat
            self.log_evidence = torch.where(resampled, evidence, self.log_evidence)
            self.state = replace(self.state.take(index), log_weight=found.log_weight.reshape(-1))
        self.events.append(
            {
                "step": self.step,
                "ess": found.ess,
                "resampled": resampled,
                "log_evidence_increment": evidence - self.evidence,
                "ancestors": found.ancestors,
            }
        )
        self.evidence = evidence
        return index

    @property
    def resampled(self) -> bool:
        return any(bool(event["resampled"].any()) for event in self.events)

    def history(self) -> dict[str, Any]:
        """Stacked over the S times the weights were looked at: see ``Posterior.history``."""
        replicates, particles = self.shape
        names = {"ess": (replicates,), "resampled": (replicates,), "log_evidence_increment": (replicates,)}
        stacked: dict[str, Any] = {
            name: torch.stack([event[name] for event in self.events]) if self.events else torch.zeros(0, *shape)
            for name, shape in {**names, "ancestors": (replicates, particles)}.items()
        }
        if self.config.rejuvenate is not None:
            nobody = torch.full((replicates,), torch.nan, dtype=torch.float64)
            moved = [event.get("moved", nobody) for event in self.events]
            stacked["moved"] = torch.stack(moved) if moved else torch.zeros(0, replicates)
        stacked["step"] = torch.tensor([event["step"] for event in self.events], dtype=torch.long)
        stacked["lineage"] = self.state.lineage.reshape(self.shape)
        return stacked


def _with(upstream: Particles, tokens: Tensor, chosen: Tensor) -> Particles:
    """The particles at ``chosen``, with their tokens at the site that they wait for."""
    values = {**upstream.values, upstream.site.name: tokens[chosen.to(tokens.device)]}
    return upstream.replace(values=values)


__all__ = ["TwistedSMC"]
