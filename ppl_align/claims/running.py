"""Running studies one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ppl_align.claims import load
from ppl_align.claims.findings import Findings
from ppl_align.core.errors import PplAlignError
from ppl_align.core.progress import Report, reporting
from ppl_align.core.seeds import isolated


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


def run(names: Sequence[str], seed: int = 0, lm: Any = None, progress: bool | Report | None = None) -> Iterator[Result]:
    """Study the named claims in turn; with ``lm``, on that language model too. ``progress``: True for a bar.

    Same seed, same numbers; the global RNG and Pyro's parameter store are untouched. A study that raises is a failed
    claim, not the end of the run."""
    with reporting(progress, "claims") as tell:
        for done, name in enumerate(names):
            tell(done, len(names), name)
            yield _study(name, seed, lm)
            tell(done + 1, len(names), name)


def _study(name: str, seed: int, lm: Any) -> Result:
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
    return Result(name, found, time.perf_counter() - start, failure)
