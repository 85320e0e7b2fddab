"""``reward(..., label=)``: a classifier of several labels by its folder or itself, against its own logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toys.classifiers import tiny_classifier, tiny_tokenizer
from toys.lms import FLAT_ABC

from ppl_align import Enumeration, completion, reward, reward_funcs
from ppl_align.cli import main
from ppl_align.core.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> str:
    names = {0: "NEGATIVE", 1: "NEUTRAL", 2: "POSITIVE"}
    model = tiny_classifier(num_labels=3, id2label=names, label2id={v: k for k, v in names.items()})
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


def posterior_of(fn: Any, **settings: Any) -> Any:
    return Enumeration().run(lambda: reward("r", fn, completion("x", FLAT_ABC, "a", max_new_tokens=2), **settings))


@pytest.mark.parametrize("label", ["POSITIVE", "positive", 2])
def test_log_odds_and_probability_of_a_label(folder: str, label: str | int) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    found = posterior_of(folder, label=label)
    likely = posterior_of(folder, label=label, output="probability")
    for text, r, p in zip(
        found.completions["x"].texts(), found.rewards["r"].flatten(), likely.rewards["r"].flatten(), strict=True
    ):
        with torch.no_grad():
            ids = torch.tensor([tiny_tokenizer().encode("a" + text)])
            meant = model(input_ids=ids).logits.double().softmax(-1)[0, 2]
        assert float(r) == pytest.approx(float((meant / (1 - meant)).log()), abs=1e-5)
        assert float(p) == pytest.approx(float(meant), abs=1e-6)


@pytest.mark.parametrize("label", ["POSITIVE", "positive", "2"])
def test_a_label_behind_the_name(folder: str, label: str) -> None:
    """For whoever can only give a string: the command line, a list of TRL rewards."""
    meant = posterior_of(folder, label=2).rewards["r"]
    assert torch.equal(posterior_of(f"{folder}:{label}").rewards["r"], meant)
    run = Enumeration().run(lambda: reward_funcs(f"{folder}:{label}", completion("x", FLAT_ABC, "a", max_new_tokens=2)))
    assert torch.equal(next(iter(run.rewards.values())), meant)


def test_on_the_command_line(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "spec.py").write_text(
        "import torch\nfrom ppl_align import MarkovLM, completion, reward as likelihood\n"
        "lm = MarkovLM(torch.zeros(3, 3, dtype=torch.float64), tokens=['a', 'b', 'c'])\n"
        "def spec(reward='length'):\n    likelihood('r', reward, completion('x', lm, 'a', max_new_tokens=2))\n"
    )
    monkeypatch.chdir(tmp_path)
    command = ["run", "spec.py", "--engine", "exact", "--out", "out", "--force", "--set"]
    assert main([*command, f"reward={folder}:POSITIVE"]) == 0
    assert f"{posterior_of(folder, label=2).mean('r').value:.3g}" in capsys.readouterr().out
    for wrong, said in (("", "behind its name"), (":HAPPY", "has no label 'HAPPY'; its labels are 0: NEGATIVE")):
        assert main([*command, f"reward={folder}{wrong}"]) in (1, 2)
        err = capsys.readouterr().err
        assert said in " ".join(err.split())
        assert "Traceback" not in err


def test_the_model_itself(folder: str) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    by_model, by_folder = posterior_of(model, label="POSITIVE"), posterior_of(folder, label="POSITIVE")
    assert torch.allclose(by_model.rewards["r"], by_folder.rewards["r"], atol=1e-6)
    assert by_folder.cost.reward_calls == 9, "each text once, whichever execution names the folder"


@pytest.mark.parametrize(
    ("fn", "settings", "said"),
    [
        ("length", {"label": "x"}, "label= goes with a sequence-classification model"),
        (lambda texts: [0.0 for _ in texts], {"label": 1}, "label= goes with a sequence-classification model"),
        (None, {"label": "HAPPY"}, "has no label 'HAPPY'; its labels are 0: NEGATIVE"),
        (None, {"label": 2, "output": "odds"}, "output is 'log_odds' or 'probability', got 'odds'"),
        (None, {"output": "probability"}, "give label= too"),
        (None, {}, "name one of its labels, label="),
    ],
)
def test_what_does_not_fit_is_one_line(folder: str, fn: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        posterior_of(folder if fn is None else fn, **settings)
    assert len(str(error.value).splitlines()) == 1
