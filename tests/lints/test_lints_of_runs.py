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
from torch import Tensor
from toys.lint_programs import ENDING, WORDS, count_a, scaled, scored_by

from ppl_align import SMC, SVI, ImportanceSampling, MarkovLM, Posterior, compare, completion, reward
from ppl_align.cli import main
from ppl_align.core.cost import measure
from ppl_align.guides.program import ProgramGuide
from ppl_align.lints import PriorSample, lint_proposal
from ppl_align.posterior.truncation import cut_short
from ppl_align.testing.programs import PROGRAMS

# -- guides ----------------------------------------------------------------------------------------------------------

INITIAL = torch.tensor([3.0, 2.0, 1.0, 0.0]).double()
SKEWED = MarkovLM(torch.zeros(4, 4), INITIAL)


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


TABLE = torch.tensor([[0.3, -1.2, 0.8, 0.1], [1.1, 0.2, -0.4, 0.6], [-0.9, 0.5, 0.0, 1.4], [0.7, 0.9, -0.3, -1.0]])


def sharpened(scale: float = 1.0, more: float = 0.0) -> MarkovLM:
    """A Markov chain at temperature 1 / scale, its last token made likelier."""
    return MarkovLM(TABLE.double() * scale + torch.tensor([0.0, 0.0, 0.0, more]), INITIAL * scale)


CHAIN = sharpened()


def written(temperature: float = 1.0) -> None:
    x = completion("x", CHAIN, [], max_new_tokens=4, temperature=temperature)
    reward("r", lambda t: t.double().sum(-1), x.tokens, beta=4.0)


def sharp(rows: Any) -> Tensor:
    return (5 * rows.log_probs).log_softmax(-1)


def sharp_and_cut(rows: Any) -> Tensor:
    kept = 5 * rows.log_probs
    return torch.where(kept == kept.amin(-1, keepdim=True), -torch.inf, kept).log_softmax(-1)


@pytest.mark.parametrize(
    "proposal", [sharp, sharpened(5.0), ImportanceSampling(proposal=sharp), SMC(proposal=sharpened(5.0))]
)
@pytest.mark.parametrize(("declared", "found"), [(1.0, "0.2"), (0.7, "0.14")])
def test_a_temperature_hidden_in_a_proposal(proposal: Any, declared: float, found: str) -> None:
    (finding,) = lint_proposal(proposal, written, declared)
    assert f"its prior at temperature={found} (declared: {declared:g})" in finding.text
    assert f"completion(..., temperature={found})" in finding.remedy


def test_a_temperature_hidden_in_a_program_or_under_a_cut() -> None:
    (finding,) = lint_proposal(SVI(guide=lambda: pyro.sample("x", sharpened(5.0).completion([], 4))), written)
    assert "temperature=0.2" in finding.text
    cut, hot = lint_proposal(sharp_and_cut, written)
    assert "probability zero" in cut.text
    assert "temperature=0.2" in hot.text


@pytest.mark.parametrize(
    "proposal",
    [
        lambda rows: rows.log_probs,
        lambda rows: (rows.log_probs / 2).log_softmax(-1),  # flatter: the weights stay in bounds
        lambda rows: (rows.log_probs + torch.tensor([0.5, 0.0, 0.0, 0.0])).log_softmax(-1),
        lambda rows: (rows.log_probs * (1.0 + rows.prefixes.shape[1])).log_softmax(-1),  # no one temperature
        CHAIN,
        sharpened(1.5, more=0.7),
        MarkovLM(torch.zeros(5, 5)),
    ],
    ids=["prior", "flat", "tilted", "sharper and sharper", "lm", "another lm", "another vocabulary"],
)
def test_proposals_without_a_temperature(proposal: Any) -> None:
    assert [f.text for f in lint_proposal(proposal, written) if "temperature" in f.text] == []


def test_a_guide_that_training_has_sharpened_hides_nothing() -> None:
    """The target is p0^3, and so is the guide in the end."""

    def power() -> None:
        x = completion("x", SKEWED, [], max_new_tokens=1)
        reward("sharp", lambda t: 2 * INITIAL.log_softmax(-1)[t[..., 0]], x.tokens, lower=-20.0)

    guide = SVI(num_steps=300, num_particles=32, learning_rate=0.1).run(power).guide
    assert lint_proposal(guide, power) == []
    assert lint_proposal(lambda rows: (3 * rows.log_probs).log_softmax(-1), power)


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


def wants_an_end(limit: int, penalty: float, among: int = 0) -> None:
    """Texts end with probability 1/4 at each token; ``among``: how much is paid for each "a"."""
    x = completion("x", ENDING, "", max_new_tokens=limit)
    ended = (x.tokens == 3).any(-1)
    pyro.factor("whole", torch.where(ended, 0.0, -penalty) + among * (x.tokens == 0).sum(-1))


def brief(limit: int = 4) -> None:
    x = completion("x", ENDING, "", max_new_tokens=limit)
    reward("brief", lambda texts: [-2.0 * len(t) for t in texts], x)


def fixed() -> None:
    pyro.factor("f", 3.0 * (completion("x", WORDS, "", max_new_tokens=3).tokens == 0).sum(-1))


def cut(model: Callable[..., Any], *args: Any, engine: Any = ImportanceSampling(64, 2)) -> list[str]:
    run = engine.run(model, *args)
    with measure() as cost:
        lines = cut_short(run)
    assert cost.lm_forwards == cost.scored_tokens == cost.reward_calls == 0
    return lines


def test_a_finished_run_shows_what_was_cut_off_and_turned_down() -> None:
    (line,) = cut(wants_an_end, 3, math.inf)
    share = (3 / 4) ** 3
    assert abs(float(line.split("%")[0]) / 100 - share) < 4.5 * math.sqrt(share * (1 - share) / 128) + 0.01
    assert "'x' are cut off at max_new_tokens=3; 'whole' turns them down" in line
    (line,) = cut(wants_an_end, 3, 20.0)
    assert "20 nats less than any that ends" in line
    assert len(cut(wants_an_end, 3, 20.0, 1)) == 1
    assert ImportanceSampling(64, 2).run(wants_an_end, 3, 20.0).warnings == (line,)


@pytest.mark.parametrize(
    ("model", "args"),
    [
        (wants_an_end, (3, 0.0)),  # cut off, and nobody minds
        (wants_an_end, (3, 4.0, 3)),  # less than what is paid for words
        (wants_an_end, (20, math.inf)),  # hardly ever
        (brief, ()),  # the longest are worth least, whether they end or not
        (fixed, ()),
    ],
)
def test_runs_that_lose_nothing_to_the_limit(model: Callable[..., Any], args: tuple[Any, ...]) -> None:
    assert cut(model, *args) == []


def test_what_was_steered_says_nothing_about_the_prior() -> None:
    smc = SMC(32, 4, twist="prefix", every=1, ess_threshold=1.0)
    assert cut(wants_an_end, 3, 20.0, 3, engine=smc) == []


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
    sample = PriorSample(PROGRAMS["upstream_latent"], num_draws=12)
    back = torch.arange(11, -1, -1)
    assert torch.allclose(sample.ask(rows=back).log_potential, sample.particles.log_potential[back])
    assert sample.ask(rows=slice(0, 5)).size == 5
