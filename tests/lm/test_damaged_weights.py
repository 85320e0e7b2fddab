"""Weights that were cut off or lost a file: one line, with the folder and what to do about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from ppl_align import CausalLM
from ppl_align.cli import main
from ppl_align.core.errors import WeightsNotFound
from ppl_align.lm import acquire
from ppl_align.lm.names import SMOLLM2


@pytest.fixture(scope="module")
def whole(tiny_llama: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny_llama.model.save_pretrained(folder)
    words = Tokenizer(WordLevel({str(v): v for v in range(7)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut off": (lambda folder: cut(folder / "model.safetensors"), "cannot load the weights of {}"),
    "weights lost": (lambda folder: (folder / "model.safetensors").unlink(), "cannot load the weights of {}"),
    "tokenizer lost": (
        lambda folder: [path.unlink() for path in folder.glob("tokenizer*")] and None,
        "cannot load the tokenizer of {}",
    ),
    "tokenizer cut off": (lambda folder: cut(folder / "tokenizer.json"), "cannot load the tokenizer of {}"),
    "tokenizer of another kind": (
        lambda folder: (folder / "tokenizer.json").write_text("{}") and None,
        "cannot load the tokenizer of {}",
    ),
    "configuration lost": (lambda folder: (folder / "config.json").unlink(), "the folder {} holds no config.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line_with_the_folder_and_the_remedy(
    damage: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, (break_it, says) = tmp_path / SMOLLM2, DAMAGE[damage]
    shutil.copytree(whole, folder)
    break_it(folder)
    monkeypatch.setenv("PPL_ALIGN_CACHE", str(tmp_path))
    monkeypatch.setattr(acquire, "_LOADED", WeakValueDictionary())  # another test may hold the real one
    with pytest.raises(WeightsNotFound) as caught:
        CausalLM(SMOLLM2)
    assert str(caught.value).startswith(says.format(folder))
    assert str(caught.value).endswith(f"delete that folder, then run `ppl-align fetch {SMOLLM2}`")
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsNotFound, match=str(folder)):
        CausalLM(str(folder))
    if damage == "configuration lost":
        assert main(["fetch", SMOLLM2]) == 2
        assert "delete that folder" in capsys.readouterr().err


def test_an_option_that_the_network_does_not_take_is_no_damage(whole: Path) -> None:
    with pytest.raises(TypeError, match="bogus"):
        CausalLM(str(whole), bogus=1)
