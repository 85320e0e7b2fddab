"""Observations: what somebody said about a text (a label, stars, a preference) as a likelihood of its score.

    label      P(yes)                = sigmoid(score / beta)
    rating     P(rating <= k)        = sigmoid((cutpoints[k] - score) / beta),   k = 0 .. K-1, K cutpoints
    prefers    P(better beats worse) = sigmoid((better - worse) / beta)          (Bradley & Terry 1952)

A score is a number for each particle: a latent, a reward (``reward`` and ``evaluate`` return one) or what was computed
from them. These are plain observed sites of Pyro, so a score that contains latents is learned from, and a score of an
unobserved completion tilts it. Probabilities are at most 1: ``Rejection`` knows their bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.runtime import _PYRO_STACK, am_i_wrapped
from torch import Tensor

from ppl_align.completions import Completion
from ppl_align.constraints.unfinished import Unfinished
from ppl_align.errors import InputError, RewardError
from ppl_align.program.compiled import PARTICLES
from ppl_align.program.constrain import constrain

_PARTICLE_PLATES = (PARTICLES, "num_particles_vectorized")  # an engine's, and that of Pyro's own SVI

Number = Tensor | float


def label(name: str, score: Number, obs: Any, beta: float = 1.0) -> None:
    """Somebody said yes (1, True) or no (0, False): a Bernoulli likelihood with log-odds ``score / beta``.

    ``score``  ``[...]``, one for each particle, or ``[..., n]`` for n labels; reward units
    ``obs``    one label, or n of them. They are summed as one site; n labels of one score ``[...]`` are fine too.
               Inside of plates the leading dimensions are the plates', as always in Pyro
    ``beta``   the noise of whoever labels, reward units: the smaller, the more a label says

    Raises ``InputError`` for labels that are neither 0 nor 1, ``RewardError`` for scores that are not finite.

    >>> label("thumb", torch.tensor([0.3, -0.2]), [1, 0])
    """
    seen = _observed(f"label {name!r}", "True or False (1 or 0)", obs, (0, 1))
    _observe(name, lambda logits: dist.Bernoulli(logits=logits), _scaled(f"label {name!r}", score, beta), seen)


def rating(name: str, score: Number, obs: Any, cutpoints: Sequence[float] | Tensor, beta: float = 1.0) -> None:
    """Somebody gave 0 to K stars: an ordered logistic likelihood (McCullagh 1980).

    ``score``      ``[...]``, or ``[..., n]`` for n ratings; reward units
    ``obs``        whole numbers from 0 to K, one or n of them, shaped as in :func:`label`
    ``cutpoints``  K increasing numbers, reward units: a score at cutpoint k gets more than k stars half of the time
    ``beta``       the noise of whoever rates, reward units

    Raises ``InputError`` for ratings out of range or cutpoints that do not increase, ``RewardError`` for scores that
    are not finite.

    >>> rating("stars", torch.tensor(0.3), 2, cutpoints=[-1.0, 0.0, 1.0])
    """
    cuts = torch.as_tensor(cutpoints, dtype=torch.float64)
    if cuts.dim() != 1 or len(cuts) == 0 or not bool(cuts.isfinite().all()) or bool((cuts.diff() <= 0).any()):
        raise InputError(f"rating {name!r}: cutpoints must be increasing finite numbers, got {cuts.tolist()}")
    seen = _observed(f"rating {name!r}", f"a whole number from 0 to {len(cuts)} (the cutpoints)", obs,
                     range(len(cuts) + 1))  # fmt: skip
    scaled = _scaled(f"rating {name!r}", score, beta)
    _observe(name, lambda predictor: dist.OrderedLogistic(predictor, cuts / beta), scaled, seen.long())


def prefers(name: str, better: Number, worse: Number, beta: float = 1.0) -> None:
    """Somebody liked one better than another: a Bradley-Terry likelihood of their scores.

    ``better``, ``worse``  ``[...]``, one for each particle, or ``[..., n]`` for n pairs, summed as one site; reward
                           units. Inside of a plate over pairs: ``[..., n]`` as well, and the plate sums
    ``beta``               the noise of whoever compares, reward units

    Raises ``RewardError`` for scores that are not finite.

    >>> prefers("comparison", torch.tensor([0.3, 0.1]), torch.tensor([-0.2, 0.4]))
    """
    what = f"prefers {name!r}"
    _scaled(what, better, beta), _scaled(what, worse, beta)  # inf - inf would not say which of them it was
    gap = _scaled(what, torch.as_tensor(better) - torch.as_tensor(worse), beta)
    _observe(name, lambda logits: dist.Bernoulli(logits=logits), gap, torch.ones((), dtype=torch.float64))


def goes_on(name: str, completion: Completion) -> None:
    """The text goes on after this completion: it is a piece of a longer one, and did not end with EOS.

    For a completion that is followed by an observed one (infilling, "the answer ends with"): a draw that has ended
    contradicts what was seen. The factor is 0 for it, and 1 for one that was cut off at ``max_new_tokens`` or ended
    with a stop token. Without it such a draw counts as well, as a shorter piece that is less likely by the probability
    of an EOS which nobody has seen. Engines that know constraints never draw it, and their weights pay for that.

    Raises ``InputError`` for something that is no completion.
    """
    if not isinstance(completion, Completion) or completion.source is None:
        raise InputError(f"goes_on {name!r} takes what completion(...) returned, got {type(completion).__name__}")
    source = completion.source
    constrain(name, Unfinished(source.max_new_tokens, source.stop_ids), completion)


def _scaled(what: str, score: Number, beta: float) -> Tensor:
    """The score in units of the noise, float64 on the CPU."""
    if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 < beta < math.inf:
        raise InputError(f"{what}: beta must be positive and finite, got {beta!r}")
    if not isinstance(score, (Tensor, int, float)):
        raise InputError(f"{what}: a score is a tensor, one number for each particle, got {type(score).__name__}")
    scaled = torch.as_tensor(score).to("cpu", torch.float64) / beta
    if not bool(scaled.isfinite().all()):
        wrong = float(scaled[~scaled.isfinite()][0])
        raise RewardError(f"{what}: a score is {wrong}, which says nothing about what somebody would answer")
    return scaled


def _observed(what: str, legal: str, obs: Any, allowed: Sequence[int]) -> Tensor:
    try:
        seen = torch.as_tensor(obs).to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{what}: obs= is {legal}, or a list of them, got {obs!r}") from None
    wrong = seen[~torch.isin(seen, torch.tensor(list(allowed), dtype=torch.float64))]
    if len(wrong) or seen.numel() == 0:
        raise InputError(f"{what}: obs= is {legal}, got {f'{float(wrong[0]):g}' if len(wrong) else 'nothing'}")
    return seen


def _observe(name: str, likelihood: Callable[[Tensor], Any], score: Tensor, seen: Tensor) -> None:
    """An observed site of the batch shape: what does not belong to a plate is summed.

    Of a score, whatever is left after one dimension for each plate, the particles' included; of what was seen,
    whatever is left after the plates of the program."""
    if not am_i_wrapped():  # run by hand, outside any inference: there is nobody to tell
        return
    plates = {frame.name: -frame.dim for frame in _PYRO_STACK if isinstance(frame, IndepMessenger) and frame.dim}
    batch = max(plates.values(), default=0)
    own = max((dim for frame, dim in plates.items() if frame not in _PARTICLE_PLATES), default=0)
    if not own and 0 < score.dim() < batch and score.numel() > 1:
        shape, particles = list(score.shape), [1] * batch
        raise InputError(
            f"{name!r}: a score of shape {shape} has no dimension for the particles; if it is the same for all of "
            f"them, write score.reshape({[*particles, *shape]})"
        )
    extra = max(0, seen.dim() - own)
    summed = max(score.dim() - batch, extra)
    if summed > max(0, score.dim() - batch):  # several answers about one score
        score = score[(..., *(None,) * (summed - max(0, score.dim() - batch)))]
    shape = torch.broadcast_shapes(score.shape, seen.shape)
    fn = likelihood(score.expand(shape))
    pyro.sample(name, fn.to_event(summed) if summed else fn, obs=seen.expand(shape))
