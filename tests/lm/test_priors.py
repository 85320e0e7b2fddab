"""Priors that are powers, products and mixtures: every engine against enumeration, and enumeration against sums."""

from __future__ import annotations

import math
from functools import lru_cache

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SEED
from toys.oracles import canonical_sequences

from ppl_align import SMC, SVI, Enumeration, ImportanceSampling, Rejection, completion, expert, power, reward
from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError, RunError
from ppl_align.core.runs import run_memory
from ppl_align.lm import CallableLM, Mixture, Product, Prompted
from ppl_align.lm.score_cache import log_prob_of
from ppl_align.testing.checks import CHECKS, STATISTICAL
from ppl_align.testing.contract import Case
from ppl_align.testing.oracle import Oracle, kl_divergence
from ppl_align.testing.programs import EOS, FIXED, long_memory, markov
from ppl_align.testing.statistics import RATE

OTHER, ENDING = markov(seed=1), long_memory(eos_id=2)
OTHER_FIXED = markov(eos_id=None, seed=4)
VOICES = Mixture([Prompted(ENDING, before=[1]), Prompted(ENDING, before=[0, 1]), OTHER], [0.2, 0.5, 0.3])
AGREED = Product([ENDING, OTHER], [1.4, -0.5])


def sharpened():
    """A power above 1, next to a reward."""
    x = completion("x", EOS, [], max_new_tokens=3)
    power("sharp", x, 1.8)
    reward("r", lambda t: 0.6 * (t == 1).sum(-1), x.tokens, upper=1.8)


def flattened():
    """A power below 1, of a prior cut by top-k at another temperature."""
    x = completion("x", ENDING, [1], max_new_tokens=3, temperature=0.7, top_k=2)
    power("flat", x, 0.4)


def seconded():
    """Another LM's vote, under a prompt of its own; a stop token besides EOS."""
    x = completion("x", EOS, [1], max_new_tokens=3, stop=0)
    expert("fit", OTHER, x, weight=0.7, prompt=[0])


def opposed():
    """A vote against what the same LM would write after other prompts: those that a latent chooses."""
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.6, 0.4])))
    x = completion("x", ENDING, torch.stack([z, torch.ones_like(z)], -1), max_new_tokens=3)
    expert("against", ENDING, x, weight=-0.5, prompt=torch.stack([1 - z], -1))


def in_a_plate():
    """Powers and experts in a plate, one prompt for each element."""
    with pyro.plate("pair", 2):
        x = completion("x", FIXED, [[0], [1]], max_new_tokens=2)
        power("sharp", x, 1.5)
        expert("fit", OTHER_FIXED, x, weight=0.5, prompt=[[2], [0]])


def after_one_another():
    """Two completions: the first is scored again whenever the second grows."""
    first = completion("first", EOS, [], max_new_tokens=2)
    power("sharp", first, 1.6)
    second = completion("second", FIXED, ([0], first), max_new_tokens=2)
    expert("fit", OTHER_FIXED, second, weight=0.8)
    power("flat", second, 1.2)


def by_one_of_them():
    """A mixture writes."""
    x = completion("x", VOICES, [1], max_new_tokens=3)
    reward("r", lambda t: 0.8 * (t == 1).sum(-1), x.tokens, upper=2.4)


def by_all_of_them():
    """A product writes, and votes against one of its experts."""
    x = completion("x", AGREED, [1], max_new_tokens=3, temperature=1.3)
    expert("fit", OTHER, x, weight=0.5)


PROGRAMS = {
    p.__name__: p
    for p in (
        sharpened,
        flattened,
        seconded,
        opposed,
        in_a_plate,
        after_one_another,
        by_one_of_them,
        by_all_of_them,
    )
}  # fmt: skip
BOUNDED = [name for name in PROGRAMS if name not in ("flattened", "opposed")]
ENGINES = {
    "exact": Enumeration(),
    "importance": ImportanceSampling(48),
    "prefix": SMC(48, twist="prefix", ess_threshold=0.9),
    "every 2": SMC(48, twist="prefix", every=2, ess_threshold=1.0),
    "guide": SVI(num_steps=3, num_particles=48, learning_rate=0.1),
    "rejection": Rejection(8, max_draws=1_000_000),
}


CHECKED = [check for check in CHECKS if check != "arviz"]  # seconds of h5py, and nothing about priors
LEVEL = RATE / (len(STATISTICAL) * len(ENGINES) * len(PROGRAMS))


@lru_cache
def oracle(name):
    return Oracle(PROGRAMS[name])


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("setting", ENGINES)
def test_the_contract_of_every_engine(setting, name):
    if setting == "rejection" and name not in BOUNDED:
        with pytest.raises(InputError, match=r"Rejection needs its (largest|smallest) value"):
            ENGINES[setting].run(PROGRAMS[name])
        return
    results = Case(ENGINES[setting], name, oracle(name), SEED + 11, 100, LEVEL).results(CHECKED)
    assert [result.line for result in results if result.status != "passed"] == []


# -- enumeration against sums --------------------------------------------------------------------------------------


def texts(length, terminal=(2,), pad=2):
    return canonical_sequences(3, length, terminal, pad)


def log_z(log_joint):
    return float(torch.logsumexp(log_joint.double(), 0))


def test_a_power_is_that_of_the_whole_text():
    x = texts(3)
    log_p = EOS.completion([], 3).log_prob(x)
    assert oracle("sharpened").log_evidence == pytest.approx(log_z(1.8 * log_p + 0.6 * (x == 1).sum(-1)), abs=1e-9)
    source = ENDING.completion([1], 3, temperature=0.7, top_k=2)
    log_p = source.log_prob(x)
    assert oracle("flattened").log_evidence == pytest.approx(log_z(0.4 * log_p[log_p > -torch.inf]), abs=1e-9)


def test_a_power_of_zero_is_uniform_over_the_support():
    def uniform():
        power("flat", completion("x", ENDING, [1], max_new_tokens=3, top_k=2), 0.0)

    found = Oracle(uniform)
    log_p = ENDING.completion([1], 3, top_k=2).log_prob(texts(3))
    count = int(log_p.isfinite().sum())
    assert count < len(texts(3))
    torch.testing.assert_close(found.log_target.exp(), torch.full((count,), 1 / count, dtype=torch.float64))


def test_a_power_differs_from_temperature():
    """The text as a whole is sharpened, not each of its tokens."""

    def whole():
        power("sharp", completion("x", ENDING, [1], max_new_tokens=4), 2.0)

    found = Oracle(whole)
    local = ENDING.completion([1], 4, temperature=0.5).log_prob(found.values["x"])
    log_p = ENDING.completion([1], 4).log_prob(found.values["x"])
    torch.testing.assert_close(found.log_target, (2 * log_p).log_softmax(0), rtol=0, atol=1e-9)
    assert kl_divergence(local, found.log_target) > 0.01


def test_an_expert_reads_its_own_prompt_and_ends_where_the_completion_ends():
    x = texts(3, terminal=(0, 2))
    want = EOS.completion([1], 3, stop=0).log_prob(x) + 0.7 * OTHER.completion([0], 3, stop=0).log_prob(x)
    assert oracle("seconded").log_evidence == pytest.approx(log_z(want), abs=1e-9)


def test_experts_after_prompts_that_a_latent_chose():
    x, joint = texts(3), []
    for z, p in enumerate((0.6, 0.4)):
        against = ENDING.completion([1 - z], 3).log_prob(x)
        joint.append(math.log(p) + ENDING.completion([z, 1], 3).log_prob(x) - 0.5 * against)
    assert oracle("opposed").log_evidence == pytest.approx(log_z(torch.cat(joint)), abs=1e-6)


def test_experts_in_a_plate():
    x = texts(2, terminal=())
    total = 0.0
    for own, other in ((0, 2), (1, 0)):
        votes = 0.5 * OTHER_FIXED.completion([other], 2).log_prob(x)
        total += log_z(1.5 * FIXED.completion([own], 2).log_prob(x) + votes)
    assert oracle("in_a_plate").log_evidence == pytest.approx(total, abs=1e-9)


def test_an_expert_reads_the_completions_own_prompt_unless_told_otherwise():
    joint = []
    for first in texts(2):
        ids = [v for v in first.tolist() if v != 2]
        second = texts(2, terminal=())
        after = 1.2 * FIXED.completion([0, *ids], 2).log_prob(second)
        votes = 0.8 * OTHER_FIXED.completion([0, *ids], 2).log_prob(second)
        joint.append(1.6 * EOS.completion([], 2).log_prob(first) + after + votes)
    assert oracle("after_one_another").log_evidence == pytest.approx(log_z(torch.cat(joint)), abs=1e-9)


# -- what it costs -------------------------------------------------------------------------------------------------


def test_a_power_prior_costs_nothing_and_an_expert_one_reading(tiny_llama):
    def powers():
        power("sharp", completion("x", tiny_llama, [1], max_new_tokens=3), 2.0)

    def votes():
        expert("fit", tiny_llama, completion("x", tiny_llama, [1], max_new_tokens=3), prompt=[2])

    def without():
        reward("r", lambda t: (t == 2).sum(-1).double(), completion("x", tiny_llama, [1], max_new_tokens=3).tokens)

    engines = (ImportanceSampling(40, 2), SMC(40, 2, twist="prefix", ess_threshold=1.0), Rejection(4, 2))
    for engine in engines:
        posterior = engine.run(powers)
        assert posterior.cost.scored_tokens == 0
        drawn = posterior.particles["x"]
        want = tiny_llama.completion([1], 3).log_prob(drawn.tokens)
        torch.testing.assert_close(posterior.rewards["sharp"], want.double(), rtol=0, atol=1e-4)
    posterior = ImportanceSampling(40, 2).run(votes)
    distinct = len(posterior.particles["x"].tokens.reshape(-1, 3).unique(dim=0))
    assert posterior.cost.scored_tokens == 3 * distinct < 3 * 80
    for guide in ("head", "lora"):
        trained = SVI(num_steps=2, num_particles=8, num_replicates=1, guide=guide)
        plain = trained.run(without)
        assert trained.run(powers).cost.scored_tokens <= plain.cost.scored_tokens


def test_a_finished_text_is_not_read_again_while_the_next_one_grows():
    def program(second=3):
        first = completion("first", EOS, [], max_new_tokens=3)
        expert("fit", OTHER, first, prompt=[0])
        completion("second", EOS, ([0], first), max_new_tokens=second)

    costs = {n: SMC(8, 2, twist="prefix", ess_threshold=0.9).run(program, n, seed=1).cost.scored_tokens for n in (1, 6)}
    assert costs[1] == costs[6]


def test_scores_that_are_found_again_are_those_of_the_network(tiny_llama):
    source = tiny_llama.completion([[1], [2, 3]], 3)
    tokens = torch.randint(7, (50, 2, 3))
    tokens = torch.where(source.ended_before(tokens), 6, tokens)
    tokens[0, 0] = torch.tensor([6, 1, 1])  # something follows EOS: impossible
    plain = source.log_prob(tokens)
    with run_memory(), measure() as cost:
        for _ in range(3):
            torch.testing.assert_close(log_prob_of(source, tokens), plain.double(), rtol=0, atol=1e-5)
            torch.testing.assert_close(log_prob_of(source, tokens.flip(0)), plain.flip(0).double(), rtol=0, atol=1e-5)
        other = tiny_llama.completion([[3], [2, 3]], 3)
        torch.testing.assert_close(
            log_prob_of(other, tokens), other.token_log_probs(tokens).sum(-1).double(), rtol=0, atol=1e-5
        )
        prefix = tokens[..., :2]
        torch.testing.assert_close(
            log_prob_of(source, prefix), source.token_log_probs(prefix).sum(-1).double(), rtol=0, atol=1e-5
        )
    assert log_prob_of(source, tokens)[0, 0] == -torch.inf
    assert cost.lm_forwards == 2 * 5  # two calls each, five times


def test_a_network_in_training_is_asked_anew():
    bias = torch.zeros(3, requires_grad=True)
    lm = CallableLM(3, lambda prefix: bias.expand(len(prefix), -1), eos_id=2)
    tokens = torch.tensor([[0, 1, 2]])
    with run_memory():
        for _ in range(2):
            assert log_prob_of(lm.completion([], 3), tokens).requires_grad
        with torch.no_grad():
            bias += 1.0 * torch.arange(3)
        want = lm.completion([], 3).log_prob(tokens)
        torch.testing.assert_close(log_prob_of(lm.completion([], 3), tokens), want)


def test_an_expert_in_training_is_not_judged_by_what_was_scored_before():
    """The pilot run of SVI, without gradients, has seen the only text there is."""

    def program():
        bias = pyro.param("bias", lambda: torch.zeros(3, dtype=torch.float64))
        trained[0] = bias
        x = completion("x", one, [0], max_new_tokens=1)
        expert("e", pupil, x)
        seen[:] = torch.softmax(bias.detach(), -1).tolist()

    seen, trained = [], [torch.zeros(3)]
    one = CallableLM(3, lambda prefix: torch.tensor([0.0, 0.0, 1.0]).log().expand(len(prefix), -1))
    pupil = CallableLM(3, lambda prefix: trained[0].log_softmax(-1).expand(len(prefix), -1))
    run = SVI(num_steps=40, num_particles=4, guide="table").run(program)
    assert seen[2] > 0.9
    assert abs(float(run.log_evidence[0]) - math.log(seen[2])) < 1e-6, "the last sweep asks the LM as it is now"


# -- what cannot be said -------------------------------------------------------------------------------------------

NEVER = CallableLM(3, lambda prefix: torch.tensor([0.0, -torch.inf, 0.0]).expand(len(prefix), -1), eos_id=2)


@pytest.mark.parametrize(
    ("say", "error", "says"),
    [
        (lambda x: power("p", x, -1.0), InputError, "alpha must not be negative"),
        (lambda x: power("p", x, float("nan")), InputError, "alpha must be a finite number"),
        (lambda x: power("p", x.text, 2.0), InputError, r"reads what completion\(...\) returned"),
        (lambda x: expert("e", OTHER, x, weight="much"), InputError, "weight must be a finite number"),
        (lambda x: expert("e", x, OTHER), InputError, r"reads what completion\(...\) returned"),
        (lambda x: expert("e", "gpt2", x), InputError, "the second argument is an LM, got str"),
        (lambda x: expert("e", markov(vocab=4), x), InputError, "expert 'e' needs LMs of one vocabulary"),
        (lambda x: expert("e", OTHER, x, prompt=[[0], [1], [2]]), InputError, r"prompts have batch shape \[3\]"),
        (lambda x: expert("e", NEVER, x, weight=-1.0), RunError, "its negative weight makes that infinite"),
    ],
)
def test_what_cannot_be_said(say, error, says):
    def program():
        say(completion("x", EOS, [1], max_new_tokens=3))

    with pytest.raises(error, match=says) as caught:
        ImportanceSampling(16, 1).run(program)
    assert "\n" not in str(caught.value)


def test_by_hand_there_is_nobody_to_tell():
    x = completion("x", EOS, [1], max_new_tokens=3)
    torch.testing.assert_close(power("p", x, 2.0), EOS.completion([1], 3).log_prob(x.tokens))
    torch.testing.assert_close(expert("e", OTHER, x), OTHER.completion([1], 3).log_prob(x.tokens))
