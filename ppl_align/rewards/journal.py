"""What rewards say besides their value: TRL's ``log_metric`` and ``log_extra``, collected.

>>> from ppl_align.rewards import evaluate
>>> def short(completions, log_metric, log_extra, **kwargs):
...     words = [len(text.split()) for text in completions]
...     log_metric("words", sum(words) / len(words))
...     log_extra("words", words)
...     return [-float(n) for n in words]
>>> with logged() as log:
...     r = evaluate("short", short, "three little words")
>>> log.metrics, log.table.to_dict("records")
({'words': 3.0}, [{'reward': 'short', 'completion': 'three little words', 'words': 3}])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ppl_align.core.errors import RewardError

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Log:
    """What rewards logged inside a :func:`logged` block.

    ``metrics``  name -> mean of what ``log_metric`` was given, each call weighted by the number of its texts
    ``table``    one row for each text a logging reward was asked about: reward, completion and the columns of
                 ``log_extra``. ``posterior.table()`` has the same texts, with weights

    A reward is asked about every distinct text once, unfinished text included where an engine asks about it: these
    are averages over questions, not over the prior or the posterior.
    """

    _metrics: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    _rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        return {k: sum(v * n for v, n in said) / sum(n for _, n in said) for k, said in self._metrics.items()}

    @property
    def table(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(self._rows, columns=None if self._rows else ["reward", "completion"])


_open: ContextVar[Log | None] = ContextVar("ppl_align_reward_log", default=None)


@contextmanager
def logged() -> Iterator[Log]:
    """Collect what rewards log inside the block: ``with logged() as log: engine.run(model)``."""
    token = _open.set(Log())
    try:
        log = _open.get()
        assert log is not None
        yield log
    finally:
        _open.reset(token)


def services(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """``log_metric`` and ``log_extra`` for one call of the reward ``name``, which is asked about these texts.

    What nobody listens to is dropped. Raises ``RewardError`` for a column that does not have one value per text."""
    log = _open.get()
    rows: list[dict[str, Any]] = [{"reward": name, "completion": text} for text in texts]
    entered = False

    def log_metric(metric: str, value: float) -> None:
        if log is not None:
            log._metrics.setdefault(metric, []).append((float(value), len(texts)))

    def log_extra(column: str, values: Sequence[Any]) -> None:
        nonlocal entered
        if len(values) != len(texts):
            raise RewardError(
                f"reward {name!r} logs {len(values)} values of {column!r} for {len(texts)} text(s): "
                "log_extra(column, values) takes one for each"
            )
        for row, value in zip(rows, values, strict=True):
            row[column] = value
        if log is not None and not entered:
            log._rows.extend(rows)
            entered = True

    return {"log_metric": log_metric, "log_extra": log_extra}
