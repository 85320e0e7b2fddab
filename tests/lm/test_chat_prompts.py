"""Chat messages as prompts: plain ones, and ones that differ from particle to particle."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_align import SMC, Enumeration, ImportanceSampling, choose, completion, reward
from ppl_align.core.errors import PromptError
from ppl_align.lm import CallableLM
from ppl_align.testing.oracle import Oracle
from ppl_align.testing.programs import long_memory

START, END, ASKED = 4, 5, []


class Chatty(CallableLM):
    """``[4] words [5]`` for every message; remembers every chat that it was asked for."""

    def chat_ids(self, messages):
        ASKED.append([(m["role"], m["content"]) for m in messages])
        assert all(isinstance(m["content"], str) for m in messages)
        return tuple(v for m in messages for v in (START, *self.encode(m["content"]), END))


def logits(prefix):
    known = long_memory(vocab=4).fn(prefix)
    return torch.cat([known, torch.full((len(prefix), 2), -torch.inf, dtype=known.dtype)], -1)


LM_ = Chatty(6, logits, eos_id=3)


def chat(system, user):
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def persona(weights=(0.3, 0.7)):
    who = pyro.sample("who", dist.Categorical(torch.tensor(weights)))
    x = completion("x", LM_, chat(choose(who, ["0", "1 1"]), "2"), max_new_tokens=2)
    reward("r", lambda t: 1.2 * (t == 1).sum(-1), x.tokens)


def test_a_latent_inside_a_message():
    found = Oracle(persona)
    total = []
    for ids, p in (((4, 0, 5, 4, 2, 5), 0.3), ((4, 1, 1, 5, 4, 2, 5), 0.7)):

        def alone(ids=ids):
            x = completion("x", LM_, list(ids), max_new_tokens=2)
            reward("r", lambda t: 1.2 * (t == 1).sum(-1), x.tokens)

        total.append(Enumeration().run(alone).log_evidence + torch.tensor(p, dtype=torch.float64).log())
    assert found.log_evidence == pytest.approx(float(torch.logsumexp(torch.stack(total), 0)), abs=1e-6)


def test_each_distinct_chat_goes_through_the_template_once():
    ASKED.clear()
    ImportanceSampling(200, 1).run(persona)
    assert ASKED.count([("system", "0"), ("user", "2")]) <= 3  # once for each run of the program


def test_an_earlier_completion_as_a_message():
    def turns():
        question = completion("question", LM_, [0], max_new_tokens=2)
        completion("answer", LM_, chat("1", question), max_new_tokens=1)

    posterior = SMC(8, 2, twist="prefix", ess_threshold=1.0).run(turns)
    questions, answers = posterior.particles["question"], posterior.particles["answer"]
    prompts = answers.source.prompt_rows(answers.shape)
    assert prompts == [(4, 1, 5, 4, *ids, 5) for ids in questions.ids]
    assert prompts[0].messages[1] == {"role": "user", "content": questions.texts()[0]}


def test_messages_in_a_plate_and_as_part_of_a_prompt():
    source = LM_.completion([chat("0", "1"), chat("1", "1")], 2)
    assert source.batch_shape == (2,)
    source = LM_.completion((chat("0", "1"), [2]), 2)
    assert source.prompts == ((4, 0, 5, 4, 1, 5, 2),)
    names = choose(torch.tensor([0, 1, 1]), ["0", "1"])
    source = LM_.completion((chat("0", names), [2]), 2)
    assert source.prompt_rows((3,)) == [(4, 0, 5, 4, v, 5, 2) for v in (0, 1, 1)]
    with pytest.raises(PromptError, match=r"messages of a chat have batch shapes \(3,\), \(2,\)"):
        LM_.completion(chat(names, choose(torch.tensor([0, 1]), ["0", "1"])), 2)
