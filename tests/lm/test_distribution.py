"""The prior: one normalised distribution, for sampling and for scoring."""

from __future__ import annotations

import math

import pytest
import torch
from toys.oracles import canonical_sequences

from ppl_align import CallableLM, CausalLM, MarkovLM
from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError, PromptError
from ppl_align.lm.decoding import Population
from ppl_align.lm.prepack import unpack
from ppl_align.lm.warp import Warp
from ppl_align.testing.programs import EOS, FIXED, MEMORY, markov

PRIORS = {
    "eos": (EOS, {}),
    "fixed": (FIXED, {"prompt": [1]}),
    "memory": (MEMORY, {"prompt": [1, 0]}),
    "by position": (markov(positions=4, seed=5), {"prompt": [0]}),
    "temperature": (EOS, {"temperature": 0.6}),
    "hot": (FIXED, {"prompt": [0], "temperature": 2.0}),
    "top-k": (MEMORY, {"prompt": [0], "top_k": 2}),
    "top-p": (EOS, {"top_p": 0.8}),
    "all three": (MEMORY, {"prompt": [2], "temperature": 1.4, "top_k": 2, "top_p": 0.9}),
    "stop": (FIXED, {"prompt": [0], "stop": 1}),
    "stop and eos": (EOS, {"stop": [0]}),
}


def support(source):
    return canonical_sequences(source.lm.vocab_size, source.max_new_tokens, source.terminal, source.pad_id)


@pytest.mark.parametrize("name", PRIORS)
def test_probabilities_of_all_sequences_sum_to_one(name):
    lm, kwargs = PRIORS[name]
    source = lm.completion(**{"prompt": [], **kwargs}, max_new_tokens=4)
    assert source.log_prob(support(source)).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", PRIORS)
def test_draws_have_the_probability_they_are_given(name):
    """A chi-square test of 20,000 draws against log_prob, rare sequences pooled."""
    lm, kwargs = PRIORS[name]
    source = lm.completion(**{"prompt": [], **kwargs}, max_new_tokens=3)
    sequences = support(source)
    probability = source.log_prob(sequences).exp()
    size = 20_000
    population = Population(source.expand([size])).run()
    rescored = source.log_prob(population.tokens)
    torch.testing.assert_close(rescored, population.log_p, atol=1e-12, rtol=0)
    counts = (population.tokens[:, None] == sequences[None]).all(-1).sum(0).double()
    assert counts.sum() == size, "a draw outside the support"
    common = probability * size >= 5
    expected = torch.cat([probability[common], probability[~common].sum()[None]]) * size
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    kept = expected > 0
    assert observed[~kept].sum() == 0
    chi2 = float(((observed - expected)[kept] ** 2 / expected[kept]).sum())
    freedom = int(kept.sum()) - 1
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom) + 10


def test_anything_but_padding_after_the_end_is_impossible():
    source = EOS.completion([], 4)
    good, bad = torch.tensor([0, 2, 2, 2]), torch.tensor([0, 2, 1, 2])
    assert source.log_prob(good).isfinite()
    assert source.log_prob(bad) == -math.inf


def test_eos_counts():
    """The known bug: pad == eos and the EOS term is lost."""
    source = EOS.completion([], 2)
    table = EOS.log_initial
    assert source.log_prob(torch.tensor([2, 2])).item() == pytest.approx(float(table[2]))


def test_a_shorter_value_is_scored_as_a_prefix():
    source = FIXED.completion([0], 3)
    longer = support(source)
    ends = source.log_prob(longer).exp()
    for token in range(3):
        total = ends[longer[:, 0] == token].sum()
        assert source.log_prob(torch.tensor([token])).exp().item() == pytest.approx(float(total))


def test_prompts_of_every_kind():
    named = MarkovLM(torch.zeros(3, 3), torch.zeros(3), eos_id=2, tokens=["a", "b", "<end>"])
    assert named.completion("ab", 2).prompts == ((0, 1),)
    assert named.completion([0, 1], 2).prompts == ((0, 1),)
    assert named.completion(("a", [1]), 2).prompts == ((0, 1),)
    batch = named.completion(["ab", "b", "ab"], 2)
    assert batch.prompts == ((0, 1), (1,))
    assert batch.index.tolist() == [0, 1, 0]
    assert named.completion(torch.tensor([[0], [1]]), 2).batch_shape == (2,)
    assert named.completion([], 2).prompts == ((),)


def test_an_earlier_completion_is_a_part_without_eos_and_padding():
    from ppl_align.lm.completions import Completion

    source = EOS.completion([], 4)
    earlier = Completion(torch.tensor([[0, 1, 2, 2], [1, 1, 1, 1]]), source)
    assert EOS.completion(([0], earlier), 2).prompts == ((0, 0, 1), (0, 1, 1, 1, 1))
    assert earlier.lengths.tolist() == [3, 4]
    assert earlier.text.tolist() == ["0 1", "1 1 1 1"]


def test_per_particle_prompts_equal_separate_runs(tiny_llama: CausalLM):
    prompts = [[1, 2, 3, 4, 5], [3], [0, 1]]
    together = tiny_llama.completion(prompts, 4)
    tokens = together.sample()
    alone = torch.stack([tiny_llama.completion(p, 4).log_prob(tokens[i]) for i, p in enumerate(prompts)])
    torch.testing.assert_close(together.log_prob(tokens), alone, atol=1e-5, rtol=0)
    population = Population(together).run()
    torch.testing.assert_close(population.log_p.float(), together.log_prob(population.tokens), atol=1e-5, rtol=0)


def test_batched_equals_one_by_one(tiny_llama: CausalLM):
    source = tiny_llama.completion([1, 2], 5)
    tokens = source.expand([6]).sample()
    one_by_one = torch.stack([source.log_prob(row) for row in tokens])
    torch.testing.assert_close(source.log_prob(tokens), one_by_one, atol=1e-5, rtol=0)


def test_a_transformer_is_normalised_and_scores_its_own_draws(tiny_llama: CausalLM):
    for kwargs in ({}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.7}, {"stop": 2}):
        source = tiny_llama.completion([1, 2, 3], 3, **kwargs)
        assert source.log_prob(support(source)).double().exp().sum().item() == pytest.approx(1.0, abs=1e-5)
        population = Population(source.expand([500])).run()
        torch.testing.assert_close(population.log_p.float(), source.log_prob(population.tokens), atol=1e-5, rtol=0)


def test_prepacked_layers_change_nothing_but_the_time(tiny_llama: CausalLM):
    source = tiny_llama.completion([1, 2, 3], 3)
    packed = source.log_prob(support(source))
    from transformers import LlamaForCausalLM

    plain_model = LlamaForCausalLM(tiny_llama.model.config)
    plain_model.load_state_dict(tiny_llama.model.state_dict())
    unpack(plain_model)
    plain = CausalLM(plain_model, prepack=False)
    assert plain.packed_layers == 0
    torch.testing.assert_close(plain.completion([1, 2, 3], 3).log_prob(support(source)), packed, atol=1e-5, rtol=0)


def test_particles_that_share_a_history_share_a_row(tiny_llama: CausalLM):
    """Forwards and rows are counted: one row per distinct running prefix, one forward per step."""
    source = tiny_llama.completion([1, 2], 3).expand([200])
    with measure() as cost:
        population = Population(source).run()
    rows = 0
    for t in (1, 2):
        prefixes = population.tokens[:, :t]
        running = ~(prefixes == 6).any(-1)
        rows += len(torch.unique(prefixes[running], dim=0))
    assert cost.lm_tokens == rows
    assert cost.lm_forwards == 3
    assert cost.prompt_tokens == 2
    assert cost.scored_tokens == 0


def test_scoring_reads_a_shared_prompt_once(tiny_llama: CausalLM):
    source = tiny_llama.completion([1, 2, 3], 4)
    with measure() as cost:
        source.log_prob(torch.zeros(5, 4, dtype=torch.long))
    assert (cost.prompt_tokens, cost.scored_tokens, cost.lm_forwards) == (3, 20, 2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: EOS.completion([], 0), "max_new_tokens"),
        (lambda: EOS.completion([], 2.5), "max_new_tokens"),
        (lambda: EOS.completion([7], 2), "token id 7"),
        (lambda: EOS.completion(3.0, 2), "a prompt is text"),
        (lambda: EOS.completion("hello", 2), "no words"),
        (lambda: EOS.completion("0 7", 2), "from 0 to 2"),
        (lambda: EOS.completion([], 2, temperature=0), "temperature"),
        (lambda: EOS.completion([], 2, top_k=0), "top_k"),
        (lambda: EOS.completion([], 2, top_p=1.5), "top_p"),
        (lambda: EOS.completion([], 2, stop=9), "stop=9"),
        (lambda: MarkovLM(torch.zeros(2, 2)).completion([], 2), "no initial"),
        (lambda: MarkovLM(torch.zeros(2, 3)), "shape"),
        (lambda: CallableLM(3, lambda x: torch.zeros(1, 2)).completion([], 1).sample(), "logits of shape"),
        (lambda: CallableLM(0, lambda x: x), "vocab_size"),
        (lambda: CallableLM(2, lambda x: x, eos_id=2), "eos_id"),
        (lambda: EOS.completion([{"role": "user", "content": "hi"}], 2), "no chat template"),
    ],
)
def test_bad_input_is_one_clear_line(make, says):
    with pytest.raises(InputError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_prompt_too_long_or_empty(tiny_llama: CausalLM):
    with pytest.raises(PromptError, match="at most 64"):
        tiny_llama.completion([1] * 60, 5)
    with pytest.raises(PromptError, match="no BOS"):
        tiny_llama.completion([], 5)


def test_warps_are_the_ones_of_transformers():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(50, 40) * 2
    expected = TemperatureLogitsWarper(0.8)(None, logits)
    expected = TopKLogitsWarper(20)(None, expected)
    expected = TopPLogitsWarper(0.7)(None, expected).log_softmax(-1)
    got = Warp(0.8, 20, 0.7)(logits.log_softmax(-1))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
