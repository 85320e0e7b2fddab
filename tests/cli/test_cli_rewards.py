"""Rewards on the command line: the list, names and paths, and the columns of --data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toys.commands import go_to

import ppl_align
from ppl_align.cli import main
from ppl_align.core.seeds import mix
from ppl_align.jobs.plan import Asked, make_plan
from ppl_align.rewards.registry import SHIPPED

COLUMNS = '''
def open_model(prompt, beta=1.0, **columns):
    """Takes what there is."""


def closed(prompt, topic="none"):
    """Takes one column."""
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mine = "def vowels(texts):\n    return [float(t.count('a')) for t in texts]\n"
    few = "from ppl_align import ImportanceSampling\nengine = ImportanceSampling(8, 1)\n"
    return go_to(tmp_path, monkeypatch, columns=COLUMNS, mine=mine, few=few)


def test_every_shipped_reward_has_one_line(here, capsys):
    assert main(["rewards"]) == 0
    out, err = capsys.readouterr()
    header, *lines = out.splitlines()
    assert header.split() == ["name", "range", "what"]
    assert [line.split()[0] for line in lines] == sorted(SHIPPED)
    assert "[-1, 1]" in next(line for line in lines if line.startswith("vader"))
    assert "Keywords(words)" in err


@pytest.mark.parametrize("name", ["mine.py:vowels", "mine:vowels", "readability"])
def test_any_reward_by_name_or_path(name, here, monkeypatch, capsys):
    letters = [chr(code) for code in range(32, 127)]
    lm = ppl_align.CallableLM(96, lambda prefix: torch.zeros(len(prefix), 96), 95, [*letters, "\n"])
    monkeypatch.setattr(ppl_align, "CausalLM", lambda _: lm)
    assert main(["run", "any_reward", "--set", f"reward={name}", "--engine", "few.py"]) == 0
    assert "E[reward]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "says"),
    [("keywords", "needs arguments: write"), ("mine:vowel", "did you mean 'vowels'"), ("nowhere:f", "no module")],
)
def test_a_reward_that_is_not_there_is_one_line(name, says, here, monkeypatch, capsys):
    lm = ppl_align.CallableLM(2, lambda prefix: torch.zeros(len(prefix), 2), tokens=["The weather today is", "."])
    monkeypatch.setattr(ppl_align, "CausalLM", lambda _: lm)
    assert main(["run", "any_reward", "--set", f"reward={name}", "--engine", "few.py"]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len([line for line in err.splitlines() if line.strip()]) == 1, err


def test_an_open_model_takes_every_column(here):
    chat = [{"role": "user", "content": "hi"}]
    rows = [{"prompt": chat, "topic": "sea", "n": 3}, {"prompt": "text", "topic": None}]
    (here / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plan = make_plan(Asked("columns.py:open_model", data=here / "data.jsonl", settings=["beta=0.5"], seed=7))
    assert plan.ignored == []
    assert [(target.args, target.kwargs, target.seed) for target in plan.targets()] == [
        ((chat, 0.5), {"topic": "sea", "n": 3}, mix(7, "row 0")),
        (("text", 0.5), {"topic": None, "n": None}, mix(7, "row 1")),  # as in a data set: what a row lacks is None
    ]
    plan = make_plan(Asked("columns.py:closed", data=here / "data.jsonl", seed=7))
    assert plan.ignored == ["n"]
    assert [target.args for target in plan.targets()] == [(chat, "sea"), ("text", None)]


def test_cells_of_a_csv_are_read_as_literals_where_nothing_says_otherwise(here):
    chat = [{"role": "user", "content": "hi"}]
    (here / "data.csv").write_text(f'prompt,topic,n\n12,sea,3\n"{chat}",,4\n')
    plan = make_plan(Asked("columns.py:open_model", data=here / "data.csv"))
    assert [target.args for target in plan.targets()] == [("12", 1.0), (chat, 1.0)], "numbers are text, lists messages"
    assert [target.kwargs for target in plan.targets()] == [{"topic": "sea", "n": 3}, {"topic": "", "n": 4}]
