"""The real language model: numbers that only mean something at its size."""

from __future__ import annotations

import math

import pytest
import torch

from ppl_align import SMC, CausalLM, Enumeration, ImportanceSampling, completion, reward
from ppl_align.core.errors import PromptError, WeightsNotFound
from ppl_align.engines import rerun as steadiness
from ppl_align.lm import kv_cache
from ppl_align.lm.agreement import TOLERANCE, difference
from ppl_align.lm.boundaries import ends_sentence, starts_word
from ppl_align.lm.decoding import Population
from ppl_align.testing.held import alone

pytestmark = pytest.mark.lm


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        pytest.param({"temperature": 0.8}, marks=pytest.mark.statistical),
        {"top_k": 50, "temperature": 0.8},
        pytest.param({"top_p": 0.9}, marks=pytest.mark.statistical),
        pytest.param({"stop": "."}, marks=pytest.mark.statistical),
    ],
    ids=str,
)
def test_rescoring_a_draw_returns_its_own_log_probability(smollm2: CausalLM, kwargs):
    """To 1e-5 nats per token; draws that met a near-tie at a top-k or top-p boundary may differ and are left out."""
    source = smollm2.completion("The movie was", 12, **kwargs).expand([8])
    with torch.no_grad():
        population = Population(source).run()
        rescored = source.log_prob(population.tokens).double()
    lengths = 1 + (~source.ended_before(population.tokens)).sum(-1)
    error = (rescored - population.log_p).abs() / lengths
    boundary = ("top_k" in kwargs or "top_p" in kwargs) & (error > 1e-5)
    assert int(boundary.sum()) <= 1
    assert float(error[~boundary].max()) < 1e-5


def test_prompts_of_different_lengths_equal_separate_runs(smollm2: CausalLM):
    prompts = ["Hi", "The movie was", "I have read this long book twice, and what I liked best is"]
    source = smollm2.completion(prompts, 8)
    with torch.no_grad():
        population = Population(source).run()
        alone = [smollm2.completion(p, 8).log_prob(population.tokens[i]).item() for i, p in enumerate(prompts)]
    assert population.log_p.tolist() == pytest.approx(alone, abs=8e-5)


def test_one_new_token_is_enumerable(smollm2: CausalLM):
    """49,152 sequences from one forward: a real-LM oracle for the other engines."""
    good = torch.tensor(["good" in text or "great" in text for text in smollm2.vocabulary])

    def program():
        x = completion("x", smollm2, "The movie was really", max_new_tokens=1)
        reward("good", lambda t: good[t[..., 0]].double(), x.tokens, beta=0.4)

    exact = Enumeration().run(program)
    assert exact.cost.lm_forwards == 1
    assert exact.cost.lm_tokens == 0
    assert exact.log_weight.shape == (1, 49_152)
    sampled = ImportanceSampling(512, 20).run(program, seed=0)
    ratio = (sampled.log_evidence - exact.log_evidence).exp()
    assert abs(float(ratio.mean() - 1)) < 4.5 * float(ratio.std()) / math.sqrt(20)


def test_infilling_scores_the_ending_and_the_bos_question(smollm2: CausalLM):
    def program():
        middle = completion("middle", smollm2, "She opened the", max_new_tokens=3)
        completion("ending", smollm2, ("She opened the", middle), starts_with=" and went inside.")

    posterior = ImportanceSampling(16, 2).run(program, seed=0)
    ending = smollm2.encode(" and went inside.")
    again = steadiness.PARTICLES * steadiness.TIMES  # a few are executed again
    assert posterior.cost.scored_tokens == (32 + again) * len(ending)
    text = posterior.particles["middle"].ids[0]
    source = smollm2.completion((smollm2.encode("She opened the") + text), len(ending))
    want = source.log_prob(torch.tensor(ending)).item()
    assert posterior.factors["ending"][0, 0].item() == pytest.approx(want, abs=1e-3)
    with pytest.raises(PromptError, match="no BOS"):
        smollm2.completion("", 3)


def test_particles_share_rows_and_the_reward_sees_distinct_texts(smollm2: CausalLM):
    asked: list[str] = []

    def counts_e(texts):
        asked.extend(texts)
        return [text.count("e") / 4 for text in texts]

    def program():
        x = completion("x", smollm2, "The movie was", max_new_tokens=10)
        reward("e", counts_e, x)

    posterior = SMC(16, 2, twist="prefix", every=1, ess_threshold=0.9).run(program, seed=0)
    assert bool(posterior.history["resampled"].any())
    assert posterior.cost.lm_forwards == 10
    assert posterior.cost.lm_tokens < 9 * 32
    assert posterior.cost.reward_calls == len(asked) == len(set(asked))


def test_chat_messages_go_through_the_template(smollm2: CausalLM):
    source = smollm2.completion([{"role": "user", "content": "Say hello."}], 4)
    text = smollm2.tokenizer.decode(list(source.prompts[0]))
    assert text.endswith("<|im_start|>assistant\n")
    assert "Say hello." in text


def test_boundaries_of_words_and_sentences(smollm2: CausalLM):
    assert [starts_word(t) for t in (" the", "ing", "\n", ",")] == [True, False, True, False]
    assert [ends_sentence(t) for t in (".", '."', "!", "a.b", "\n\n", " Mr")] == [True, True, True, False, True, False]


def test_weights_that_are_not_there():
    with pytest.raises(WeightsNotFound, match="neither a local folder nor"):
        CausalLM("nobody/no-such-model")
    with pytest.raises(WeightsNotFound, match="no such folder"):
        CausalLM("./no/such/folder")
    with pytest.raises(WeightsNotFound, match="no such weights file"):
        CausalLM("missing.gguf")


def test_two_lms_of_one_name_share_their_weights(smollm2: CausalLM):
    assert CausalLM("smollm2-135m").model is smollm2.model


@torch.no_grad()
def test_a_preamble_is_held_once_and_a_text_crosses_blocks(smollm2: CausalLM, monkeypatch: pytest.MonkeyPatch):
    """As forwards without a cache say, of the tokens that are likely."""
    monkeypatch.setattr(kv_cache, "SHORT", 10)
    preamble = smollm2.encode("Each of these reviews is about a film, and says in one sentence what came of it. " * 5)
    rows = [(*preamble, *smollm2.encode(end)) for end in ("The movie was", " It", " My wife and I saw it twice, and")]
    decoder = smollm2.start(rows)
    assert decoder.shared >= len(preamble) - 1
    parents = [2, 0, 1, 0, 0]
    for step in range(12):
        tokens = decoder.log_probs.argmax(-1)[parents] if step else decoder.log_probs.topk(5).indices[parents, range(5)]
        decoder = decoder.extend(torch.tensor(parents), tokens)
        rows = [(*rows[parent], token) for parent, token in zip(parents, tokens.tolist(), strict=True)]
        parents = [0, 1, 1, 4, 3] if step == 9 else [0, 1, 2, 3, 4]
    # 6.0e-5 nats here; 5.2e-5 where every row holds all of it, which is what float32 leaves of this network
    assert difference(decoder.log_probs, alone(smollm2.model, rows).float()) < TOLERANCE
