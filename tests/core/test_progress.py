"""``progress=True``: every engine that takes long says how far it is, where somebody can see it."""

import io
import sys
import types

import pytest
import torch
from rich.console import Console

import ppl_align.core.progress
from ppl_align import (
    SMC,
    SVI,
    ConditionalSMC,
    Enumeration,
    ImportanceSampling,
    MarkovLM,
    Rejection,
    TreePlanner,
    completion,
    environment,
    evidence_bounds,
    inspect,
    reward,
)
from ppl_align.claims.running import run as study
from ppl_align.core.errors import InputError

LM = MarkovLM(torch.zeros(3, 3), torch.zeros(3))


def program():
    x = completion("x", LM, [0], max_new_tokens=4)
    reward("twos", lambda t: (t == 2).sum(-1).double(), x.tokens, upper=4.0, lower=0.0)


def dialogue():
    x = completion("x", LM, [0], max_new_tokens=2)
    y = environment("y", LM.completion(x.tokens, 1))
    reward("twos", lambda texts: [float("2" in text) for text in texts], y)


def exact():
    return Enumeration().run(program)


LONG = {
    "exact": lambda p: Enumeration().run(program, progress=p),
    "importance": lambda p: ImportanceSampling(4, 2).run(program, progress=p),
    "smc": lambda p: SMC(4, 2, twist="prefix").run(program, progress=p),
    "svi": lambda p: SVI(3, 4, 2).run(program, progress=p),
    "rejection": lambda p: Rejection(4, 2).run(program, progress=p),
    "nested": lambda p: TreePlanner(2, 2, num_particles=2, num_replicates=1).run(dialogue, progress=p),
    "conditional": lambda p: ConditionalSMC(ImportanceSampling(4, 2), exact()).run(program, progress=p),
    "evidence_bounds": lambda p: evidence_bounds(SMC(4, 2), program, exact=exact(), progress=p),
    "inspect": lambda p: inspect(program, num_draws=32, progress=p),
    "claims": lambda p: list(study(["overoptimisation"], progress=p)),
}


@pytest.mark.parametrize("name", LONG)
def test_whatever_is_long_reports(name):
    told = []
    LONG[name](lambda *what: told.append(what))
    assert told
    assert all(isinstance(done, int) and isinstance(total, int) and isinstance(note, str) for done, total, note in told)
    assert told[-1][0] <= told[-1][1]
    if name != "exact":  # how many there will be is not known
        assert told[-1][0] == told[-1][1], "it comes to its end"


@pytest.mark.parametrize("name", LONG)
def test_off_terminal_nothing_is_shown(name, capsys):
    for progress in (True, False, None):
        LONG[name](progress)
        assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("name", LONG)
def test_on_a_terminal_there_is_a_bar(name, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(ppl_align.core.progress, "Console", lambda stderr: Console(file=screen, force_terminal=True))
    LONG[name](True)
    shown = screen.getvalue()
    assert "━" in shown
    assert "\x1b[2K" in shown, "it is gone at the end"


def test_a_bar_leaves_with_an_error(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(ppl_align.core.progress, "Console", lambda stderr: Console(file=screen, force_terminal=True))

    def broken():
        program()
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        ImportanceSampling(4, 1).run(broken, progress=True)
    assert screen.getvalue().endswith(("\x1b[?25h", "\x1b[2K", "\r")), "the cursor is back"
    ImportanceSampling(4, 1).run(program, progress=True)  # and the next one has a bar of its own


def test_numbers_do_not_depend_on_it():
    plain = SMC(8, 2, twist="prefix").run(program, seed=4)
    shown = SMC(8, 2, twist="prefix").run(program, seed=4, progress=True)
    assert torch.equal(plain.log_weight, shown.log_weight)


@pytest.mark.parametrize("wrong", [1, "yes", 0.5])
def test_what_is_neither_is_refused(wrong):
    for call in LONG.values():
        with pytest.raises(InputError, match="progress is True, or a function"):
            call(wrong)


class Display:
    """What IPython's display module offers, as far as it is used."""

    def __init__(self):
        self.pictures = []

    def HTML(self, text):
        return text

    def display(self, what, display_id):
        assert display_id is True
        self.pictures.append(what)
        return types.SimpleNamespace(update=self.pictures.append)


def test_in_a_notebook_the_bar_is_a_picture_that_changes(monkeypatch, capsys):
    shown = Display()
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    monkeypatch.setattr(ppl_align.core.progress, "_PAUSE", 0.0)
    for name, call in LONG.items():
        shown.pictures.clear()
        call(True)
        assert "━" in "".join(shown.pictures), name
        assert shown.pictures[-1] == "", "it is gone at the end"
        assert "<script" not in "".join(shown.pictures)
    assert capsys.readouterr() == ("", "")


def test_ipython_in_a_terminal_is_a_terminal(monkeypatch):
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert not ppl_align.core.progress._in_notebook()


def test_notes_are_not_markup(monkeypatch):
    """Names of sites are text, in a bar as well."""
    screen = Terminal()
    with ppl_align.core.progress.bar(
        Console(file=screen, force_terminal=True, width=120), "[red]label[/red]"
    ) as report:
        report(1, 2, "[bold]x[/bold]")
    assert "[red]label[/red]" in screen.getvalue()
    assert "[bold]x[/bold]" in screen.getvalue()
