"""Rejection sampling: draw from the prior, accept in proportion to the likelihood. What is accepted is exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError, ModelError, RunError, TooManyDrawsError
from ppl_align.core.estimate import of_draws
from ppl_align.core.runs import run_memory
from ppl_align.core.seeds import isolated, mix
from ppl_align.core.validation import at_least
from ppl_align.engines.base import Engine, Task
from ppl_align.engines.rejection.ceiling import ceiling, drawn_bounds, is_known
from ppl_align.lm.fingerprint import used_lms
from ppl_align.particles.particles import Particles
from ppl_align.particles.per_particle import said
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.of_particles import of_particles
from ppl_align.runner.runner import Runner

BATCH = 512  # particles decoded together at most
MANY = 200 * BATCH  # draws from which on it pays to decode as many as the language models have room for
ROUNDING = 1e-4  # nats: a log-probability of float32 arithmetic may lie above 0 by rounding
REMEDY = "raise beta, give a tighter upper=, raise max_draws, or use another engine"


@dataclass(frozen=True)
class Rejection(Engine):
    """Independent draws of the posterior itself, where the likelihood has a known bound.

    x ~ p0 is accepted with probability exp(psi(x) - B), where psi is the sum of all log-factors and B the sum of
    their largest values: 0 for an observed site that is discrete, ``weight * upper / beta`` for a reward
    (``reward(..., upper=)``, or the function's own bounds); where the weight is drawn, the largest of these over
    what it may be (:mod:`ppl_align.engines.rejection.ceiling`). Accepted draws have density proportional to
    p0 exp(psi): they are draws of p*, and the acceptance is a = Z / exp(B).

    A replicate draws until its N-th acceptance, which is the n_r-th of its draws, and Zhat_r = exp(B) (N-1)/(n_r-1):

    1. n_r is negative binomial, so E[(N-1)/(n_r-1)] = a and E[Zhat_r] = Z (Haldane 1945; this takes N >= 2);
    2. what is accepted does not depend on when: given n_r, the values are still independent draws of p*;
    3. hence E[Zhat_r (1/N) sum_i f(x_i)] = Z E_p*[f]: with log_weight[r, :] = log Zhat_r they are properly weighted.

    The mean of exp(psi) over all draws would vary less, but it depends on the very values that were accepted: its
    product with their mean would be biased, and so would be the evidence, since it is stopped by a success.

    ``num_particles``   accepted draws of each replicate, N (two or more)
    ``num_replicates``  independent repeats, R
    ``max_draws``       stop (``TooManyDrawsError``) rather than draw more often than this, all replicates together
    ``num_pilot``       the first draws predict the price of all; they are used as well

    Runs that are stopped are not part of the expectations above. Raises ``InputError`` for a factor without a bound.
    """

    num_particles: int = 16
    num_replicates: int = 4
    max_draws: int = 20_000
    num_pilot: int = 64

    name: ClassVar[str] = "rejection"

    def __post_init__(self) -> None:
        at_least(2, num_particles=self.num_particles, num_pilot=self.num_pilot)
        at_least(1, num_replicates=self.num_replicates)
        at_least(max(self.num_pilot, self._wanted), max_draws=self.max_draws)

    @property
    def texts_at_once(self) -> int:
        return BATCH

    @property
    def _wanted(self) -> int:
        return self.num_particles * self.num_replicates

    def forecast(self, model: Callable[..., Any], *args: Any, seed: int = 0, **kwargs: Any) -> Forecast:
        """What ``run`` with the same arguments would cost, by its own first ``num_pilot`` draws."""
        if not callable(model):
            raise InputError(f"forecast() takes a Pyro program (a function), got {type(model).__name__}")
        with isolated(mix(seed, self.name)), run_memory():
            return self._pilot(_Stream(Task(model, args, dict(kwargs), lambda done, total, note: None)))

    def _pilot(self, stream: _Stream) -> Forecast:
        with measure() as cost:
            while stream.num_draws < self.num_pilot:
                stream.draw(min(BATCH, self.num_pilot - stream.num_draws))
        acceptance, error = stream.acceptance()
        draws = max(float(self.num_pilot), self._wanted / acceptance) if acceptance > 0 else math.inf
        each = draws / self.num_pilot
        tokens, calls = cost.lm_tokens + cost.scored_tokens, cost.reward_calls
        return Forecast(acceptance, error, draws, tokens * each, calls * each, cost.seconds * each, self._wanted)

    def _infer(self, task: Task) -> Posterior:
        stream = _Stream(task)
        forecast = self._pilot(stream)
        if forecast.num_draws > self.max_draws:
            raise TooManyDrawsError(self._refusal(forecast))
        room = min((lm.rows_at_once for lm in used_lms()), default=BATCH)
        width = max(room, BATCH) if forecast.num_draws > MANY else BATCH
        while stream.num_accepted < self._wanted:
            share = stream.acceptance()[0]
            task.progress(stream.num_accepted, self._wanted, f"accepts {share:.1%}")
            left = self.max_draws - stream.num_draws
            if left == 0:
                raise TooManyDrawsError(
                    f"Rejection accepted {stream.num_accepted} of {self._wanted} particles in "
                    f"max_draws={self.max_draws} draws (its pilot run expected {forecast.share}): {REMEDY}"
                )
            stream.draw(min(width, left, math.ceil((self._wanted - stream.num_accepted) / share)))
        task.progress(self._wanted, self._wanted, f"accepts {stream.acceptance()[0]:.1%}")
        return self._posterior(stream, forecast)

    def _refusal(self, forecast: Forecast) -> str:
        if math.isinf(forecast.num_draws):
            return f"Rejection could accept none of its {self.num_pilot} pilot draws: raise num_pilot, or {REMEDY}"
        return (
            f"Rejection would take about {forecast.num_draws:,.0f} draws ({forecast.share} are accepted), more than "
            f"max_draws={self.max_draws}: {REMEDY}"
        )

    def _posterior(self, stream: _Stream, forecast: Forecast) -> Posterior:
        """One stream of draws, cut after every N-th acceptance: the pieces are independent and alike."""
        last = torch.cat(stream.places)[self.num_particles - 1 : self._wanted : self.num_particles]
        num_draws = torch.diff(last, prepend=torch.zeros(1, dtype=torch.long))
        log_evidence = stream.log_bound + ((self.num_particles - 1) / (num_draws - 1).double()).log()
        log_weight = log_evidence[:, None].expand(-1, self.num_particles).clone()
        history = {
            "num_draws": num_draws,
            "acceptance": forecast.acceptance,
            "acceptance_se": forecast.standard_error,
        }
        # They were drawn from p*, whose density is known up to Z only: no log_proposal.
        return of_particles(
            Particles.concat(stream.kept).take(torch.arange(self._wanted)),
            log_weight,
            Kind.EXACT_DRAWS,
            log_proposal=None,
            history=history,
        )


@dataclass(frozen=True)
class Forecast:
    """The price of a run of :class:`Rejection`, for all its replicates together, pilot included.

    ``acceptance``, ``standard_error``   share of the prior's draws that is accepted: mean of exp(psi - B) in the pilot
    ``num_draws``   ``num_particles / acceptance`` (infinite if the pilot saw nothing that could be accepted)
    ``lm_tokens``   decoded and scored. Like ``reward_calls`` (distinct texts) and ``seconds`` what the pilot's draws
                    took on average, though the prefixes and texts that draws share make large batches cheaper
    """

    acceptance: float
    standard_error: float
    num_draws: float
    lm_tokens: float
    reward_calls: float
    seconds: float
    num_particles: int

    @property
    def share(self) -> str:
        """The acceptance in percent, with its standard error."""
        return f"{100 * self.acceptance:.2g}% ± {100 * self.standard_error:.1g}%"

    def __str__(self) -> str:
        if math.isinf(self.num_draws):
            return "none of the pilot's draws could be accepted: there is no telling how many it takes"
        return (
            f"{self.share} of the draws are accepted: {self.num_particles} particles take about "
            f"{self.num_draws:,.0f} draws, {self.lm_tokens:,.0f} LM tokens, {self.reward_calls:,.0f} reward calls, "
            f"{self.seconds:.1f} s"
        )


class _Stream:
    """Draws of the prior, one after the other; the accepted ones are kept, with their place in the order (from 1)."""

    def __init__(self, task: Task) -> None:
        self.runner = Runner(task.program())
        self.log_upper: dict[str, float] | None = None  # of the factors that have one bound for all draws
        self.ceiling = 0.0  # of all others together
        self.num_draws = self.num_accepted = 0
        self.shares: list[Tensor] = []
        self.places: list[Tensor] = []
        self.kept: list[Particles] = []

    @property
    def log_bound(self) -> float:
        """B, nats."""
        return sum((self.log_upper or {}).values()) + self.ceiling

    def acceptance(self) -> tuple[float, float]:
        """Mean of exp(psi - B) over all draws so far, and its standard error."""
        return of_draws(torch.cat(self.shares))

    def draw(self, count: int) -> None:
        """``count`` more draws; each stays with probability exp(psi - B)."""
        drawn = self.runner.finish(Particles(count))
        self._check_bounds(drawn)
        share = (drawn.log_potential - self.log_bound).clamp_max(0.0).exp()
        chosen = (torch.rand(count, dtype=torch.float64) < share).nonzero()[:, 0]
        self.shares.append(share)
        self.places.append(self.num_draws + 1 + chosen)
        self.num_draws += count
        self.num_accepted += len(chosen)
        if len(chosen):
            self.kept.append(drawn.take(chosen))

    def _check_bounds(self, particles: Particles) -> None:
        check_bounds(particles.log_upper, particles.factors, particles.scales)
        drawn, first = drawn_bounds(particles), self.log_upper is None
        same = {
            name: bound
            for name, bound in particles.log_upper.items()
            if bound is not None and not isinstance(bound, Tensor)
        }
        if self.log_upper not in (None, same):
            raise ModelError("the bounds of the rewards change from run to run: Rejection needs upper= to be constant")
        self.log_upper = same
        if drawn:
            self.ceiling = ceiling(self.runner.program, list(drawn)) if first else self.ceiling
            if bool((torch.stack(list(drawn.values())).sum(0) > self.ceiling + ROUNDING).any()):
                raise InputError(
                    f"reward {next(iter(drawn))!r}: its weight (or 1 / beta) is larger for some draws than at any "
                    "value of the latents that can be listed, as where it depends on a text: Rejection needs "
                    "its largest value"
                )


def check_bounds(
    log_upper: Mapping[str, float | Tensor | None], factors: Mapping[str, Tensor], scales: Mapping[str, float | Tensor]
) -> None:
    """Has every factor a largest value, by name, and keeps it (``factors`` [P], nats)? ``scales``: of the rewards.

    Raises ``InputError`` for one without, ``RunError`` for one that exceeds it."""
    for name, bound in log_upper.items():
        if bound is None or not is_known(bound):
            raise InputError(_no_bound(name, log_upper, scales))
        # Rewards are held to their bounds where they are called.
        if name not in scales and bool((factors[name] > bound + ROUNDING).any()):
            most = float(factors[name].max())
            raise RunError(f"factor {name!r} is {most:.4g} nats, above its largest value of {said(bound, 4)}")


def _no_bound(name: str, log_upper: Mapping[str, float | Tensor | None], scales: Mapping[str, float | Tensor]) -> str:
    if name not in scales:
        return f"factor {name!r} has no known largest value, which Rejection needs: write it as reward(..., upper=...)"
    scale, bound = torch.as_tensor(scales[name]), log_upper[name]
    unknown = torch.full_like(scale, True, dtype=torch.bool) if bound is None else torch.as_tensor(bound).isposinf()
    side, which = ("largest", "upper") if bool(scale[unknown].max() > 0) else ("smallest", "lower")
    return f"reward {name!r}: Rejection needs its {side} value: reward(..., {which}=...)"
