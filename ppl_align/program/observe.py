"""Observations: what somebody said about a text (a label, stars, a preference) as a likelihood of its score.

    label      P(yes)                = sigmoid(score / beta)
    rating     P(rating <= k)        = sigmoid((cutpoints[k] - score) / beta),   k = 0 .. K-1, K cutpoints
    prefers    P(better beats worse) = sigmoid((better - worse) / beta)          (Bradley & Terry 1952)

A score is a number for each particle: a latent, a reward (``reward`` and ``evaluate`` return one) or what was computed
from them. These are plain observed sites of Pyro, so a score that contains latents is learned from, and a score of an
unobserved completion tilts it. Probabilities are at most 1: ``Rejection`` knows their bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ppl_align.constraints.unfinished import Unfinished
from ppl_align.core.errors import InputError, RewardError
from ppl_align.core.pyro_stack import plates
from ppl_align.lm.completions import Completion
from ppl_align.program.constrain import constrain
from ppl_align.program.plates import PARTICLES
from ppl_align.program.scale import HOW, positive
from ppl_align.rewards.answers import shorten

_PARTICLE_PLATES = (PARTICLES, "num_particles_vectorized")  # an engine's, and that of Pyro's own SVI

Number = Tensor | float
"""One for all, or one for each particle."""


def label(name: str, score: Number, obs: Any, beta: Number = 1.0) -> None:
    """Somebody said yes (1, True) or no (0, False): a Bernoulli likelihood with log-odds ``score / beta``.

    ``score``  ``[...]``, one for each particle, or ``[..., n]`` for n labels; reward units
    ``obs``    one label, or n of them. They are summed as one site; n labels of one score ``[...]`` are fine too.
               Inside of plates the leading dimensions are the plates', as always in Pyro
    ``beta``   the noise of whoever labels, reward units: the smaller, the more a label says. It may be drawn: a
               tensor with one value for each particle (and each element of a plate), or shaped like the scores

    Raises ``InputError`` for labels that are neither 0 nor 1, ``RewardError`` for scores that are not finite.

    >>> label("thumb", torch.tensor([0.3, -0.2]), [1, 0])
    """
    seen = _observed(f"label {name!r}", "True or False (1 or 0)", obs, (0, 1))
    what = f"label {name!r}"
    parts = {"score": _score(what, score), "beta": positive(f"{what}: beta", beta)}
    _observe(what, name, _yes, parts, seen)


def rating(name: str, score: Number, obs: Any, cutpoints: Sequence[float] | Tensor, beta: Number = 1.0) -> None:
    """Somebody gave 0 to K stars: an ordered logistic likelihood (McCullagh 1980).

    ``score``      ``[...]``, or ``[..., n]`` for n ratings; reward units
    ``obs``        whole numbers from 0 to K, one or n of them, shaped as in :func:`label`
    ``cutpoints``  K increasing numbers, reward units: a score at cutpoint k gets more than k stars half of the time.
                   They may be drawn: ``[..., K]``, one row for each particle
    ``beta``       the noise of whoever rates, reward units; it may be drawn, as in :func:`label`

    Raises ``InputError`` for ratings out of range or cutpoints that do not increase, ``RewardError`` for scores that
    are not finite.

    >>> rating("stars", torch.tensor(0.3), 2, cutpoints=[-1.0, 0.0, 1.0])
    """
    what = f"rating {name!r}"
    cuts = torch.as_tensor(cutpoints, dtype=torch.float64).cpu()
    size = cuts.shape[-1] if cuts.dim() else 0
    if not size or not bool(cuts.isfinite().all()) or bool((cuts.diff() <= 0).any()):
        raise InputError(f"{what}: cutpoints must be increasing finite numbers, got {shorten(cuts.tolist())}")
    seen = _observed(what, f"a whole number from 0 to {size} (the cutpoints)", obs, range(size + 1))
    parts = {"score": _score(what, score), "beta": positive(f"{what}: beta", beta)}
    parts |= {f"cutpoint {k}": cut for k, cut in enumerate(cuts.unbind(-1))}
    _observe(what, name, _stars, parts, seen.long())


def prefers(name: str, better: Number, worse: Number, beta: Number = 1.0) -> None:
    """Somebody liked one better than another: a Bradley-Terry likelihood of their scores.

    ``better``, ``worse``  ``[...]``, one for each particle, or ``[..., n]`` for n pairs, summed as one site; reward
                           units. Inside of a plate over pairs: ``[..., n]`` as well, and the plate sums
    ``beta``               the noise of whoever compares, reward units; it may be drawn, as in :func:`label`

    Raises ``RewardError`` for scores that are not finite.

    >>> prefers("comparison", torch.tensor([0.3, 0.1]), torch.tensor([-0.2, 0.4]))
    """
    what = f"prefers {name!r}"
    gap = _score(what, better) - _score(what, worse)  # each is looked at: inf - inf would not say which of them it was
    parts = {"score": gap, "beta": positive(f"{what}: beta", beta)}
    _observe(what, name, _yes, parts, torch.ones((), dtype=torch.float64))


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


def _yes(score: Tensor, noise: Tensor) -> Any:
    return dist.Bernoulli(logits=score / noise)


def _stars(score: Tensor, noise: Tensor, *cuts: Tensor) -> Any:
    return dist.OrderedLogistic(score / noise, torch.stack(cuts, -1) / noise[..., None])


def _score(what: str, score: Number) -> Tensor:
    """Float64 on the CPU."""
    if not isinstance(score, (Tensor, int, float)):
        raise InputError(f"{what}: a score is a tensor, one number for each particle, got {type(score).__name__}")
    given = torch.as_tensor(score, dtype=torch.float64).cpu()
    if not bool(given.isfinite().all()):
        wrong = float(given[~given.isfinite()].reshape(-1)[0])
        raise RewardError(f"{what}: a score is {wrong}, which says nothing about what somebody would answer")
    return given


def _observed(what: str, legal: str, obs: Any, allowed: Sequence[int]) -> Tensor:
    try:
        seen = torch.as_tensor(obs, dtype=torch.float64).cpu()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{what}: obs= is {legal}, or a list of them, got {obs!r}") from None
    wrong = seen[~torch.isin(seen, torch.tensor(list(allowed), dtype=torch.float64))]
    if len(wrong) or seen.numel() == 0:
        raise InputError(f"{what}: obs= is {legal}, got {f'{float(wrong[0]):g}' if len(wrong) else 'nothing'}")
    return seen


def _observe(what: str, name: str, likelihood: Callable[..., Any], parts: Mapping[str, Number], seen: Tensor) -> None:
    """An observed site of the batch shape: what does not belong to a plate is summed.

    Of what the likelihood is made of (``parts``: score, beta, cutpoints), whatever is left after one dimension for
    each plate, the particles' included; of what was seen, whatever is left after the plates of the program."""
    if not am_i_wrapped():  # run by hand, outside any inference: there is nobody to tell
        return
    around = {frame.name: -frame.dim for frame in plates() if frame.dim}
    batch = max(around.values(), default=0)
    own = max((dim for frame, dim in around.items() if frame not in _PARTICLE_PLATES), default=0)
    given = {part: torch.as_tensor(value, dtype=torch.float64) for part, value in parts.items()}
    for part, value in given.items():
        if not own and 0 < value.dim() < batch and value.numel() > 1:
            shape, particles = list(value.shape), [1] * batch
            raise InputError(
                f"{name!r}: a {part} of shape {shape} has no dimension for the particles; if it is the same for all "
                f"of them, write {part}.reshape({[*particles, *shape]})"
            )
    summed = max(seen.dim() - own, *(value.dim() - batch for value in given.values()), 0)
    try:
        values = [_with_answers(value, batch, summed) for value in given.values()]
        shape = torch.broadcast_shapes(seen.shape, *(value.shape for value in values))
    except RuntimeError:
        shapes = ", ".join(f"{part} {list(value.shape)}" for part, value in given.items())
        raise InputError(f"{what}: shapes that do not fit ({shapes}, obs {list(seen.shape)}): {HOW}") from None
    fn = likelihood(*(value.expand(shape) for value in values))
    pyro.sample(name, fn.to_event(summed) if summed else fn, obs=seen.expand(shape))


def _with_answers(value: Tensor, batch: int, summed: int) -> Tensor:
    """With a dimension for each of the answers about it: at the end, after those of the plates."""
    lacking = summed - max(0, value.dim() - batch)
    return value[(..., *(None,) * lacking)] if value.dim() else value
