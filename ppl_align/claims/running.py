"""Running studies one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ppl_align.claims import load
from ppl_align.claims.findings import Findings
from ppl_align.engines.base import isolated
from ppl_align.errors import PplAlignError


@dataclass(frozen=True)
class Result:
    """What became of one claim: ``failure`` is the line of an error that ended its study, else empty."""

    name: str
    found: Findings
    seconds: float
    failure: str = ""

    @property
    def passed(self) -> bool:
        return self.found.passed and not self.failure


def run(names: Sequence[str], seed: int = 0, lm: Any = None) -> Iterator[Result]:
    """Study the named claims in turn; with ``lm``, on that language model too.

    Same seed, same numbers; the global RNG and Pyro's parameter store are untouched. A study that raises is a failed
    claim, not the end of the run."""
    for name in names:
        module = load(name)
        found, failure, start = Findings(seed), "", time.perf_counter()
        try:
            with isolated(seed):
                module.study(found)
                if lm is not None and hasattr(module, "study_lm"):
                    module.study_lm(found, lm)
        except PplAlignError as error:
            failure = str(error)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        yield Result(name, found, time.perf_counter() - start, failure)
