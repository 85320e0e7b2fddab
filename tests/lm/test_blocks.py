"""A prior that draws blocks of tokens: everything that needs no next-token probabilities, against enumeration."""

from __future__ import annotations

import pytest
import torch
from conftest import SEED
from toys.blocks import BlockLM
from toys.lms import ABCD, OTHER_ABCD
from toys.rewards import likes

from ppl_align import (
    SMC,
    SVI,
    ConditionalSMC,
    Enumeration,
    ImportanceSampling,
    Rejection,
    completion,
    constrain,
    reward,
)
from ppl_align.constraints import Contains
from ppl_align.core.errors import InputError
from ppl_align.particles.particles import Particles
from ppl_align.program.compiled import Program
from ppl_align.runner.runner import Runner
from ppl_align.testing import Oracle, check_engine
from ppl_align.testing.statistics import mean_z

BLOCKS, SERVED = BlockLM(ABCD), BlockLM(ABCD, draws_from=OTHER_ABCD)


def program(lm=ABCD, stop=None):
    x = completion("x", lm, [0], max_new_tokens=3, stop=stop)
    y = completion("y", lm, (x, [1]), max_new_tokens=2)
    reward("r", likes, x.tokens, beta=0.7, upper=3.0)
    reward("s", likes, y.tokens, beta=0.9, upper=2.0)


ENGINES = {
    "importance": ImportanceSampling(50, 80),
    "smc": SMC(20, 80, twist="prefix", ess_threshold=0.9),
    "smc, every 2": SMC(20, 80, twist="prefix", every=2, ess_threshold=1.0),
    "smc, between": SMC(20, 400, ess_threshold=1.0),
}


@pytest.mark.parametrize("lm", [BLOCKS, SERVED], ids=["p = q", "drawn from something else"])
@pytest.mark.parametrize("stop", [None, "bc"])
@pytest.mark.parametrize("name", ENGINES)
def test_evidence_and_means_are_those_of_the_prior_that_steps(name, stop, lm):
    exact = Enumeration().run(program, stop=stop)
    run = ENGINES[name].run(program, lm, stop, seed=SEED)
    z = (run.log_evidence - float(exact.log_evidence)).exp()
    assert abs(float(mean_z(z, 1.0))) < 4.5
    value, error = run.mean("r")
    assert abs(value - exact.mean("r").value) < 4.5 * error


def test_rejection_is_exact_under_constraints_too():
    def confined(lm=ABCD):
        x = completion("x", lm, [0], max_new_tokens=3)
        constrain("c", Contains("b"), x)
        reward("r", likes, x.tokens, beta=0.7, upper=3.0)

    exact, run = Enumeration().run(confined), Rejection(60, 4, max_draws=50_000).run(confined, BLOCKS, seed=SEED)
    value, error = run.mean("r")
    assert abs(value - exact.mean("r").value) < 4.5 * error


def test_conditional_runs_score_what_they_retain():
    """E[1/Zhat_c] = 1/Z, also where the LM draws from something else than it scores by."""
    exact = Oracle(program).sample(1, 1500, seed=SEED)
    truth = float(Enumeration().run(program).log_evidence)
    for engine in (ImportanceSampling(4, 1500), SMC(4, 1500, twist="prefix", ess_threshold=1.0)):
        run = ConditionalSMC(engine, exact).run(program, SERVED, seed=SEED)
        assert abs(float(mean_z((truth - run.log_evidence).exp(), 1.0))) < 4.5


def test_blocks_are_as_long_as_they_may_be():
    lm = BlockLM(ABCD)
    ImportanceSampling(8, 1).run(program, lm)
    assert lm.blocks[:2] == [3, 2], "a text is drawn at once where nobody looks at its beginning"
    lm.blocks.clear()
    SMC(8, 1, twist="prefix", every=2).run(program, lm)
    assert lm.blocks[:2] == [2, 1]


def test_a_prefix_is_kept_and_its_own_score_told():
    given = Particles(40, {"x": torch.tensor([1, 0, 2]).expand(40, 3), "y": torch.tensor([0, 0]).expand(40, 2)})
    token = torch.arange(40) % 4
    runner = Runner(Program(program, (SERVED,)))
    runner.program.run(given, draw=False)
    new = runner.redraw(given, "x", token)
    x = new.particles.values["x"]
    for row, kept in zip(x.tolist(), token.tolist(), strict=True):
        assert row[:kept] == [1, 0, 2][:kept]
    one = ABCD.completion([0], 3)
    totals = one.token_log_probs(x).double()
    drawn = torch.stack([row[kept:].sum() for row, kept in zip(totals, token.tolist(), strict=True)])
    y = new.particles.sources["y"].expand((40,))
    assert torch.allclose(new.log_prior, drawn + y.log_prob(new.particles.values["y"]).double(), atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "what"),
    [
        (ImportanceSampling(4, 1, proposal=OTHER_ABCD), "a proposal or guide"),
        (SMC(4, 1, twist="lookahead"), "looking ahead"),
        (Enumeration(), "enumeration"),
        (SVI(num_steps=1), "guide"),
    ],
    ids=["proposal", "lookahead", "exact", "svi"],
)
def test_what_a_prior_cannot_do_is_said_in_one_line(engine, what):
    def confined(lm):
        x = completion("x", lm, [0], max_new_tokens=3)
        if engine.name == "smc":
            constrain("c", Contains("b"), x)
        reward("r", likes, x.tokens, beta=0.7)

    with pytest.raises(InputError, match=what) as caught:
        engine.run(confined, BLOCKS)
    assert "\n" not in str(caught.value)
    assert "shows no next-token probabilities" in str(caught.value)


def test_the_contract_of_engines_holds_on_blocks():
    def one():
        x = completion("x", BLOCKS_THAT_STEP, [0], max_new_tokens=3)
        reward("r", likes, x.tokens, beta=0.7)

    class Both(BlockLM):
        """Steps for the oracle that judges, and draws blocks for the engine that is judged."""

        def start(self, prompts):
            return self.inside.start(prompts)

        steps = False  # type: ignore[assignment]

    BLOCKS_THAT_STEP = Both(ABCD)
    check_engine(
        SMC(24, twist="prefix", every=2, ess_threshold=0.9), {"one": one}, num_replicates=100
    ).raise_if_failed()
