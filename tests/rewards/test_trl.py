"""TRL's rewards, unchanged: the same values that GRPOTrainer computes, and the posterior that follows from them."""

from __future__ import annotations

import asyncio
import importlib
import re
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from toys.lms import ChatLM
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from ppl_align import Enumeration, completion, reward, reward_funcs
from ppl_align.core.errors import RewardError
from ppl_align.rewards import chat, logged
from ppl_align.testing import Oracle

pytest.importorskip("trl")
trl_rewards = importlib.import_module("trl.rewards")

WORDS = ["<think>", "</think>", r"\boxed{2}", "so ", "$"]
TABLE = torch.randn(5, 5, generator=torch.Generator().manual_seed(4))
EOS = 4


LM = ChatLM(5, lambda prefix: TABLE[prefix[:, -1]], eos_id=EOS, tokens=WORDS)
"""Words that TRL's rewards look for."""
TEXT = "so "
CHAT = [{"role": "system", "content": "so "}, {"role": "user", "content": "</think>"}]
BETA = 0.5


def trainer(funcs, tokenizers=None):
    """As much of a GRPOTrainer as its own reward code needs; metrics and extra columns land in its lists."""
    from accelerate import PartialState
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.utils import get_callable_name

    PartialState()  # a trainer's __init__ makes it, and TRL's logger refuses to speak without it
    self = GRPOTrainer.__new__(GRPOTrainer)
    self.accelerator = SimpleNamespace(device=torch.device("cpu"), is_main_process=True)
    self.args = SimpleNamespace(report_to=[], device=torch.device("cpu"), past_index=-1)
    self.state, self.environments = SimpleNamespace(global_step=0), None
    self.reward_funcs, self.reward_func_names = list(funcs), [get_callable_name(f) for f in funcs]
    self.reward_processing_classes = tokenizers or [None] * len(funcs)
    self.is_deepspeed_enabled, self.chat_template_kwargs = False, {}
    self._pending_extra_logs, self._pending_metrics = {}, {}
    self._log_completion_extra = lambda column, values: self._pending_extra_logs.setdefault(column, []).extend(values)
    self._log_metric = lambda name, value: self._pending_metrics.setdefault(name, []).append(value)
    return self


def trl_says(self, tokens, prompt, columns):
    """GRPOTrainer's own ``_calculate_rewards`` on these completions: ``[S, functions]``, NaN for None."""
    from trl.trainer.utils import shutdown_event_loop_in_daemon, start_event_loop_in_daemon

    ids = [row[: row.index(EOS) + 1] if EOS in row else row for row in tokens.tolist()]
    texts = [LM.decode(row) for row in ids]
    shown = texts if isinstance(prompt, str) else [[{"role": "assistant", "content": text}] for text in texts]
    inputs = [{"prompt": prompt, **columns}] * len(ids)
    thread, self.async_loop, ready = start_event_loop_in_daemon()
    ready.wait()
    try:
        return self._calculate_rewards(inputs, [prompt] * len(ids), shown, ids).double()
    finally:
        shutdown_event_loop_in_daemon(thread, self.async_loop)
        self.async_loop.close()  # theirs stays open until the process ends


def agree(funcs, prompt, columns, *, weights=None, tokenizers=None, names=None, length=3):
    """Values, evidence and posterior of a program with these rewards are what TRL's numbers imply."""
    self = trainer(funcs, tokenizers)

    def program():
        x = completion("x", LM, prompt, max_new_tokens=length)
        reward_funcs(funcs, x, BETA, weights, **columns)

    oracle = Oracle(program)
    says = trl_says(self, oracle.values["x"], prompt, columns)
    names = names or self.reward_func_names
    assert list(oracle.rewards) == names
    for i, name in enumerate(names):
        torch.testing.assert_close(oracle.rewards[name], says[:, i], rtol=1e-6, atol=1e-6, equal_nan=True)
    r = (says * torch.tensor(weights or [1.0] * len(funcs))).nansum(-1)
    log_evidence = (oracle.log_prior + r / BETA).logsumexp(0)
    assert float(Enumeration().run(program).log_evidence) == pytest.approx(float(log_evidence), abs=1e-6)
    return oracle, says, self


# every function of trl.rewards: how to get one, the data columns it reads, which prompts it is written for
# (those with a solution grade it through math-verify)
SHIPPED = {
    "think_format_reward": (lambda f: f, {}, "chat"),
    "get_repetition_penalty_reward": (lambda f: f(ngram_size=2, max_penalty=-1.0), {}, "both"),
    "get_soft_overlong_punishment": (lambda f: f(max_completion_len=3, soft_punish_cache=2), {}, "both"),
    "accuracy_reward": (lambda f: f, {"solution": r"\boxed{2}"}, "chat"),
    "reasoning_accuracy_reward": (lambda f: f, {"solution": r"\boxed{2}"}, "chat"),
    "get_cosine_scaled_reward": (lambda f: f(max_len=3), {"solution": r"\boxed{2}"}, "chat"),
}


def test_no_reward_of_trl_is_forgotten():
    assert set(SHIPPED) == {name for names in trl_rewards._import_structure.values() for name in names}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_reward_of_trl_is_worth_what_the_trainer_says(name):
    make, columns, written_for = SHIPPED[name]
    fn = make(getattr(trl_rewards, name))
    oracle, says, _ = agree([fn], CHAT, columns)
    assert says.unique().numel() > 1, "a reward that is the same everywhere tests nothing"
    if written_for == "both":
        agree([fn], TEXT, columns)

    def alone():
        x = completion("x", LM, TEXT if written_for == "both" else CHAT, max_new_tokens=3)
        reward("r", fn, x, beta=BETA, columns=columns)

    torch.testing.assert_close(Oracle(alone).rewards["r"], next(iter(oracle.rewards.values())), atol=1e-6, rtol=0)


def test_a_chat_reward_on_a_text_prompt_says_what_to_do():
    def program(wrap):
        x = completion("x", LM, TEXT, max_new_tokens=3)
        reward_funcs(wrap(trl_rewards.think_format_reward), x, BETA)

    with pytest.raises(RewardError, match=r"wrap it: ppl_align.rewards.chat\(fn\)"):
        Oracle(program, lambda fn: fn)
    assert Oracle(program, chat).rewards["think_format_reward"].unique().tolist() == [0.0, 1.0]


# -- the kinds of functions that TRL's documentation shows ---------------------------------------------------


def longer(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]


def longer_in_characters(completions, **kwargs):
    return [float(len(text)) for text in completions]


def two_tags(completions, **kwargs):
    contents = [messages[0]["content"] for messages in completions]
    return [1.0 if re.match(r"^<think>.*?</think>.*$", content) else 0.0 for content in contents]


def boxed(completions, ground_truth, **kwargs):
    found = [re.search(r"\\boxed\{(.*?)\}", text) for text in completions]
    return [float((m[1] if m else "") == truth) for m, truth in zip(found, ground_truth, strict=True)]


def maths(prompts, completions, task, **kwargs):
    assert all(prompt == TEXT for prompt in prompts)
    return [(1.0 if "2" in text else -1.0) if t == "math" else None for text, t in zip(completions, task, strict=True)]


def coding(prompts, completions, task, **kwargs):
    return [float("so" in text) if t == "code" else None for text, t in zip(completions, task, strict=True)]


async def remote(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return [1.0 if text else 0.0 for text in completions]


def logs(completions, ground_truth, log_extra=None, log_metric=None, **kwargs):
    found = [re.search(r"\\boxed\{(.*?)\}", text) for text in completions]
    r = [float(bool(m) and m[1] == truth) for m, truth in zip(found, ground_truth, strict=True)]
    if log_extra:
        log_extra("found", [m[1] if m else "[none]" for m in found])
    if log_metric:
        log_metric("accuracy", sum(r) / len(r))
    return r


@pytest.mark.parametrize(
    ("funcs", "prompt", "columns", "weights"),
    [
        ([longer], TEXT, {}, None),
        ([longer_in_characters], TEXT, {}, None),
        ([two_tags], CHAT, {}, None),
        ([boxed], TEXT, {"ground_truth": "2"}, None),
        ([maths, coding], TEXT, {"task": "math"}, None),
        ([maths, coding], TEXT, {"task": "code"}, [1.0, -2.0]),
        ([maths, coding], TEXT, {"task": "neither"}, None),
        ([remote, longer, remote], TEXT, {"id": 7}, [0.5, 0.25, 1.0]),
        ([logs, longer], TEXT, {"ground_truth": "2", "unread": [1, 2]}, [2.0, 0.1]),
    ],
)
@pytest.mark.filterwarnings("ignore:All reward functions returned None")
def test_rewards_as_the_documentation_writes_them(funcs, prompt, columns, weights):
    names = ["remote", "longer", "remote_2"] if remote in funcs else None
    agree(funcs, prompt, columns, weights=weights, names=names)


def test_a_task_that_nobody_rewards_keeps_the_prior():
    oracle, says, _ = agree([maths, coding], TEXT, {"task": "neither"})
    assert bool(says.isnan().all())
    assert bool(oracle.rewards["maths"].isnan().all()), "recorded, not invented"
    assert bool((oracle.log_potential == 0).all())


def test_what_a_reward_logs_is_what_the_trainer_gets():
    with logged() as log:
        oracle, _, self = agree([logs], TEXT, {"ground_truth": "2"})
    assert log.metrics["accuracy"] == pytest.approx(self._pending_metrics["accuracy"][0])
    per_text = dict(zip(log.table["completion"], log.table["found"], strict=True))
    assert [per_text[text] for text in oracle.completions["x"].texts()] == self._pending_extra_logs["found"]
    assert set(per_text.values()) == {"2", "[none]"}
    assert len(log.table) == 2 * len(per_text), "two runs, each asked about every text once"


# -- reward models -------------------------------------------------------------------------------------------


def classifier(template):
    words = {word: i for i, word in enumerate([*map(str.strip, WORDS), "[pad]", "user:", "[unk]"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    tokenizer.chat_template = template
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = LlamaConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=words["[pad]"],
            num_labels=1,
            initializer_range=0.6,
        )
        return LlamaForSequenceClassification(config).eval(), tokenizer


TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"


@pytest.mark.parametrize("prompt", [TEXT, CHAT], ids=["text", "chat"])
def test_a_reward_model_reads_what_the_trainer_lets_it_read(prompt, tmp_path):
    model, tokenizer = classifier(TEMPLATE)
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")

    def program():
        x = completion("x", LM, prompt, max_new_tokens=2)
        reward_funcs([str(tmp_path / "rm")], x, BETA)

    oracle = Oracle(program)
    says = trl_says(trainer([model], [tokenizer]), oracle.values["x"], prompt, {})[:, 0]
    torch.testing.assert_close(oracle.rewards["rm"], says, atol=1e-5, rtol=1e-5)
    assert says.unique().numel() > 3
