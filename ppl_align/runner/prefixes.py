"""A program asked about unfinished text: what cannot read it is named, with the length at which it failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ppl_align.core.errors import PartialTextError, PredicateError, one_line
from ppl_align.particles.particles import Particles, Site
from ppl_align.program.compiled import Program

REMEDY = "let it read a beginning of any length (x.tokens[..., :n], x.lengths), or use twist=None, or a larger every="


def run_on_prefixes(program: Program, particles: Particles, site: Site) -> Particles:
    """Run the program on particles whose text of ``site`` is not finished yet.

    Raises ``PartialTextError`` for whatever the user's code raises there and does not raise when the same texts are
    padded to their full length; what fails on whole texts as well is raised as it is."""
    try:
        return program.run(particles, draw=False)
    except PredicateError:
        raise
    except Exception as error:
        tokens = particles.values[site.name]
        if _fails_on_whole_texts(program, particles, site, tokens, error):
            raise
        raise PartialTextError(_line(site, tokens.shape[-1], error)) from error


@contextmanager
def asked_about_prefixes(site: str | None, length: int, who: str) -> Iterator[None]:
    """Around a call of the user's own function of prefixes, of ``length`` tokens at ``site`` (where it is known)."""
    try:
        yield
    except PartialTextError:
        raise
    except Exception as error:
        at = f"after {length} token{'s'[: length != 1]}"
        texts = "unfinished texts" if site is None else f"unfinished texts of {site!r}"
        raise PartialTextError(f"{who} failed on {texts} {at}: {one_line(error)}") from error


def _fails_on_whole_texts(program: Program, particles: Particles, site: Site, tokens: Tensor, error: Exception) -> bool:
    missing = site.fn.max_new_tokens - tokens.shape[-1]
    if missing <= 0:
        return True
    rest = torch.full((*tokens.shape[:-1], missing), site.fn.pad_id, dtype=tokens.dtype, device=tokens.device)
    try:
        whole = {**particles.values, site.name: torch.cat([tokens, rest], -1)}
        program.run(particles.replace(values=whole), draw=False)
    except Exception as other:
        return _kind(other) is _kind(error)
    return False


def _kind(error: BaseException) -> type[BaseException]:
    """The class of what the user's code raised, whoever has explained it since."""
    return type(error if error.__cause__ is None else error.__cause__)


def _line(site: Site, length: int, error: Exception) -> str:
    at = f"after {length} of its {site.fn.max_new_tokens} tokens"
    return (
        f"the program cannot read {site.name!r} {at}, where SMC asks about unfinished text: {one_line(error)}; {REMEDY}"
    )


__all__ = ["asked_about_prefixes", "run_on_prefixes"]
