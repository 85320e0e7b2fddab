"""Posterior expectations with standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ppl_align.completions import Completion
from ppl_align.errors import InputError

if TYPE_CHECKING:
    from ppl_align.posterior import Posterior

MIN_REPLICATES = 4
"""Fewer independent repeats say nothing usable about their own spread."""
MIN_EFFECTIVE_DRAWS = 2.0
_WIDEST = 20  # characters of a value with its error
_DECIMALS = 6
_FIXED = (1e-3, 1e9)  # sizes of a value that are read more easily without an exponent


class Estimate(NamedTuple):
    """``value``, and ``standard_error`` (NaN where none can be stated)."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return with_error(self.value, self.standard_error)


def with_error(value: float, error: float) -> str:
    """Value and error to the error's second digit, in 20 characters; a question mark where there is no error.

    An error that is rounding is 0. What would take more than six decimals is said with exponents.

    >>> with_error(0.86712, 0.00591), with_error(-4.6, math.nan), with_error(0.5, 0.0)
    ('0.8671 ± 0.0059', '-4.6 ± ?', '0.5 ± 0')
    >>> with_error(1.234e-7, 5e-9), with_error(1e9, 3e7), with_error(0.99999999763, 2.4e-9), with_error(0.1, 1e-17)
    ('1.234e-07 ± 5e-09', '1e+09 ± 3e+07', '1.000000 ± 2.4e-09', '0.1 ± 0')
    """
    if not (math.isfinite(value) and math.isfinite(error)):
        return f"{value:.4g} ± ?"
    if is_rounding(error, value):
        return f"{value:.4g} ± 0"
    places = 1 - math.floor(math.log10(error))  # of the error's second digit
    decimals = max(0, places)
    shown = f"{value:.{decimals}f} ± {error:.{decimals}f}"
    if decimals <= _DECIMALS and len(shown) <= _WIDEST:
        return shown
    if _FIXED[0] <= abs(value) < _FIXED[1]:
        kind, digits, fewest = "f", min(decimals, _DECIMALS), 0
    else:
        size = math.floor(math.log10(abs(value))) if value else -places
        kind, digits, fewest = "g", max(1, size + places + 1), 1
    while len(shown := f"{value:.{digits}{kind}} ± {error:.2g}") > _WIDEST and digits > fewest:
        digits -= 1
    return shown


def is_rounding(difference: float, value: float) -> bool:
    """Too small beside ``value``, or on its own, to be more than floating point.

    >>> is_rounding(3e-17, 0.2), is_rounding(1e-6, 0.2)
    (True, False)
    """
    return abs(difference) <= max(1e-9 * abs(value), 1e-12)


def say_z(z: float) -> str:
    """A deviation in words: far out, a score is no longer a number of anything.

    >>> say_z(4.21), say_z(1.3e9)
    ('4.2 standard errors', 'over 100 standard errors')
    """
    return "over 100 standard errors" if z > 100 else f"{z:.1f} standard errors"


def log_mean_exp(log_weight: Tensor) -> Tensor:
    """log of the mean weight over the last dimension."""
    return torch.logsumexp(log_weight, -1) - math.log(log_weight.shape[-1])


def mean(posterior: Posterior, what: str | Callable[[Any], Any], of: str | None = None) -> Estimate:
    """See :meth:`ppl_align.Posterior.mean`."""
    values = _values(posterior, what, of)
    weights = posterior.weights
    counts = values.isfinite() & (weights > 0)
    if bool((values.isinf() & (weights > 0)).any()):
        return Estimate(float((weights * values)[weights > 0].nansum()), math.nan)
    if not bool(counts.any()):
        return Estimate(math.nan, math.nan)
    w = torch.where(counts, weights, 0.0)
    f = torch.where(counts, values, 0.0)
    value = float((w * f).sum() / w.sum())
    if posterior.exact:
        return Estimate(value, 0.0)
    return Estimate(value, _delta(w, f, value) if posterior.independent else _jackknife(w, f))


def _delta(w: Tensor, f: Tensor, value: float) -> float:
    """Self-normalised importance sampling: se^2 = sum_i w_i^2 (f_i - mean)^2 / (sum_i w_i)^2 (Owen, eq. 9.9)."""
    effective = float(w.sum() ** 2 / (w**2).sum())
    if effective < MIN_EFFECTIVE_DRAWS:
        return math.nan
    return float(((w * (f - value)) ** 2).sum().sqrt() / w.sum())


def _jackknife(w: Tensor, f: Tensor) -> float:
    """Leave one replicate out: se^2 = (R-1)/R sum_r (mean_(-r) - their average)^2.

    Particles of one replicate share ancestors, so the replicate is the only independent unit."""
    numerator, denominator = (w * f).sum(-1), w.sum(-1)
    rest = denominator.sum() - denominator
    if len(denominator) < MIN_REPLICATES or bool((rest <= 1e-12).any()):
        return math.nan
    left_out = (numerator.sum() - numerator) / rest
    count = len(left_out)
    return float(((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum()).sqrt())


def functionals(posterior: Posterior) -> dict[str, Tensor]:
    """The named numbers of a posterior, each [R, N] float64: rewards, scalar latents, and what is built in.

    Built in: log_prior, log_likelihood, length. A site of the program that uses one of these names keeps it."""
    named = {name: r.double() for name, r in posterior.rewards.items()}
    shape = posterior.log_weight.shape
    named |= {name: z.double() for name, z in posterior.latents.items() if z.shape == shape}
    built_in = {"log_prior": log_prior(posterior), "log_likelihood": log_likelihood(posterior)}
    sites = posterior.completions
    for name, site in sites.items():
        lengths = site.lengths.double().reshape(*shape, -1).sum(-1)
        built_in["length" if len(sites) == 1 else f"length({name})"] = lengths
    return named | {name: value for name, value in built_in.items() if name not in named}


def log_prior(posterior: Posterior) -> Tensor:
    """log p0 of everything drawn, [R, N] nats."""
    return _total(posterior, posterior.log_prior)


def log_likelihood(posterior: Posterior) -> Tensor:
    """Sum of all factors (r / beta and observed sites), [R, N] nats."""
    return _total(posterior, posterior.factors)


def _total(posterior: Posterior, parts: Any) -> Tensor:
    return sum((part.double() for part in parts.values()), torch.zeros_like(posterior.log_weight))


def _values(posterior: Posterior, what: str | Callable[[Any], Any], of: str | None) -> Tensor:
    shape = posterior.log_weight.shape
    if isinstance(what, str):
        known = functionals(posterior)
        if what in known and of is None:
            return known[what]
        if of is not None:
            raise InputError(f"mean({what!r}, of={of!r}): of= goes with a function")
        hint = " (it is not one number per particle: give a function)" if what in posterior.particles else ""
        raise InputError(f"mean({what!r}): no such number{hint}; there are {', '.join(known)}")
    if of is not None and of not in posterior.particles:
        raise InputError(f"mean(of={of!r}): no such site; there are {', '.join(posterior.particles)}")
    values = what(posterior.particles) if of is None else _each(what, of, posterior.particles[of], shape)
    values = torch.as_tensor(values).double()
    if values.shape != shape:
        raise InputError(
            f"mean(f): f must return one number per particle, shape {list(shape)}, got {list(values.shape)}; "
            "for a function of one text write mean(f, of=site)"
        )
    return values


def _each(f: Callable[[Any], Any], name: str, site: Completion | Tensor, shape: torch.Size) -> Tensor:
    if isinstance(site, Completion) and site.shape != shape:
        raise InputError(
            f"mean(f, of={name!r}): each particle has {list(site.shape[len(shape) :])} texts there, one for each "
            f"element of a plate: say how to sum them up, mean(lambda particles: ...) of shape {list(shape)}"
        )
    elements = site.texts() if isinstance(site, Completion) else list(site.reshape(-1, *site.shape[len(shape) :]))
    return torch.tensor([float(f(element)) for element in elements], dtype=torch.float64).reshape(shape)
