"""Files that may not be read, and code that comes with them: one line that says what to do, and nothing is run."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from lm.test_tokenizers_word import llama, words

from ppl_align import CausalLM, Enumeration, MarkovLM, completion, reward
from ppl_align.core.errors import InputError, PplAlignError, WeightsNotFound
from ppl_align.lm import names
from ppl_align.rewards import load_classifier

ANSWER: Any = SimpleNamespace(headers={}, request=None)


def gated() -> Exception:
    """As the hub's client says it."""
    return GatedRepoError("401 Client Error. Cannot access gated repo for url.\nAccess is restricted.", response=ANSWER)


def gated_by_transformers() -> Exception:
    """As transformers says it."""
    return OSError(
        "You are trying to access a gated repo.\nMake sure to have access to it at https://hub/meta/private."
    )


def private() -> Exception:
    """As the hub's client says it of what one may not even know of."""
    return RepositoryNotFoundError("401 Client Error. Repository Not Found for url.", response=ANSWER)


LOADERS = ["AutoTokenizer", "AutoModelForCausalLM"]


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "hub_answers", lambda: True)


def refuse(monkeypatch: pytest.MonkeyPatch, loader: str, error: Exception) -> None:
    def read(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(getattr(transformers, loader), "from_pretrained", read)


@pytest.mark.parametrize("error", [gated, gated_by_transformers, private])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_gated_prior_says_how_to_log_in(error, loader, online, monkeypatch):
    if loader != "AutoTokenizer":  # the tokenizer is open, the weights are not
        monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: words())
    refuse(monkeypatch, loader, error())
    with pytest.raises(WeightsNotFound, match="log in with `hf auth login` or pass token=") as caught:
        CausalLM("meta/private")
    assert "'meta/private'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [gated, gated_by_transformers, private])
def test_a_gated_reward_model_says_how_to_log_in(error, online, monkeypatch):
    refuse(monkeypatch, "AutoModelForSequenceClassification", error())
    with pytest.raises(InputError, match="log in with `hf auth login` or pass token=") as caught:
        load_classifier("meta/private")
    assert "\n" not in str(caught.value)


def test_a_folder_is_never_gated(tmp_path, monkeypatch):
    """A file that cannot be read is no question of logging in."""
    llama().save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    refuse(monkeypatch, "AutoModelForCausalLM", OSError("error 403 in block 401"))
    with pytest.raises(WeightsNotFound, match="are its files whole") as caught:
        CausalLM(str(tmp_path))
    assert "log in" not in str(caught.value)


# -- code that comes with a network --------------------------------------------------------------------------------

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

Path({marker!r}).write_text("ran")


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnNetwork(LlamaForCausalLM):
    config_class = OwnConfig


class OwnJudge(LlamaForSequenceClassification):
    config_class = OwnConfig


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Written by whoever runs the code of :func:`folder`; transformers keeps its copies in a folder of ours."""
    modules = tmp_path / "modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever asks is told yes: nobody may ask
    return tmp_path / "marker"


def folder(at: Path, marker: Path, where: str) -> str:
    """A network of a kind that transformers does not know, with its code; or a known one whose tokenizer has code."""
    llama().save_pretrained(at)
    words().save_pretrained(at)
    (at / "own.py").write_text(CODE.format(marker=str(marker)))
    if where == "network":
        path, more = at / "config.json", {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnNetwork"}
        more["AutoModelForSequenceClassification"] = "own.OwnJudge"
        said = {**json.loads(path.read_text()), "model_type": "own", "auto_map": more}
    else:
        path, more = at / "tokenizer_config.json", {"AutoTokenizer": [None, "own.OwnTokenizer"]}
        said = {**json.loads(path.read_text()), "tokenizer_class": "OwnTokenizer", "auto_map": more}
    path.write_text(json.dumps(said))
    return str(at)


def not_run(make: Any, marker: Path) -> None:
    with suppress(PplAlignError):  # a tokenizer of a kind that transformers knows is read without its code
        make()
    assert not marker.exists()


@pytest.mark.parametrize("where", ["network", "tokenizer"])
def test_code_of_a_prior_runs_only_where_it_is_asked_for(where, tmp_path, marker):
    at = folder(tmp_path / "own", marker, where)
    not_run(lambda: CausalLM(at), marker)
    not_run(lambda: CausalLM(at, trust_remote_code=False), marker)
    lm = CausalLM(at, trust_remote_code=True)
    assert marker.read_text() == "ran"
    assert lm.vocab_size == 20


def test_a_network_of_an_unknown_kind_is_refused_in_one_line(tmp_path, marker):
    at = folder(tmp_path / "own", marker, "network")
    with pytest.raises(WeightsNotFound, match="brings its own Python code, which is not run unless you say so"):
        CausalLM(at)


def test_code_of_a_reward_model_is_not_run(tmp_path, marker):
    at = folder(tmp_path / "own", marker, "network")
    with pytest.raises(InputError, match="brings its own Python code"):
        load_classifier(at)
    lm = MarkovLM(torch.zeros(2, 2), tokens=["a", "b"])
    not_run(lambda: Enumeration().run(lambda: reward("r", at, completion("x", lm, "a", max_new_tokens=1))), marker)


def test_no_loader_is_left_that_trusts_by_default(tmp_path, monkeypatch):
    """Every call of transformers' loaders says so itself: what transformers does by default may change."""
    llama().save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    said: list[Any] = []
    for loader in (*LOADERS, "AutoConfig"):
        kind = getattr(transformers, loader)

        def read(*args: Any, inside: Any = kind.from_pretrained, **kwargs: Any) -> Any:
            said.append(kwargs.get("trust_remote_code"))
            return inside(*args, **kwargs)

        monkeypatch.setattr(kind, "from_pretrained", read)
    CausalLM(str(tmp_path))
    assert said
    assert not any(said)
