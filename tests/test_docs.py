"""The Python on the pages runs as it is printed, from top to bottom, in one session of a reader."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import ppl_align
from ppl_align.cli import main
from ppl_align.testing import PROGRAMS

ROOT = Path(__file__).parents[1]
FEW = '[PROGRAMS[name] for name in ("with_eos", "upstream_latent", "two_completions")]'
"""Of the programs that a reader's engine is held to; the library's own are held to all of them."""


def run(code: str, names: dict[str, object]) -> None:
    """As a reader's own: this file's future import must not leak into it."""
    exec(compile(code, "page", "exec", dont_inherit=True), names)


def snippets(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.S | re.M)


@pytest.mark.filterwarnings("ignore")  # ArviZ's and matplotlib's own
def test_docs_testing(capsys):
    first, *rest = snippets("docs/testing.md")
    names: dict[str, object] = {"__name__": "reader", "PROGRAMS": PROGRAMS}
    exec(
        "\n".join(
            ["from ppl_align import ImportanceSampling as MyEngine", "my_reward = lambda texts: [0.0 for _ in texts]"]
        ),
        names,
    )
    run(first.replace("check_engine(MyEngine())", f"check_engine(MyEngine(64), {FEW}, num_replicates=50)"), names)
    assert len(rest) >= 5
    for snippet in rest:
        run(snippet, names)
    assert "log Z between" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "call", "quick", "programs"),
    [
        ("class MyEngine", "MyEngine()", f"MyEngine(64), {FEW}, num_replicates=50", "3 of 3 programs checked, "),
        ("class MyChain", "MyChain()", f"MyChain(12), {FEW}, num_replicates=400", "3 of 3 programs checked, "),
        ("class StepReward", "[solve])", "[solve], num_replicates=100)", ""),
        ("class LinearValue", "ess_threshold=0.9)", f"ess_threshold=0.9), {FEW}, num_replicates=60", "3 of 3 programs"),
    ],
    ids=["engine", "chain", "process reward", "value head"],
)
def test_what_contributing_adds(what, call, quick, programs, capsys):
    (snippet,) = [s for s in snippets("CONTRIBUTING.md") if what in s]
    *_, last = snippet.split("\n\n\n")
    assert last.count(call) == 1
    run(snippet.replace(last, last.replace(call, quick)), {"__name__": "reader", "PROGRAMS": PROGRAMS})
    said = " ".join(capsys.readouterr().out.split())
    assert f": {programs}" in said
    assert " checks passed" in said
    assert "FAIL" not in said


def test_what_contributing_adds_can_fail(capsys):
    (snippet,) = [s for s in snippets("CONTRIBUTING.md") if "class MyEngine" in s]
    wrong = snippet.replace("drawn.log_weight.reshape", "(drawn.log_weight + 1).reshape")
    run(wrong.replace("MyEngine()", f"MyEngine(64), {FEW}, num_replicates=50"), {"PROGRAMS": PROGRAMS})
    assert "FAIL" in capsys.readouterr().out


# -- docs/from-trl.md: files, commands and a session, in the order of the page --------------------------------


class _Keyboard(ppl_align.CallableLM):
    """A language model that types at random, and a chat template: the page's programs without waiting for weights."""

    def __init__(self, name: str) -> None:
        keys = [chr(code) for code in range(32, 127)]
        flat = torch.randn(96, generator=torch.Generator().manual_seed(2))
        super().__init__(96, lambda prefix: flat.expand(len(prefix), 96), 95, [*keys, "\n"], name)

    def chat_ids(self, messages):
        return self.encode("".join(f"{message['role']}: {message['content']} " for message in messages))


@pytest.mark.filterwarnings("ignore")  # ArviZ's and matplotlib's own
def test_docs_from_trl(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ppl_align, "CausalLM", _Keyboard)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    page = (ROOT / "docs" / "from-trl.md").read_text(encoding="utf-8")
    commands = []
    try:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page, re.S | re.M):
            named = re.match(r"# (\w+\.py)\n", block)
            if language == "python" and named:
                (tmp_path / named[1]).write_text(block)
            elif language == "python":
                run(block, {"__name__": "reader"})
            elif language == "json":
                (tmp_path / "data.jsonl").write_text(block)
            elif block.startswith("ppl-align "):
                commands.append(shlex.split(block))
                assert main(commands[-1][1:]) == 0, block
    finally:
        for name in ("my_rewards", "hobby"):
            sys.modules.pop(name, None)
    assert [command[1] for command in commands] == ["check", "run"]
    said = capsys.readouterr()
    assert re.search(r"^3 of 3 rows: .*\d unconfirmed", said.out, re.M), "64 draws of this prior are few"
    assert re.search(r"^[012]\s+Name a", said.out, re.M), "a row is called by what its chat says"
    assert "ignored" not in said.err, "every column of the data reaches the model"
    assert len(list((tmp_path / "runs" / "hobby").glob("rows/*/smc.nc"))) == 3
    assert len((tmp_path / "runs" / "hobby" / "completions.csv").read_text().splitlines()) == 4


def test_the_example_of_smc(capsys):
    (snippet,) = [s for s in snippets("docs/engines.md") if "rare_word" in s]
    names: dict[str, object] = {"__name__": "reader"}
    run(snippet, names)
    spread = {name: float(names[name].log_evidence.std()) for name in ("plain", "steered")}  # type: ignore[attr-defined]
    assert {name: round(value, 2) for name, value in spread.items()} == {"plain": 1.26, "steered": 0.25}
    assert "Sampling diagnostics" in capsys.readouterr().out


def test_the_example_of_kernels(capsys):
    (snippet,) = [s for s in snippets("docs/engines.md") if "many_e" in s]
    names: dict[str, object] = {"__name__": "reader"}
    run(snippet, names)
    said = capsys.readouterr().out
    assert "Sampling diagnostics" in said
    assert "R-hat" in said
    means = [float(names[name].rewards["e"].mean()) for name in ("tempered", "chains")]  # type: ignore[attr-defined]
    assert abs(means[0] - means[1]) < 0.1, "two engines, one posterior"


def test_the_glossary_has_every_column():
    from ppl_align.diagnostics.columns import BLOCKS, COLUMNS

    page = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    for column in COLUMNS:
        assert f"`{column.header.replace('||', '‖')}`" in page, column.header
    for block in BLOCKS.values():
        assert f"## {block.split(' (')[0]}\n" in page
