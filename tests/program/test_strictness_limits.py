"""How large a latent strictness may be (Rejection has to know), and what is none."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SEED
from toys.strict_programs import SHARES, SIGNED, WEIGHTS, rejects, weight_of_a_latent

from ppl_align import (
    SMC,
    SVI,
    Enumeration,
    ImportanceSampling,
    Rejection,
    completion,
    reward,
    reward_funcs,
)
from ppl_align.core.errors import InputError, RewardError
from ppl_align.testing import check_engine
from ppl_align.testing.chain import ChainOracle
from ppl_align.testing.programs import FIXED, STEP, count_score

# -- Rejection's bound --------------------------------------------------------------------------------------------


def judged(draw, upper=2 * STEP, **options):
    def program():
        weight = draw()
        x = completion("x", FIXED, [0], max_new_tokens=2)
        reward(
            "kind", lambda t: count_score(t) + (upper or 0) - 2 * STEP, x.tokens, weight=weight, upper=upper, **options
        )

    return program


def test_the_bound_is_the_largest_over_the_latents():
    """log Zhat = B + log acceptance: a wrong B is a wrong log Z. The weights of one draw are all equal."""
    truth = Enumeration().run(weight_of_a_latent)
    run = Rejection(32, 40, max_draws=10**6).run(weight_of_a_latent, seed=SEED)
    ratio = (run.log_evidence - truth.log_evidence).exp()
    assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / math.sqrt(40)
    assert run.draws_are_exact


@pytest.mark.parametrize(
    "draw",
    [
        lambda: pyro.sample("s", dist.Uniform(0.2, 1.3)),
        lambda: 1.5 * pyro.sample("s", dist.Beta(2.0, 2.0)),
        lambda: pyro.sample("s", dist.Beta(2.0, 2.0).expand([2]).to_event(1)).sum(-1),
        lambda: torch.where(pyro.sample("s", dist.Bernoulli(0.3)) == 1, 1.2, 0.1),
        lambda: 0.1 * pyro.sample("s", dist.Binomial(5, 0.5)),
        lambda: pyro.sample("s", dist.Normal(0.0, 1.0)) * 0 + 0.7,
    ],
)
def test_bounded_weights_are_accepted_and_right(draw):
    program = judged(draw)
    many = ImportanceSampling(4000, 4).run(program, seed=SEED)
    run = Rejection(32, 30, max_draws=10**6).run(program, seed=SEED)
    ratio = (run.log_evidence - torch.logsumexp(many.log_evidence, 0) + math.log(4)).exp()
    noise = math.hypot(float(ratio.std()) / math.sqrt(30), float(many.log_evidence.std()) / 2)
    assert abs(float(ratio.mean()) - 1) < 4.5 * noise


@pytest.mark.parametrize(
    ("draw", "options"),
    [
        (lambda: pyro.sample("s", dist.Gamma(2.0, 1.0)), {}),
        (lambda: pyro.sample("s", dist.LogNormal(0.0, 1.0)), {}),
        (lambda: pyro.sample("s", dist.Poisson(1.0)), {}),
        (lambda: pyro.sample("s", dist.Normal(0.0, 1.0)), {"lower": -2 * STEP}),
        (lambda: pyro.sample("s", dist.Categorical(SHARES)).double() - 1, {}),  # a negative weight needs lower=
        (lambda: WEIGHTS[pyro.sample("s", dist.Categorical(SHARES))], {"upper": None}),
    ],
)
def test_unbounded_weights_are_refused_in_one_line(draw, options):
    with pytest.raises(InputError, match=r"reward 'kind'") as caught:
        Rejection(4).run(judged(draw, **options))
    assert "\n" not in str(caught.value)


def test_a_weight_that_the_text_decides_is_refused():
    def program():
        x = completion("x", FIXED, [0], max_new_tokens=2)
        weight = 1.0 + (x.tokens == 1).sum(-1)
        reward("kind", count_score, x.tokens, weight=weight, upper=2 * STEP)

    with pytest.raises(InputError, match=r"reward 'kind': its weight .* depends on a text"):
        Rejection(64).run(program)
    assert math.isfinite(float(Enumeration().run(program).log_evidence))


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["weight", "beta"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        (lambda z: torch.where(z == 0, math.nan, 1.0), "finite"),
        (lambda z: torch.where(z == 0, math.inf, 1.0), "finite"),
        (lambda z: torch.ones(7), "shape"),
        (lambda z: z.double()[..., None] + torch.ones(3), "shape"),
        (lambda z: z == 0, "bool"),
        (lambda z: z * 1j, "complex"),
        (lambda z: [1.0, 2.0], "number"),
        (lambda z: None, "number"),
        (lambda z: "strict", "number"),
    ],
)
@pytest.mark.parametrize("engine", [ImportanceSampling(16, 4), SVI(num_steps=1)], ids=lambda engine: engine.name)
def test_what_is_no_weight_is_refused_in_one_line(engine, what, value, says):
    def program():
        z = pyro.sample("z", dist.Categorical(SHARES))
        x = completion("x", FIXED, [0], max_new_tokens=2)
        reward("kind", count_score, x.tokens, **{what: value(z)})

    with pytest.raises(InputError, match=f"reward 'kind': .*{says}") as caught:
        engine.run(program)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("low", [-0.5, 0.0])
def test_a_beta_that_is_not_positive_is_refused(low):
    def program():
        z = pyro.sample("z", dist.Categorical(SHARES))
        x = completion("x", FIXED, [0], max_new_tokens=2)
        reward("kind", count_score, x.tokens, beta=torch.tensor([low, 1.0, 2.0])[z])

    for engine in (Enumeration(), ImportanceSampling(64), SMC(64, twist="prefix"), SVI(num_steps=1)):
        with pytest.raises(InputError, match="reward 'kind': beta must be positive and finite"):
            engine.run(program)


def test_a_rejection_under_a_negative_weight_is_refused():
    def program():
        z = pyro.sample("z", dist.Categorical(SHARES))
        x = completion("x", FIXED, [0], max_new_tokens=2)
        reward("r", lambda t: torch.where(t[..., 0] == 0, -torch.inf, 0.0), x.tokens, weight=SIGNED[z])

    with pytest.raises(RewardError, match=r"reward 'r' rejects \(-inf\), and weight=-0.6"):
        Enumeration().run(program)


def test_a_weight_of_zero_silences_a_rejection():
    run = Enumeration().run(rejects)
    silent = run.particles["z"] == 0
    assert bool((run.factors["has a 2"][silent] == 0).all())
    assert bool(run.factors["has a 2"][~silent].isneginf().any())
    check_engine(ImportanceSampling(32), [rejects], seed=SEED).raise_if_failed()


def test_several_trl_rewards_have_weights_of_their_own():
    def program():
        z = pyro.sample("z", dist.Categorical(SHARES))
        x = completion("x", FIXED, [0], max_new_tokens=2)

        def ones(completions, **_):
            return [text.count("1") for text in completions]

        reward_funcs([ones, ones], x, beta=1 / WEIGHTS[z], weights=[WEIGHTS[z], 0.5])

    def by_hand():
        z = pyro.sample("z", dist.Categorical(SHARES))
        x = completion("x", FIXED, [0], max_new_tokens=2)
        pyro.factor("f", (WEIGHTS[z] ** 2 + 0.5 * WEIGHTS[z]) * (x.tokens == 1).sum(-1))

    torch.testing.assert_close(
        Enumeration().run(program).log_evidence, Enumeration().run(by_hand).log_evidence, rtol=0, atol=1e-6
    )


def test_the_chain_oracle_wants_one_weight():
    from ppl_align.core.errors import ModelError
    from ppl_align.lm import MarkovLM
    from ppl_align.rewards import TokenSum

    lm = MarkovLM(torch.randn(3, 3, dtype=torch.float64))

    def program(drawn):
        x = completion("x", lm, [0], max_new_tokens=4)
        weight = 1.0 + (x.tokens == 1).sum(-1) if drawn else torch.tensor(0.5)
        reward("r", TokenSum(torch.tensor([0.0, 1.0, -1.0])), x.tokens, weight=weight)

    assert ChainOracle(program, False).log_evidence == pytest.approx(
        float(Enumeration().run(program, False).log_evidence)
    )
    with pytest.raises(ModelError, match="'r' has a weight or beta that differs"):
        ChainOracle(program, True)
