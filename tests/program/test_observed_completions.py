"""``completion(..., obs=)`` is one whole text, ``starts_with=`` the beginning of one: scored as such, or refused."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from toys.lms import SPELLED
from toys.oracles import canonical_sequences

from ppl_align import SMC, Enumeration, ImportanceSampling, completion, constrain, goes_on
from ppl_align.constraints import LengthLimit, Regex
from ppl_align.core.errors import InputError
from ppl_align.lm.completions import sequence_lengths
from ppl_align.testing.programs import EOS, FIXED

SETTINGS = {
    "eos": (EOS, {}),
    "no end": (FIXED, {}),
    "stop": (FIXED, {"stop": 1}),
    "two stops": (FIXED, {"stop": [1, 2]}),
    "eos and stop": (EOS, {"stop": 0}),
}


def log_z(lm, **options):
    def program():
        pyro.sample("z", dist.Bernoulli(0.5))
        completion("x", lm, [0], **options)

    return Enumeration().run(program).log_evidence.item()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_text_has_its_probability(name):
    """As it is drawn, padded; without padding; without EOS. All texts together are certain."""
    lm, stop = SETTINGS[name]
    source = lm.completion([0], 3, **stop)
    texts = canonical_sequences(3, 3, source.terminal, source.pad_id)
    lengths = sequence_lengths(texts, source.terminal).tolist()
    want = source.log_prob(texts)
    for text, length, log_p in zip(texts.tolist(), lengths, want.tolist(), strict=True):
        ids = text[:length]
        for way in (text, ids, ids[:-1] if ids[-1] == lm.eos_id else ids):
            assert log_z(lm, obs=way, max_new_tokens=3, **stop) == pytest.approx(log_p, abs=1e-6)
    assert float(want.exp().sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_length_of_an_observation_is_its_own_where_none_is_given(name):
    lm, stop = SETTINGS[name]
    ends = (2,) if lm.eos_id == 2 else ()
    for ids in ([1], [2, 2, 0], [1, 1]):
        if set(ids[:-1]) & set(lm.completion([0], 3, **stop).terminal):
            continue  # no text
        want = lm.completion([0], len(ids) + len(ends), **stop).log_prob(torch.tensor([*ids, *ends]))
        assert log_z(lm, obs=ids, **stop) == pytest.approx(float(want))


@pytest.mark.parametrize(
    ("lm", "options", "says"),
    [
        (FIXED, {"obs": [1, 2], "max_new_tokens": 4}, r"without EOS: give max_new_tokens=2, or starts_with="),
        (FIXED, {"obs": [0, 2], "max_new_tokens": 4, "stop": 1}, "without a stop token: give max_new_tokens=2"),
        (EOS, {"obs": [0, 2, 1]}, "goes on after token 2, which ends"),
        (EOS, {"obs": [0, 1, 0], "stop": 1}, "goes on after token 1, which ends"),
        (EOS, {"starts_with": [0, 2, 1]}, "goes on after token 2, which ends"),
        (EOS, {"obs": [7]}, "from 0 to 2"),
        (EOS, {"starts_with": [-1]}, "from 0 to 2"),
        (EOS, {"obs": 3}, "text or token ids"),
        (EOS, {"obs": ["0 1", "1"]}, "text or token ids"),
        (FIXED, {"obs": [], "max_new_tokens": 2}, "is empty"),
    ],
)
def test_what_is_no_text_is_refused(lm, options, says):
    with pytest.raises(InputError, match=says) as caught:
        log_z(lm, **options)
    assert "\n" not in str(caught.value)


def test_an_empty_text_is_one():
    assert log_z(EOS, obs="") == pytest.approx(float(EOS.log_table[0, 2]))


def test_a_beginning_sums_out_what_follows():
    source = FIXED.completion([0], 3, stop=1)
    texts = canonical_sequences(3, 3, source.terminal, source.pad_id)
    begins = (texts[:, :2] == torch.tensor([0, 2])).all(-1)
    want = source.log_prob(texts)[begins].logsumexp(0)
    for options in ({}, {"max_new_tokens": 3}):
        assert log_z(FIXED, starts_with=[0, 2], stop=1, **options) == pytest.approx(float(want))


@pytest.mark.parametrize("engine", [Enumeration(), ImportanceSampling(4), SMC(4)], ids=lambda engine: engine.name)
@pytest.mark.parametrize("given", [Regex("ab+a?"), LengthLimit(min_tokens=2)], ids=repr)
def test_a_constraint_on_a_beginning_is_refused(engine, given):
    """It would be judged as the whole text: "ab" of "ab+a?", whatever follows."""

    def program():
        pyro.sample("z", dist.Bernoulli(0.5))
        x = completion("x", SPELLED, [0], max_new_tokens=4, starts_with="ab")
        constrain("c", given, x.reshape(*x.shape))

    with pytest.raises(InputError, match=r"'c'.*'x' is known by its beginning.*obs=.*latent") as caught:
        engine.run(program)
    assert "\n" not in str(caught.value)


def test_nor_does_a_beginning_go_on():
    with pytest.raises(InputError, match=r"'more'.*'x' is known by its beginning"):
        goes_on("more", completion("x", SPELLED, [0], starts_with="ab"))


def test_what_to_do_instead_of_a_constraint_on_a_beginning():
    """The advice of that error, against enumeration: the text begins with "ab" and meets "ab+a?"."""

    def latent():
        x = completion("x", SPELLED, [0], max_new_tokens=4)
        constrain("begins", Regex("ab(.|\n)*"), x)
        constrain("c", Regex("ab+a?"), x)

    def whole(text):
        def program():
            pyro.sample("z", dist.Bernoulli(0.5))
            constrain("c", Regex("ab+a?"), completion("x", SPELLED, [0], max_new_tokens=4, obs=text))

        return Enumeration().run(program).log_evidence

    together = torch.stack([whole(text) for text in ("ab", "abb", "aba", "abba", "abbb")]).logsumexp(0).item()
    assert Enumeration().run(latent).log_evidence.item() == pytest.approx(together)
    assert math.isfinite(together)
