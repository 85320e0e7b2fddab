"""What torch and Pyro say of a user's program when it fails, as one line that names the site and what to change."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ppl_align.core.errors import ModelError, PplAlignError, RunError
from ppl_align.program.plates import PARTICLES

ROOM = "outside of a plate values are [particles, 1], inside [particles, size]: index from the right"
STATIC = (
    "Every particle must run the same sites: the program asks for the truth of a batch, or branches on a drawn value. "
    "Write `torch.where(condition, a, b)`, `choose(index, options)` or `.map(f)` instead of `if`"
)
_NO_NUMBER = "a log-factor is a number below +inf (-inf rejects)"


def no_number(name: str, what: str) -> RunError:
    """The error for a log-factor that is ``what``: NaN, +inf, complex."""
    return RunError(f"site {name!r} is {what} for some draws: {_NO_NUMBER}")


def explained(error: Exception, model: Any, nesting: int = 0) -> PplAlignError | None:
    """The line for an error that torch or Pyro raised inside of ``model``; None for one that is the user's own.

    ``nesting``: plates of the program inside one another, as far as they are known."""
    said = str(error)
    if isinstance(error, RuntimeError):
        if "Boolean value of Tensor" in said:
            return ModelError(STATIC)
        if "size of tensor" in said:
            room = ROOM if nesting else "the first dimension is that of the particles: index from the right"
            return ModelError(f"shapes do not fit in {_where(error, model)}: {said.splitlines()[0]}; {room}")
        if "probability tensor contains" in said:
            return RunError(f"{_where(error, model)} draws from probabilities that are NaN, infinite or negative")
    if isinstance(error, ValueError):
        return _plate_mismatch(said) or _guide_mismatch(said) or _invalid(error, said, model)
    return None


@contextmanager
def explaining(model: Any, nesting: int = 0) -> Iterator[None]:
    """Around an execution of the program that does not go through :class:`~ppl_align.program.Program`."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        line = explained(error, model, nesting)
        if line is None:
            raise
        raise line from error


def _plate_mismatch(said: str) -> ModelError | None:
    """Pyro's "Shape mismatch inside plate('pair') at site x dim -1, 2 vs 7"."""
    found = re.search(r"Shape mismatch inside plate\('(.*)'\) at site (\S+) dim (-\d+), (\d+) vs (\d+)", said)
    if found is None:
        return None
    plate, site, dim, size, got = found.groups()
    if plate == PARTICLES:
        return ModelError(
            f"site {site!r} is a batch of {got}, but no plate says so: write pyro.plate(..., {got}) around it"
        )
    return ModelError(f"site {site!r} has {got} elements in dimension {dim}, its plate {plate!r} has {size}: {ROOM}")


def _guide_mismatch(said: str) -> ModelError | None:
    """Pyro's "Model and guide shapes disagree at site 'x': torch.Size([8, 4]) vs torch.Size([8, 3])"."""
    found = re.search(r"Model and guide shapes disagree at site '(.*)': torch.Size\((.*)\) vs torch.Size\((.*)\)", said)
    if found is None:
        return None
    site, own, guides = found.groups()
    return ModelError(
        f"site {site!r} has shape {own} in the program and {guides} in its guide: shapes and max_new_tokens must be "
        "the same there, and at each execution"
    )


def _invalid(error: ValueError, said: str, model: Any) -> PplAlignError | None:
    """What distributions say when they validate their parameters and values."""
    site, where = _site(error), _where(error, model)
    found = re.search(r"Expected parameter (\w+) .* of distribution (\w+)\(.*to satisfy the constraint (.*), but", said)
    if found is not None:
        parameter, family, wanted = found.groups()
        what = "NaN" if "nan" in said else "out of range"
        if family == "Unit" and site is not None:
            return no_number(site, what)
        return RunError(f"{where}: {parameter} of {family} is {what} for some draws, it must be {wanted}")
    found = re.search(r"Expected value argument .* within the support \((.*)\) of the distribution (\w+)\(", said)
    if found is not None:
        wanted, family = found.groups()
        return ModelError(f"{where}: a value is not in the support of {family}, {wanted}")
    found = re.search(
        r"not broadcastable with batch_shape\+event_shape: torch.Size\((.*)\) vs torch.Size\((.*)\)", said
    )
    if found is not None:
        value, own = found.groups()
        return ModelError(
            f"{where}: its value has shape {value}, its distribution {own}, the first dimension of which is that of "
            "the particles; inside of a plate a value has one element for each of the plate's, read by its index"
        )
    return None


def _site(error: BaseException) -> str | None:
    """The name of the site that Pyro was at."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = frame.f_locals.get("name")
        if frame.f_globals.get("__name__") == "pyro.primitives" and frame.f_code.co_name in ("sample", "factor"):
            return name if isinstance(name, str) else None
    return None


def _where(error: BaseException, model: Any) -> str:
    """The site, or the line of the model's file."""
    site = _site(error)
    if site is not None:
        return f"site {site!r}"
    source = getattr(getattr(model, "__code__", None), "co_filename", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == source]
    return f"line {frames[-1].lineno} ({frames[-1].line})" if frames else "an operation"
