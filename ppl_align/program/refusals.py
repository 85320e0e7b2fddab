"""What Pyro lets pass and a posterior cannot: likelihoods that are noisy or no number, priors that are none."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_align.core.errors import ModelError, RunError
from ppl_align.program.explain import no_number


def refuse_subsample(msg: Any) -> None:
    """Raise ``ModelError`` for a plate that subsamples: its likelihood is a noisy estimate, and weights need the value.

    A sequential plate (``for i in pyro.plate(...)``) that visits all its elements is none. Nor does it matter who
    took the subsample (``subsample=``): one that is drawn changes from run to run, and SVI would weigh without any."""
    if not site_is_subsample(msg):
        return
    fn, given = msg["fn"], msg["value"]
    taken = fn.subsample_size if given is None else len(given)
    if taken is not None and taken < fn.size:
        which = "subsample_size" if given is None else "subsample"
        raise ModelError(
            f"plate {msg['name']!r} takes a subsample of {taken} of {fn.size}: the likelihood would be a noisy "
            f"estimate, and the posterior another one for each seed; leave {which}= out"
        )


def refuse_unconditioned_factor(msg: Any) -> None:
    """Raise ``ModelError`` for a factor or reward under ``poutine.uncondition``: it would be a latent without a value.

    (An observation there is a latent like any other: it has a distribution to be drawn from.)"""
    if msg["infer"].get("was_observed") and type(msg["fn"]).__name__ == "Unit":
        raise ModelError(
            f"{msg['name']!r} is a factor under poutine.uncondition, which would drop it without a word: keep rewards "
            "and factors outside of it, or leave them out of a program that is to be looked at without them"
        )


def refuse_changed_prior(msg: Any) -> None:
    """Raise ``ModelError`` for a latent that is scaled or masked: what is left has no draws that engines could take.

    Plates that subsample scale as well; they are :func:`refuse_subsample`'s."""
    scale = msg["scale"]
    scaled = bool((scale != 1).any()) if isinstance(scale, torch.Tensor) else scale != 1
    if not scaled and all(_is_whole(mask) for mask in (msg["mask"], *_own_masks(msg["fn"]))):
        return
    what, remedy = ("masked", "mask what is observed") if not scaled else ("scaled", "scale what is observed")
    raise ModelError(
        f"latent {msg['name']!r} is {what}, and a prior must stay a distribution that can be drawn from: {remedy}, and "
        "for a power of a language model write power(name, x, alpha)"
    )


def _is_whole(mask: Any) -> bool:
    return mask is None or bool(torch.as_tensor(mask).all())


def _own_masks(fn: Any) -> list[Any]:
    """The masks that a distribution carries itself, ``fn.mask(...)``."""
    masks = []
    while fn is not None:
        masks.append(getattr(fn, "_mask", None))
        fn = getattr(fn, "base_dist", None)
    return masks


def refuse_no_number(name: str, log_prob: Tensor) -> None:
    """Raise ``RunError`` for a log-factor that is NaN or +inf, whether Pyro validates or not."""
    if log_prob.is_complex():
        raise no_number(name, "complex")
    bad = log_prob.isnan() | log_prob.isposinf()
    if bool(bad.any()):
        raise no_number(name, "NaN" if bool(log_prob.isnan().any()) else "+inf")


def refuse_no_density(name: str, log_prob: Tensor) -> None:
    """Raise ``RunError`` for a latent whose prior is no distribution: its log-density is NaN."""
    if bool(log_prob.isnan().any()):
        raise RunError(f"latent {name!r} has a log-density of NaN for some draws: look at the parameters of its prior")
