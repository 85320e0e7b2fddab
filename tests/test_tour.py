"""docs/models.md: written from docs/tour, complete, and of the code that is there."""

from __future__ import annotations

import ast
import importlib.util
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
MODELS = sorted((ROOT / "models").glob("*.py"))


@pytest.fixture(scope="module")
def tour():
    """The generator, which is a script and no module of the package."""
    spec = importlib.util.spec_from_file_location("ppl_align_tour", ROOT / "docs" / "tour.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


# -- the page that is there ---------------------------------------------------------------------------------------


def test_the_page_is_what_the_stops_and_outputs_give(tour):
    assert PAGE.read_text(encoding="utf-8") == tour.Tour().render(), "run: python docs/tour.py --render"


def test_every_model_of_the_gallery_is_a_stop(tour):
    stops = tour.Tour()
    runs = stops.plan()
    missing = [path.name for path in MODELS if f"models/{path.name}" not in stops.sources]
    assert not missing, f"no {{{{ source(...) }}}} in docs/tour for {missing}"
    ran = {word for run in runs.values() for word in shlex.split(run.command)}
    assert {path.stem for path in MODELS} <= ran, "each with its output"


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_code_on_the_page_is_the_file(path):
    code = path.read_text(encoding="utf-8")
    function = next(n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef) and n.name == path.stem)
    page = PAGE.read_text(encoding="utf-8")
    shown = [code.strip(), ast.get_source_segment(code, function)]
    assert any(f"```python\n{text}\n```" in page for text in shown)


def test_no_output_is_stale_or_left_over(tour):
    stops = tour.Tour()
    assert stops.stale() == [], "run: make tour ONLY=stale"
    assert {path.stem for path in (stops.folder / "outputs").glob("*.txt")} == set(stops.runs)
    plots = {f"{name}-{plot}" for name, run in stops.runs.items() for plot in run.plots}
    assert {path.stem for path in (stops.folder / "figures").glob("*.png")} == plots


def test_outputs_are_made_for_80_columns():
    for path in (ROOT / "docs" / "tour" / "outputs").glob("*.txt"):
        wide = [line for line in path.read_text(encoding="utf-8").splitlines()[2:] if len(line) > 80]
        assert not wide, path.name


def test_what_is_said_of_the_frozen_and_the_refreshed_reward_is_what_the_study_found():
    text = (ROOT / "docs" / "tour" / "outputs" / "frozen_or_refreshed_study.txt").read_text(encoding="utf-8")
    tables = {}
    for block in text.split("\n\n")[1:]:
        title, header, *rows = block.strip().splitlines()
        names = [name for name in header.replace(" - ", "-").split() if name != "nats"]
        for row in rows:
            nats, *cells = row.replace(" ± ", "±").split()
            for name, cell in zip(names, cells, strict=True):
                tables[title.split(":")[0].split(",")[0], name, float(nats)] = tuple(map(float, cell.split("±")))
    gold = {arm: tables["Gold", arm, 3.0][0] for arm in ("refreshed", "prior", "frozen")}
    assert gold["refreshed"] > 2 * gold["frozen"]
    apart = {nats: tables["Gold", "refreshed-prior", nats] for nats in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)}
    early = [apart[nats] for nats in (1.0, 1.5, 2.0)]
    assert all(0.08 < mean < 0.13 and mean <= 2 * error for mean, error in early), "by .1, two standard errors at best"
    assert apart[3.0] == (0.25, 0.06)
    for arm in ("refreshed", "prior"):
        assert tables["Proxy", arm, 3.0][0] > tables["Gold", arm, 3.0][0] + 0.2, "it also believes more"


# -- the generator ------------------------------------------------------------------------------------------------

MODEL = '''"""A toy."""
import torch
from ppl_align import MarkovLM, completion, reward

lm = MarkovLM(torch.zeros(3, 3), torch.zeros(3), eos_id=2)


def toy(prompt: str = "", beta: float = 1.0):
    """Ones."""
    reward("ones", lambda t: (t == 1).sum(-1), completion("x", lm, [0], 4).tokens, beta=beta)
'''
RUN = "ppl-align run models/toy.py --engine exact"


@pytest.fixture
def small(tour, tmp_path, monkeypatch):
    """A tour of one toy, in a folder of its own."""
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "toy.py").write_text(MODEL)
    (tmp_path / "docs" / "tour").mkdir(parents=True)
    return tour.Tour(tmp_path / "docs" / "tour", tmp_path)


def write(small, text, name="10_toy.md"):
    (small.folder / name).write_text(text)


def test_a_tour_from_nothing(small, tour):
    write(small, "# Toys\n\nThe first.")
    write(small, f'## One\n\n{{{{ source("models/toy.py") }}}}\n\n{{{{ output("one", "{RUN}") }}}}', "20_one.md")
    with pytest.raises(tour.TourError, match="make tour ONLY=one"):
        small.render()
    assert small.stale() == ["one"]
    small.execute(small.plan()["one"])
    assert small.stale() == []
    page = small.render()
    assert page.startswith("# Toys\n\n*Written by")
    assert page.index("The first.") < page.index("## One")
    assert f"[models/toy.py](../models/toy.py):\n\n```python\n{MODEL.strip()}\n```" in page
    assert f"```\n$ {RUN}\n1 run of toy with markov-lm" in page
    assert "Estimates\nrun" in page
    assert "E[ones]" in page


def test_a_function_alone_and_paragraphs_alone(small, tour):
    write(
        small,
        f'# T\n{{{{ source("models/toy.py", "toy") }}}}\n{{{{ output("one", "{RUN}", ["Estimates", "=>"]) }}}}',
    )
    small.execute(small.plan()["one"])
    page = small.render()
    assert "```python\ndef toy(" in page
    assert "import torch" not in page
    assert f"$ {RUN}\n[...]\n\nEstimates" in page
    assert "Cost" not in page
    assert page.count("[...]") == 3
    with pytest.raises(tour.TourError, match="no paragraph that begins with 'Nonsense'"):
        small.output("one", RUN, ["Nonsense"])


def test_an_output_of_other_code_is_not_shown(small, tour):
    write(small, f'# T\n{{{{ output("one", "{RUN}") }}}}')
    small.execute(small.plan()["one"])
    path = small.root / "models" / "toy.py"
    path.write_text(MODEL.replace('"""Ones."""', '"""Said better."""  # and a comment'))
    assert small.stale() == []
    path.write_text(MODEL.replace("t == 1", "t == 0"))
    assert small.stale() == ["one"]
    with pytest.raises(tour.TourError, match="of another program"):
        small.render()
    path.write_text(MODEL)
    write(small, f'# T\n{{{{ output("one", "{RUN} --set beta=2") }}}}')
    with pytest.raises(tour.TourError, match="of another command"):
        small.render()


def test_figures_are_of_the_run_that_is_shown(small, tour):
    run = RUN.replace("exact", "importance")
    write(small, f'# T\n{{{{ output("one", "{run}") }}}}\n{{{{ figure("one", "reward_ones", "Ones") }}}}')
    small.execute(small.plan()["one"])
    assert "![Ones](tour/figures/one-reward_ones.png)" in small.render()
    assert (small.folder / "figures" / "one-reward_ones.png").is_file()
    write(small, f'# T\n{{{{ output("one", "{run}") }}}}\n{{{{ figure("one", "portrait", "Ones") }}}}')
    assert small.stale() == ["one"]
    with pytest.raises(tour.TourError, match="no plot 'portrait'; there are"):
        small.execute(small.plan()["one"])


@pytest.mark.parametrize(
    ("command", "line"),
    [("ppl-align run nowhere", "exit code 2"), ("rm -rf models", "begins with ppl-align or python, not .rm.")],
)
def test_a_command_that_fails_leaves_no_output(small, tour, command, line, capsys):
    write(small, f'# T\n{{{{ output("one", "{command}") }}}}')
    with pytest.raises(tour.TourError, match=line):
        small.execute(small.plan()["one"])
    assert small.stale() == ["one"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{{ figure("one", "evidence", "") }}', "no output of that name"),
        ('{{ source("models/toy.py", "other") }}', "no function 'other'"),
        ('{{ output("a", "ppl-align models") }}{{ output("a", "ppl-align engines") }}', "declared twice"),
    ],
)
def test_what_does_not_fit_together(small, tour, text, line):
    write(small, text)
    with pytest.raises(tour.TourError, match=line):
        small.plan()


def test_the_command_line_names_what_there_is(tour, capsys):
    assert tour.main(["--only", "nothing_of_that_name"]) == 1
    assert "no output is called 'nothing_of_that_name'; there are" in capsys.readouterr().err
