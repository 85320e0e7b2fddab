"""How optimistic is it to condition? The measure of it, for engines whose program has an ``environment(...)``.

The posterior of a program weighs the world's answers o by what follows them. With U(h) = log E_p0[exp(psi) | h], the
log of the mean likelihood of all continuations of a history h,

    log p*(o | h) - log p(o | h) = U(h, o) - U(h)        tilt = sum over the world's turns of E_p*[U(h, o) - U(h)]

An exact posterior has all of this in its table. Draws of a posterior have it up to a bound: K continuations of h drawn
from the prior give log mean exp(psi) <= U(h) in expectation, and with the draw's own continuation among them (which is
one of p*) they give >= U(h) (Grosse, Ghahramani & Adams 2015, arXiv:1511.02543). Taking U(h, o) from below and U(h)
from above, and the last turn of the world only (every turn adds something >= 0), bounds the tilt from below.

Where a likelihood can be zero, the K continuations of (h, o) may all have none, and the bound would be -inf (to leave
such draws out would favour the answers that are hard to continue from: then it is no bound). So a constant is added to
both means, exp(psi) + Z / K, as if each had one more continuation, worth the average Z. The tilt is a KL divergence
between laws of o, so for any statistic S of o, and of what is drawn after it alike under both,

    KL >= E_p*[log S | h] - log E_p[S | h]       (Donsker & Varadhan 1975);  S = mean of K exp(psi) after (h, o) + Z / K

and log E_p[S | h] = log(exp(U(h)) + Z / K) is bounded from above just as U(h) is: z log(z + c) is convex.

What the agent gets is found by playing: it begins as a draw of the posterior does, the world answers afresh, and
whatever the agent says after that is chosen by conditioning anew. Among K continuations, in proportion to exp(psi),
that would be a draw from some q_K in place of p*(. | h); two chains that begin there take the difference away
(:mod:`ppl_align.engines.environment.coupling`), so that the mean is that of p*. They can do so only where K tries find
now and then what conditioning would say. By Jensen's inequality

    KL(p* || q_K) <= E_p*[log mean of K exp(psi), the draw's own among them] - U(h),     U(h) >= E[log mean of K afresh]

Where this is too large, at a turn of the agent in draws of the posterior, what the agent gets is not known (NaN); just
as where chains do not meet, or find nothing that is allowed. Where U(h) is -inf, in the table, it says what the prior
would: nothing is better.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.core.estimate import of_draws, standard_error
from ppl_align.engines.environment.coupling import condition, ended_weight
from ppl_align.lm.completions import tensor_of
from ppl_align.particles.particles import Particles
from ppl_align.particles.weights import log_mean_exp
from ppl_align.posterior import Estimate, Posterior
from ppl_align.posterior.optimism import Optimism
from ppl_align.posterior.prior import log_likelihood, log_prior
from ppl_align.posterior.table import draw_indices
from ppl_align.runner.known_constraints import known_constraints
from ppl_align.runner.runner import Runner

if TYPE_CHECKING:
    from ppl_align.engines.base import Task

log = logging.getLogger(__name__)
NUM_DRAWS = 32  # of the posterior, that are looked at
NUM_CONTINUATIONS = 8  # of each: together about what a run of importance sampling costs from there on
FAITHFUL = 1.0  # nats of that bound, over all turns: it counts what K tries miss from both sides, so about half is KL


def measured(task: Task, posterior: Posterior) -> Optimism:
    """The optimism of a run that conditioned; said in one line, too."""
    found = exact(posterior) if posterior.exact else sampled(task, posterior)
    log.warning(
        "%s conditions the world as well as the text: %s. To decide instead, use SVI or TreePlanner",
        posterior.engine,
        found,
    )
    return found


# -- exact -------------------------------------------------------------------------------------------------------------


def exact(posterior: Posterior) -> Optimism:
    """From the table of an exact posterior: nothing is drawn."""
    parts = {name: part.reshape(-1) for name, part in posterior.log_prior.items()}
    log_p0, log_target = log_prior(posterior).reshape(-1), posterior.weights.reshape(-1).log()
    psi = log_likelihood(posterior).reshape(-1)
    before = _histories(posterior)
    acted, tilt, value = torch.zeros_like(log_p0), 0.0, psi
    sites = list(posterior.particles)
    for name, here, after in zip(sites, before, before[1:], strict=False):
        mass = _log_sum(log_target, here)
        conditional = torch.where(mass.isneginf(), parts[name], _log_sum(log_target, after) - mass)
        if name in posterior.environment:
            tilt += _mean(log_target.exp(), conditional - parts[name])
            acted = acted + parts[name]
        else:
            acted = acted + conditional
    for name, here in zip(reversed(sites), reversed(before[:-1]), strict=True):  # backward: the best that can be done
        mass = _log_sum(log_p0, here)
        if name in posterior.environment:
            share = (log_p0 - mass).exp()
            value = _sum(torch.where(share > 0, share * value, 0.0), here)
        else:
            value = _log_sum(torch.where(log_p0.isneginf(), -torch.inf, log_p0 + value), here) - mass
    q = torch.where(log_p0.isneginf(), -torch.inf, acted).exp()
    rewards = {name: r.reshape(-1) for name, r in posterior.rewards.items()}
    return Optimism(
        posterior.environment,
        Estimate(tilt, 0.0),
        "exact",
        {name: Estimate(_mean(log_target.exp(), r), 0.0) for name, r in rewards.items()},
        {name: Estimate(_mean(q, r), 0.0) for name, r in rewards.items()},
        value=_mean(q, psi - (acted - log_p0)),
        best=float(value[log_p0.isfinite()][0]),
    )


def _histories(posterior: Posterior) -> list[Tensor]:
    """Which history an assignment has before each site, and at the end: numbers [S]."""
    size = posterior.log_weight.numel()
    seen = [torch.zeros(size, dtype=torch.long)]
    for value in posterior.particles.values():
        step = torch.cat([seen[-1][:, None].double(), tensor_of(value).reshape(size, -1).double()], 1)
        seen.append(torch.unique(step, dim=0, return_inverse=True)[1])
    return seen


def _sum(x: Tensor, group: Tensor) -> Tensor:
    """The sum of x over the members of each one's group, [S]."""
    return torch.zeros_like(x).index_add(0, group, x)[group]


def _log_sum(log_x: Tensor, group: Tensor) -> Tensor:
    top = torch.full_like(log_x, -torch.inf).scatter_reduce(0, group, log_x, "amax")[group].clamp_min(-1e300)
    return _sum((log_x - top).exp(), group).log() + top


def _mean(weights: Tensor, values: Tensor) -> float:
    """Where the weight is zero the value does not matter; where a reward does not apply (NaN), it does not count."""
    counts = (weights > 0) & ~values.isnan()
    total = weights[counts].sum()
    return float((weights[counts] * values[counts]).sum() / total) if bool(counts.any()) else math.nan


# -- draws -------------------------------------------------------------------------------------------------------------


def sampled(task: Task, posterior: Posterior) -> Optimism:
    """From draws of a posterior, and continuations of them that are drawn anew."""
    program = task.program()
    runner = Runner(program, constraints=known_constraints(program))
    index = torch.from_numpy(draw_indices(posterior, NUM_DRAWS, posterior.seed))
    distinct = len(index.unique())
    drawn = Particles.of_draws(posterior.particles, index)  # as histories, in the order of the program
    psi = log_likelihood(posterior).reshape(-1)[index]
    turns = _turns(posterior)
    of_world = [i for i, (world, _) in enumerate(turns) if world]
    first, last = of_world[0], of_world[-1]
    played = _play(runner, _until(drawn, turns[:first]), turns[first:])
    seen = _Continued(runner, drawn, turns)
    again = [at for at in range(first, len(turns)) if not turns[at][0]]  # turns at which the agent conditions anew
    if sum(seen.missed(at, psi) for at in again) > FAITHFUL:
        played.lost[:] = True
    executed = {name: _mean_of_played(r, played, distinct) for name, r in played.particles.rewards.items()}
    log_z = float(log_mean_exp(posterior.log_weight.reshape(-1)))
    tilt = _last_tilt(seen, psi, last, log_z)
    posterior_mean = {name: posterior.mean(name) for name in posterior.rewards}
    return Optimism(posterior.environment, of_draws(tilt, distinct), "at least", posterior_mean, executed)


Turns = list[tuple[bool, list[str]]]
"""Whose turn (True: the world's), and its sites."""


def _turns(posterior: Posterior) -> Turns:
    whose = groupby(posterior.particles, lambda name: name in posterior.environment)
    return [(world, list(sites)) for world, sites in whose]


def _until(drawn: Particles, turns: Turns) -> Particles:
    """The histories as they were after these turns."""
    names = [name for _, sites in turns for name in sites]
    return Particles(drawn.size, {name: drawn.values[name] for name in names})


@dataclass
class _Played:
    """``particles`` [P] at their end. ``share`` [P]: what each counts for, perhaps below 0, among those of its
    ``root``, one of the M they began with. ``lost`` [M]: what the agent would say there was not found."""

    particles: Particles
    share: Tensor
    root: Tensor
    lost: Tensor


def _play(runner: Runner, histories: Particles, turns: Turns) -> _Played:
    """To the end: the world answers by its own law, the agent conditions anew at each of its turns."""
    size = histories.size
    lost, root = torch.zeros(size, dtype=torch.bool), torch.arange(size)
    if len(turns) == 1:  # nothing is left to the agent: several answers in place of one
        histories, root = histories.repeat(NUM_CONTINUATIONS), root.repeat_interleave(NUM_CONTINUATIONS)
    share = torch.full((histories.size,), size / histories.size, dtype=torch.float64)
    for world, _ in turns:
        if world:
            histories = runner.turn(histories)
            continue
        said = condition(runner, histories, NUM_CONTINUATIONS)
        lost[root[said.lost]] = True
        histories, share, root = said.histories, share[said.owner] * said.sign, root[said.owner]
    return _Played(runner.look(histories), share, root, lost)


def _mean_of_played(r: Tensor, played: _Played, distinct: int) -> Estimate:
    """E[r] over what was played, r [P]; where r is NaN it does not apply and does not count.

    -inf in one history is -inf in the mean, for certain; else a mean in which some are lost is not known."""
    if bool(r[~played.lost[played.root]].isneginf().any()):
        return Estimate(-math.inf, 0.0)
    if bool(played.lost.any()):
        return Estimate(math.nan, math.nan)
    applies = ~r.isnan()
    nothing = torch.zeros(len(played.lost), dtype=torch.float64)
    total = nothing.index_add(0, played.root, torch.where(applies, played.share * r, 0.0))
    count = nothing.index_add(0, played.root, torch.where(applies, played.share, 0.0))
    if not float(count.sum()) > 0:
        return Estimate(math.nan, math.nan)
    value = float(total.sum() / count.sum())
    return Estimate(value, standard_error((total - value * count) / count.mean(), distinct))


class _Continued:
    """Draws of the posterior, continued afresh from the beginning of a turn."""

    def __init__(self, runner: Runner, drawn: Particles, turns: Turns) -> None:
        self.runner, self.drawn, self.turns = runner, drawn, turns
        self._known: dict[int, Tensor] = {}

    def __getitem__(self, turn: int) -> Tensor:
        """psi + log p0/q of K continuations that begin with this turn, [M, K]."""
        if turn not in self._known:
            before = _until(self.drawn, self.turns[:turn])
            weight = ended_weight(self.runner, before.repeat(NUM_CONTINUATIONS))
            self._known[turn] = weight.reshape(self.drawn.size, NUM_CONTINUATIONS)
        return self._known[turn]

    def missed(self, turn: int, psi: Tensor) -> float:
        """KL(p* || q_K) at a turn of the agent, at most, on average over the draws."""
        afresh = self[turn]
        own = log_mean_exp(torch.cat([psi[:, None], afresh[:, 1:]], 1))
        return float((own - log_mean_exp(afresh)).mean())


def _last_tilt(seen: _Continued, psi: Tensor, last: int, log_evidence: float) -> Tensor:
    """A lower bound on U(h, o) - U(h) at the last turn of the world, for each draw, in expectation, [M] nats."""
    without = log_mean_exp(torch.cat([psi[:, None], seen[last]], 1))
    if last == len(seen.turns) - 1:
        return psi - without
    after = log_mean_exp(seen[last + 1])
    more = torch.tensor(log_evidence - math.log(NUM_CONTINUATIONS), dtype=torch.float64)
    return torch.logaddexp(after, more) - torch.logaddexp(without, more)
