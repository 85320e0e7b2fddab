"""One belief about a reward, used in three ways, and the warning that the third deserves.

    mean          E[r]                             linear, so it is the best policy in expectation
    pessimistic   E[r] - k sd(r)                   a lower bound, in reward units
    marginalised  beta log E[exp(r / beta)]        = E[r] + bonus,  bonus = s^2 / (2 beta) for a Gaussian belief

Marginalising multiplies the posterior under the mean reward by exp(bonus / beta), which is Jensen's inequality and not
a discovery about the text: it grows with the distance from the training texts. Only its *differences* between texts
matter. Where the belief is calibrated, or equally unsure of everything, that does little harm; where it is unsure of
the wrong texts it ruins the policy (the claim ``reward-uncertainty``). So the size is computed, and printed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.provenance import get_provenance, track_provenance
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.core.runs import on_run_end
from ppl_align.core.validation import one_of
from ppl_align.lm.completions import Completion
from ppl_align.particles.weights import log_mean_exp
from ppl_align.program.reward import reward
from ppl_align.program.scale import positive
from ppl_align.program.sketch import sketching
from ppl_align.rewards.convention import plain_text
from ppl_align.rewards.seen import what_it_sees

if TYPE_CHECKING:
    from ppl_align.preferences.posterior import RewardPosterior

USES = ("mean", "pessimistic", "marginalised", "sampled")


class OptimismWarning(UserWarning):
    """A reward that is not known was marginalised inside exp(): texts are paid for being unknown."""


@dataclass(frozen=True, eq=False)
class LearnedReward:
    """A belief as a reward function, in TRL's convention. Made by the methods of :class:`RewardPosterior`."""

    posterior: RewardPosterior
    use: str
    k: float = 0.0
    beta: float | None = None
    __name__: ClassVar[str] = "learned"

    def __post_init__(self) -> None:
        if self.use == "pessimistic" and not (isinstance(self.k, (int, float)) and 0 <= self.k < math.inf):
            raise InputError(f"pessimistic(k): so many standard deviations, 0 or more, got {self.k!r}")
        if self.use == "marginalised" and not (isinstance(self.beta, (int, float)) and 0 < self.beta < math.inf):
            raise InputError(f"marginalised(beta): positive and finite, as in reward(..., beta=), got {self.beta!r}")

    def __call__(self, completions: Sequence[Any], prompts: Sequence[Any] | None = None, **_: Any) -> list[float]:
        texts = self.read(completions, prompts)
        mean, sd = self.posterior.score(texts)
        if self.use == "pessimistic":
            return (mean - self.k * sd).tolist()
        if self.use == "marginalised":
            assert self.beta is not None
            bonus = optimism_bonus(self.posterior, texts, self.beta)
            _tell(self.posterior, self.beta, bonus)
            return (mean + self.beta * bonus).tolist()
        return mean.tolist()

    def read(self, completions: Sequence[Any], prompts: Sequence[Any] | None = None, **_: Any) -> list[str]:
        """What the features are computed from: the completions, after their prompts where it reads those."""
        texts = [plain_text(completion) for completion in completions]
        if not self.posterior.include_prompt:
            return texts
        if prompts is None:
            raise InputError("this learned reward reads prompts: give it the completion itself, not only its text")
        return [plain_text(prompt) + text for prompt, text in zip(prompts, texts, strict=True)]

    @property
    def for_beta(self) -> float | None:
        """The ``beta / weight`` that its values are meant for, checked by ``reward``; None: they hold at any."""
        return self.beta

    def identity_parts(self) -> tuple[Hashable, ...]:
        """What makes two of them the same reward."""
        return (self.posterior, self.use, self.k, self.beta)


def optimism_bonus(posterior: RewardPosterior, texts: Sequence[str], beta: float) -> Tensor:
    """log E[exp((r - E r) / beta)] of each text, ``[n]`` nats: s^2 / (2 beta^2), or the average over NUTS's draws."""
    if posterior.belief.draws is None:
        return (posterior.score(texts)[1] / beta).square() / 2
    spread = posterior.phi(texts) @ (posterior.belief.draws - posterior.belief.mean).T / beta
    return log_mean_exp(spread)


class _Tally:
    """The bonus of all the texts of one run; called at its end."""

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.parts: list[Tensor] = []

    def __call__(self) -> str | None:
        bonus = torch.cat(self.parts)
        if len(bonus) == 0 or not bool((bonus > 0).any()):
            return None
        mean, low, high = float(bonus.mean()), float(bonus.min()), float(bonus.max())
        text = (
            f"a learned reward was marginalised inside exp(): this pays texts for being unlike those it was learned "
            f"from, {mean:.3g} nats ({self.beta * mean:.3g} reward units) on average over the {len(bonus)} texts it "
            f"was asked about, {low:.3g} to {high:.3g} nats; differences count. If that is not meant, use mean() or "
            f"pessimistic()"
        )
        warnings.warn(text, OptimismWarning, stacklevel=2)
        return text


def _tell(posterior: RewardPosterior, beta: float, bonus: Tensor) -> None:
    """Once per run, at its end; outside of any run, now."""
    tally = on_run_end(("optimism", id(posterior), beta), lambda: _Tally(beta))
    told = tally or _Tally(beta)
    told.parts.append(bonus)
    if tally is None:
        told()


def learned(
    posterior: RewardPosterior,
    name: str,
    completion: Completion,
    beta: float | Tensor = 1.0,
    use: str = "mean",
    k: float = 1.0,
) -> Tensor:
    """See :meth:`RewardPosterior.reward`."""
    one_of("use", use, list(USES))
    given = positive(f"reward {name!r}: beta", beta)
    smallest = float(torch.as_tensor(given, dtype=torch.float64).min())
    if use == "mean":
        return reward(name, posterior.mean(), completion, beta)
    if use == "pessimistic":
        return reward(name, posterior.pessimistic(k), completion, beta)
    if use == "marginalised":
        if isinstance(given, Tensor) and not bool((given == smallest).all()):
            raise InputError(
                f'reward {name!r}: use="marginalised" holds at one beta, and here each particle has its own: '
                f'use="sampled" is the same and takes any'
            )
        return reward(name, posterior.marginalised(smallest), completion, smallest)
    belief = posterior.belief
    if belief.draws is None:
        weights = pyro.sample(f"{name} weights", dist.MultivariateNormal(belief.mean, belief.covariance))
    else:
        which = pyro.sample(f"{name} weights", dist.Categorical(torch.ones(len(belief.draws), dtype=torch.float64)))
        weights = belief.draws[which]
    r = (_phi(posterior, name, completion, smallest) * weights).sum(-1)
    return reward(name, _given, track_provenance(r, get_provenance(completion.tokens)), beta)


def _given(r: Tensor) -> Tensor:
    return r


def _phi(posterior: RewardPosterior, name: str, completion: Completion, beta: float) -> Tensor:
    """Features of each element of the batch, ``[..., k]``; distinct texts are asked about once.

    ``beta``: the one at which the bonus that the run is told of is the largest."""
    size = len(posterior.belief.mean)
    if sketching():
        return torch.zeros(*completion.shape, size, dtype=torch.float64)
    mean = posterior.mean()
    texts = mean.read(**what_it_sees(name, mean, completion, {}).columns)
    _tell(posterior, beta, optimism_bonus(posterior, list(dict.fromkeys(texts)), beta))
    return posterior.phi(texts).reshape(*completion.shape, size)
