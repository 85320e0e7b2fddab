"""Lints of guides and proposals, and what is said at run time and on the command line."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from lint_programs import count_a, scaled, scored_by
from torch import Tensor

from ppl_align import SVI, ImportanceSampling, MarkovLM, Posterior, compare, completion, reward
from ppl_align.cli import main
from ppl_align.guides.program import ProgramGuide
from ppl_align.lints import Glance, lint_proposal
from ppl_align.testing.programs import PROGRAMS

# -- guides ----------------------------------------------------------------------------------------------------------

SKEWED = MarkovLM(torch.zeros(4, 4), torch.tensor([3.0, 2.0, 1.0, 0.0]).double())


def skewed(top_p: float | None = None) -> None:
    x = completion("x", SKEWED, [], max_new_tokens=2, top_p=top_p)
    reward("r", lambda t: t.double().sum(-1), x.tokens)


def guide(**sampling: Any) -> Callable[..., None]:
    def q(*args: Any) -> None:
        pyro.sample("x", SKEWED.completion([], 2, **sampling))

    return q


def test_top_p_hidden_in_a_guide() -> None:
    (finding,) = lint_proposal(SVI(guide=guide(top_p=0.8)), skewed, num_draws=400)
    assert "top_p=0.8" in finding.text
    initial = torch.tensor([3.0, 2.0, 1.0, 0.0]).softmax(0)
    kept = float(initial[:2].sum())  # 0.64 + 0.24 reaches 0.8; the second token is uniform: all four are needed
    share = float(finding.text.split("written ")[1].split("%")[0]) / 100
    assert abs(share - (1 - kept)) < 4.5 * math.sqrt(kept * (1 - kept) / 400) + 0.01
    assert lint_proposal(SVI(guide=guide()), skewed) == []
    assert lint_proposal(SVI(guide=guide(top_p=0.8)), skewed, 0.8) == []  # the model declares it too
    (hot,) = lint_proposal(ProgramGuide(guide(temperature=0.5)), skewed)
    assert "temperature=0.5" in hot.text


def cut_to_two(rows: Any) -> Tensor:
    kept = rows.log_probs.clone()
    kept[:, 2:] = -torch.inf
    return kept.log_softmax(-1)


def test_a_proposal_that_cannot_write_everything() -> None:
    (finding,) = lint_proposal(ImportanceSampling(proposal=cut_to_two), skewed)
    assert "probability zero" in finding.text
    assert lint_proposal(ImportanceSampling(proposal=lambda rows: rows.log_probs), skewed) == []
    assert lint_proposal(ImportanceSampling(), skewed) == []
    narrow = MarkovLM(torch.zeros(4, 4), torch.tensor([0.0, 0.0, -torch.inf, -torch.inf]).double())
    assert lint_proposal(narrow, skewed)
    trained = SVI(num_steps=3).run(skewed).guide
    assert lint_proposal(trained, skewed) == []


# -- at run time -----------------------------------------------------------------------------------------------------


def test_runs_say_what_they_noticed(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level(logging.WARNING, logger="ppl_align"):
        run = ImportanceSampling(16).run(scored_by, lambda texts: [1.0] * len(texts))
    assert len(run.warnings) == 1
    assert "on every draw" in run.warnings[0]
    assert sum("on every draw" in record.message for record in caplog.records) == 1
    assert "on every draw" in run.summary()
    assert Posterior.load(run.save(tmp_path / "run.nc")).warnings == run.warnings
    assert any("on every draw" in reason for reason in compare([run]).advice.reasons)
    assert ImportanceSampling(16).run(scored_by, count_a).warnings == ()
    assert "lower beta" in ImportanceSampling(64).run(scaled, 50.0).warnings[0]


def test_runs_notice_a_guide_that_is_not_the_models() -> None:
    run = SVI(num_steps=2, guide=guide(top_p=0.8)).run(skewed)
    assert "top_p=0.8" in run.warnings[0]
    assert "top_p=0.8" in ImportanceSampling(proposal=run.guide).run(skewed).warnings[0]
    assert SVI(num_steps=2, guide=guide()).run(skewed).warnings == ()


# -- the command line ------------------------------------------------------------------------------------------------

MODEL = """
import torch
from ppl_align import SVI, CallableLM, completion, reward
import pyro

_lm = CallableLM(4, lambda prefix: torch.zeros(len(prefix), 4), eos_id=3)


def toy(beta: float = 1.0):
    x = completion("x", _lm, "0", max_new_tokens=6)
    reward("ones", lambda tokens: (tokens == 1).double().sum(-1), x.tokens, beta=beta)
    return x
"""
ENGINE = """
import pyro
from ppl_align import SVI
from toy import _lm


def guide(beta: float = 1.0):
    pyro.sample("x", _lm.completion("0", 6, top_k=2))


engine = SVI(guide=guide)
"""


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "toy.py").write_text(MODEL)
    (tmp_path / "cut.py").write_text(ENGINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["check", "toy.py"]) == 0
    out, err = capsys.readouterr()
    assert "warning" not in out + err
    assert main(["check", "toy.py", "--set", "beta=100"]) == 0
    out, err = capsys.readouterr()
    assert "lower beta" in out
    assert "with 1 warning" in err
    assert main(["check", "toy.py", "--engine", "cut.py"]) == 0
    assert "top_k=2" in capsys.readouterr().out


def test_a_glance_can_be_asked_again() -> None:
    glance = Glance(PROGRAMS["upstream_latent"], num_draws=12)
    back = torch.arange(11, -1, -1)
    assert torch.allclose(glance.ask(rows=back).log_potential, glance.execution.log_potential[back])
    assert glance.ask(rows=slice(0, 5)).num_particles == 5
