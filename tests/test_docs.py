"""The Python on the pages runs as it is printed, from top to bottom, in one session of a reader."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(code: str, names: dict[str, object]) -> None:
    """As a reader's own: this file's future import must not leak into it."""
    exec(compile(code, "page", "exec", dont_inherit=True), names)


def snippets(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.S | re.M)


@pytest.mark.filterwarnings("ignore")  # ArviZ's and matplotlib's own
def test_docs_testing(capsys):
    first, *rest = snippets("docs/testing.md")
    names: dict[str, object] = {"__name__": "reader"}
    exec(
        "\n".join(
            ["from ppl_align import ImportanceSampling as MyEngine", "my_reward = lambda texts: [0.0 for _ in texts]"]
        ),
        names,
    )
    run(first.replace("check_engine(MyEngine())", "check_engine(MyEngine(64), num_replicates=50)"), names)
    assert len(rest) >= 5
    for snippet in rest:
        run(snippet, names)
    assert "log Z between" in capsys.readouterr().out


def test_the_engine_in_contributing(capsys):
    (snippet,) = [s for s in snippets("CONTRIBUTING.md") if "class MyEngine" in s]
    quick = snippet.replace("check_engine(MyEngine())", "check_engine(MyEngine(64), num_replicates=50)")
    run(quick, {"__name__": "reader"})
    assert "FAILED" not in capsys.readouterr().out
