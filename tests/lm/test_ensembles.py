"""LMs made of LMs: mixtures, products and prompted ones, against sums over all texts."""

from __future__ import annotations

import pytest
import torch

from ppl_align import CausalLM, Completion, Enumeration, ImportanceSampling, completion, reward
from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError, PromptError, RunError
from ppl_align.lm import CallableLM, Mixture, Product, Prompted
from ppl_align.lm.base import LM
from ppl_align.lm.tree import enumerate_completions
from ppl_align.lm.warp import Warp
from ppl_align.testing.oracle import kl_divergence
from ppl_align.testing.programs import EOS, long_memory, markov

OTHER = markov(seed=1)
MEMORY = long_memory(eos_id=2)
WEIGHTS, POWERS = [0.2, 0.5, 0.3], [1.5, -0.6, 0.4]
VOICES = [Prompted(MEMORY, before=[1]), Prompted(MEMORY, before=[0, 1], after=[0]), EOS]


def support(lm, prompt=(1,), length=4, **warp):
    """All texts after a prompt and their log-probability, by decoding."""
    return enumerate_completions(lm.completion(list(prompt), length, **warp), 0, lambda count: None)


def score(lm, tokens, prompt=(1,), length=4, **warp):
    return lm.completion(list(prompt), length, **warp).log_prob(tokens)


# -- mixtures -----------------------------------------------------------------------------------------------------


def test_a_mixture_is_the_mixture_of_the_distributions_over_texts():
    mixture = Mixture(VOICES, WEIGHTS)
    tokens, decoded = support(mixture)
    want = sum(w * score(lm, tokens).exp() for w, lm in zip(WEIGHTS, VOICES, strict=True))
    assert float(want.sum()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(decoded.exp(), want, rtol=0, atol=1e-12)
    torch.testing.assert_close(score(mixture, tokens).exp(), want, rtol=0, atol=1e-12)


def test_a_mixture_is_not_the_average_of_next_token_distributions():
    mixture = Mixture(VOICES, WEIGHTS)
    tokens, log_p = support(mixture)
    prompts = [(1,)] * len(tokens)
    each = torch.stack([lm.token_log_probs(prompts, tokens).exp() for lm in VOICES], -1)
    averaged = (each * torch.tensor(WEIGHTS)).sum(-1).log()
    averaged = torch.where(mixture.completion([1], 4).ended_before(tokens), 0.0, averaged).sum(-1)
    assert float(averaged.exp().sum()) == pytest.approx(1.0, abs=1e-6)
    assert kl_divergence(log_p, averaged) > 0.01


def test_who_wrote_it():
    mixture = Mixture(VOICES, WEIGHTS)
    source = mixture.completion([1], 4)
    tokens, log_p = support(mixture)
    known = mixture.log_responsibilities(Completion(tokens, source))
    each = torch.stack([score(lm, tokens) for lm in VOICES], -1) + torch.tensor(WEIGHTS, dtype=torch.float64).log()
    torch.testing.assert_close(known, each - log_p[:, None], rtol=0, atol=1e-10)
    prefix = mixture.log_responsibilities(Completion(tokens[:, :1], source))
    first = torch.stack([score(lm, tokens[:, :1]) for lm in VOICES], -1) + torch.tensor(WEIGHTS).log()
    torch.testing.assert_close(prefix, first.log_softmax(-1).double(), rtol=0, atol=1e-6)
    one = mixture.log_responsibilities(Completion(tokens[0], source))
    torch.testing.assert_close(one, known[0])
    with pytest.raises(InputError, match="this mixture has written"):
        mixture.log_responsibilities(Completion(tokens, EOS.completion([1], 4)))
    with pytest.raises(InputError, match="no member has written"):
        mixture.log_responsibilities(Completion(tokens, mixture.completion([1], 4, top_k=2)))


def test_a_component_that_cannot_have_written_it_has_no_say():
    never = torch.tensor([[0.0, 0.0, 0.0], [0.0, -torch.inf, 0.0], [0.0, 0.0, 0.0]])
    cannot = CallableLM(3, lambda prefix: never[prefix[:, -1]], eos_id=2)
    mixture = Mixture([cannot, EOS])
    tokens, decoded = support(mixture)
    want = 0.5 * score(cannot, tokens).exp() + 0.5 * score(EOS, tokens).exp()
    torch.testing.assert_close(decoded.exp(), want.double(), rtol=0, atol=1e-7)
    torch.testing.assert_close(score(mixture, tokens).exp().double(), want.double(), rtol=0, atol=1e-7)
    nobody = Mixture([cannot, cannot])
    impossible = torch.tensor([[1, 0, 1, 0]])
    assert score(nobody, impossible).tolist() == [-torch.inf]
    decoder = nobody.start([(1,)]).extend(torch.tensor([0]), torch.tensor([1]))
    assert bool(decoder.log_probs.isfinite().any()), "what follows the impossible is still a distribution"


# -- products -----------------------------------------------------------------------------------------------------


def test_a_product_is_normalised_token_by_token():
    product = Product(VOICES, POWERS)
    tokens, decoded = support(product)
    assert float(decoded.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(score(product, tokens), decoded, rtol=0, atol=1e-10)
    here = sum(a * lm.start(_begun(lm, [(1,)])).log_probs for a, lm in zip(POWERS, VOICES, strict=True))
    torch.testing.assert_close(product.start([(1,)]).log_probs, here.log_softmax(-1))
    doubled = Product([MEMORY], [2.0])
    torch.testing.assert_close(score(doubled, tokens), score(MEMORY, tokens, temperature=0.5))


def test_the_local_product_is_another_distribution_than_the_global_one():
    """The number in the docstring of ``ppl_align.lm.product``."""
    tokens, local = support(Product([EOS, OTHER]), prompt=())
    joint = score(EOS, tokens, prompt=()) + score(OTHER, tokens, prompt=())
    divergence = float(kl_divergence(local, joint.log_softmax(-1)))
    assert divergence == pytest.approx(0.4725, abs=1e-3)


def test_only_plausible_tokens_are_considered():
    product = Product([MEMORY, EOS], [1.0, -1.0], plausible=0.6)
    tokens, _ = support(product)
    first = MEMORY.start([(1,)]).log_probs[0].exp()
    kept = {int(v) for v in tokens[:, 0]}
    assert kept == {v for v in range(3) if first[v] >= 0.6 * first.max()}
    assert 0 < len(kept) < 3


def test_what_an_expert_finds_impossible_is_left_out():
    never = torch.tensor([[0.0, 0.0, 0.0], [0.0, -torch.inf, 0.0], [0.0, 0.0, 0.0]])
    cannot = CallableLM(3, lambda prefix: never[prefix[:, -1]], eos_id=2)
    for power in (1.0, -1.0):
        product = Product([EOS, cannot], [1.0, power])
        tokens, decoded = support(product)
        assert not bool(((tokens[:, :-1] == 1) & (tokens[:, 1:] == 1)).any())
        torch.testing.assert_close(score(product, tokens).double(), decoded, rtol=0, atol=1e-6)
    only_one = CallableLM(
        3, lambda prefix: torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(len(prefix), -1), eos_id=2
    )
    disagreeing = Product([only_one, cannot])
    with pytest.raises(RunError, match="no token is possible under every expert"):
        ImportanceSampling(2, 1).run(lambda: completion("x", disagreeing, [1], max_new_tokens=2))


# -- prompted ones ------------------------------------------------------------------------------------------------


def test_a_prompted_lm_reads_more_than_the_program_sees():
    prompted = Prompted(MEMORY, before=[0, 1], after=[0])
    tokens, decoded = support(prompted, prompt=(1, 1))
    torch.testing.assert_close(decoded, score(MEMORY, tokens, prompt=(0, 1, 1, 1, 0)))
    torch.testing.assert_close(score(prompted, tokens, prompt=(1, 1)), decoded)
    assert prompted.completion([1, 1], 2).prompts == ((1, 1),)


def test_tokens_are_alike_in_a_persona_as_in_the_lm_itself(tiny_llama: CausalLM):
    """Looking ahead learns from it; without, it knows no last token."""
    for lm in (Prompted(tiny_llama, before=[1]), Mixture([tiny_llama, tiny_llama]), Product([tiny_llama, tiny_llama])):
        assert lm.token_features.data_ptr() == tiny_llama.token_features.data_ptr()


def test_bos_is_put_in_front_once(tiny_llama: CausalLM, monkeypatch):
    monkeypatch.setitem(tiny_llama.__dict__, "opening", (5,))
    prompted = Prompted(tiny_llama, before=[1])
    assert prompted.wrap([(2,)]) == [(5, 1, 2)]
    assert prompted.wrap([tiny_llama.begin((2,))]) == [(5, 1, 2)]
    assert Prompted(prompted, before=[3]).wrap([(5, 2)]) == [(3, 2)]
    tokens = torch.tensor([[1, 2, 3]])
    nested = Prompted(prompted, before=[3])
    torch.testing.assert_close(
        nested.completion([2], 3).log_prob(tokens), tiny_llama.completion([1, 3, 2], 3).log_prob(tokens)
    )
    mixture = Mixture([prompted, tiny_llama])
    want = torch.logaddexp(prompted.completion([2], 3).log_prob(tokens), tiny_llama.completion([2], 3).log_prob(tokens))
    torch.testing.assert_close(mixture.completion([2], 3).log_prob(tokens).float(), want - torch.tensor(2.0).log())


# -- all of them ---------------------------------------------------------------------------------------------------


def _begun(lm, prompts):
    return [lm.begin(p) for p in prompts]


ENSEMBLES = {
    "mixture": Mixture(VOICES, WEIGHTS),
    "product": Product(VOICES, POWERS),
    "prompted": VOICES[1],
    "nested": Mixture([Prompted(Product(VOICES, POWERS), before=[1]), Mixture([EOS, OTHER], [0.3, 0.7])]),
}


@pytest.mark.parametrize("warp", [{}, {"temperature": 0.7}, {"top_k": 2}, {"top_p": 0.8, "stop": 1}], ids=str)
@pytest.mark.parametrize("name", ENSEMBLES)
def test_drawing_and_scoring_are_one_distribution(name, warp):
    lm = ENSEMBLES[name]
    tokens, decoded = support(lm, **warp)
    assert float(decoded.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(score(lm, tokens, **warp).double(), decoded, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_teacher_forcing_whole_distributions(name):
    lm = ENSEMBLES[name]
    prompts, tokens = _begun(lm, [(1,), (0, 1), (1,)]), torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 1]])
    forced = lm.forced_log_probs(prompts, tokens)
    assert forced.shape == (3, 3, 3)
    torch.testing.assert_close(forced, LM.forced_log_probs(lm, prompts, tokens))
    torch.testing.assert_close(
        forced.gather(-1, tokens[..., None])[..., 0], lm.token_log_probs(prompts, tokens, Warp())
    )


def test_long_texts_are_scored_in_pieces(monkeypatch):
    lm = ENSEMBLES["product"]
    tokens, decoded = support(lm)
    monkeypatch.setattr("ppl_align.lm.base.SCORING_ELEMENTS", 5 * 4 * 3)
    torch.testing.assert_close(score(lm, tokens), decoded, rtol=0, atol=1e-10)


def test_networks_agree_with_enumeration_and_pay_for_each_member(tiny_llama: CausalLM):
    voices = [Prompted(tiny_llama, before=[1, 2]), tiny_llama]
    for lm in (Mixture(voices, [0.4, 0.6]), Product(voices, [1.5, -0.5])):
        tokens, decoded = support(lm, prompt=(3,), length=2)
        assert float(decoded.exp().sum()) == pytest.approx(1.0, abs=1e-5)
        torch.testing.assert_close(score(lm, tokens, (3,), 2).double(), decoded, rtol=0, atol=2e-5)
        torch.testing.assert_close(score(lm, tokens, (3,), 2, top_k=7).double(), decoded, rtol=0, atol=2e-5)
        with measure() as cost:
            score(lm, tokens[:5], (3,), 2)
        assert cost.scored_tokens == 2 * 5 * 2

        def program(lm=lm):
            x = completion("x", lm, [3], max_new_tokens=2)
            reward("r", lambda t: 0.7 * (t == 2).sum(-1), x.tokens)

        log_z = float(Enumeration().run(program).log_evidence)
        want = torch.logsumexp(decoded + 0.7 * (tokens == 2).sum(-1), 0)
        assert log_z == pytest.approx(float(want), abs=1e-5)


def test_guides_look_at_the_hidden_states_of_a_member(tiny_llama: CausalLM):
    from ppl_align import SVI

    lm = Mixture([EOS_LIKE(tiny_llama), Prompted(tiny_llama, before=[1])])

    def program():
        x = completion("x", lm, [3], max_new_tokens=2)
        reward("r", lambda t: 1.5 * (t == 2).sum(-1), x.tokens)

    exact = Enumeration().run(program)
    posterior = SVI(num_steps=80, num_particles=32, guide="head", learning_rate=0.05).run(program, seed=0)
    assert posterior.history["loss"][-20:].mean() < posterior.history["loss"][:5].mean() - 0.1
    assert float(posterior.log_weight.mean()) > float(exact.log_evidence) - 0.2


def EOS_LIKE(lm):  # a member without hidden states comes first
    return CallableLM(lm.vocab_size, lambda prefix: torch.zeros(len(prefix), lm.vocab_size), eos_id=lm.eos_id)


def test_the_vocabulary_has_to_be_one():
    words = CallableLM(3, lambda prefix: torch.zeros(len(prefix), 3), eos_id=2, tokens=["a", "b", ""], name="letters")
    for lms, says in (
        ([EOS, markov(vocab=4)], r"one vocabulary: markov-lm has 3 tokens, markov-lm 4"),
        ([EOS, markov(eos_id=None)], r"one EOS: id 2 in markov-lm, None in markov-lm"),
        ([EOS, words], r"token 0 is '0' in markov-lm, 'a' in letters"),
    ):
        for kind in (Mixture, Product):
            with pytest.raises(InputError, match=says) as caught:
                kind(lms)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Mixture([]), "one of its weights for each LM: 0 and 0"),
        (lambda: Mixture([EOS, OTHER], [1.0]), "one of its weights for each LM: 2 and 1"),
        (lambda: Mixture([EOS, OTHER], [1.0, 0.0]), "are positive"),
        (lambda: Mixture([EOS, OTHER], [1.0, "2"]), "finite numbers, got '2'"),
        (lambda: Product([EOS, OTHER], [1.0, float("nan")]), "finite numbers, got nan"),
        (lambda: Product([EOS, OTHER], [1.0, 0.0]), "leave that LM out"),
        (lambda: Product([EOS], plausible=2.0), "between 0 and 1"),
        (lambda: Prompted(EOS, before=[7]), "7 is no token id"),
        (lambda: Prompted(EOS, before=[1]).completion([{"role": "user", "content": "0"}]), "give the prompt as text"),
        (lambda: Prompted.chat(EOS, "be brief"), "no chat template"),
    ],
)
def test_bad_arguments(make, says):
    with pytest.raises((InputError, PromptError), match=says):
        make()


def test_limits_of_length_are_those_of_the_shortest_member(tiny_llama: CausalLM):
    mixture = Mixture([tiny_llama, Prompted(tiny_llama, before=[1] * 60)])
    mixture.completion([1], 3)
    with pytest.raises(PromptError, match="reads at most 4"):
        mixture.completion([1], 4)


@pytest.mark.lm
def test_a_chat_persona_reads_what_the_template_makes_of_it():
    try:
        lm = CausalLM("smollm2-135m")
    except InputError as error:
        pytest.skip(str(error))
    prompted = Prompted.chat(lm, "You are a pirate.")
    messages = [
        {"role": "system", "content": "You are a pirate."},
        {"role": "user", "content": "Tell me: what is 2+2?"},
    ]
    assert prompted.wrap([lm.encode("Tell me: what is 2+2?")]) == [lm.begin(lm.chat_ids(messages))]
