"""Powers of the prior by SMC and by Markov chains: evidence, the law of a delivered draw, texts that end early."""

from __future__ import annotations

import pytest
import torch
from conftest import SEED
from toys.lms import chain

from ppl_align import MCMC, SMC, ImportanceSampling, completion, power, reward
from ppl_align.core.errors import InputError, RunError
from ppl_align.kernels import SuffixMH, at_temperature
from ppl_align.testing import Oracle, delivered
from ppl_align.testing.programs import EOS
from ppl_align.testing.statistics import bonferroni_z, mean_z
from ppl_align.twists import PowerRamp, Prefixes

ENDING = chain(4, 3, eos_id=3, scale=1.5, initial=1.5)


def sharp(alpha, lm=EOS, length=6):
    x = completion("x", lm, [], max_new_tokens=length)
    power("sharp", x, alpha)


def rewarded(alpha):
    """Another reward, and another text after the one that is raised to a power."""
    x = completion("x", EOS, [], max_new_tokens=4)
    power("sharp", x, alpha)
    y = completion("y", ENDING, ([0], x), max_new_tokens=2)
    reward("r", lambda t: (t == 1).double().sum(-1), y.tokens, beta=0.8)


SETTINGS = [
    (sharp, 2.0, {"tokens": 3}, {}),
    (sharp, 4.0, {"tokens": 6}, {}),
    (sharp, 4.0, {"tokens": 12}, {"every": 2}),
    (sharp, 2.0, {"tokens": 0}, {"proposal": at_temperature(0.5)}),
    (sharp, 4.0, {"tokens": 4}, {"proposal": at_temperature(0.25)}),
    (sharp, 0.5, {"tokens": 4}, {"proposal": at_temperature(2.0)}),
    (rewarded, 2.0, {"tokens": 3}, {}),
    (rewarded, 2.0, {"tokens": 3, "site": "x"}, {"proposal": at_temperature(0.7)}),
]


@pytest.mark.parametrize(("program", "alpha", "ramp", "options"), SETTINGS)
def test_any_ramp_leaves_the_evidence_unbiased(program, alpha, ramp, options):
    engine = SMC(128, 400, twist=PowerRamp(alpha, **ramp), ess_threshold=0.9, **options)
    run = engine.run(program, alpha, seed=SEED)
    assert bool(run.history["resampled"].any()), "a ramp that is never resampled on proves nothing"
    ratio = (run.log_evidence - Oracle(program, alpha).log_evidence).exp()
    assert float(ratio.std()) < 0.6
    assert abs(float(mean_z(ratio, 1.0))) < bonferroni_z(len(SETTINGS))


@pytest.mark.parametrize("alpha", [2.0, 4.0])
@pytest.mark.parametrize("tokens", [0, 4])
def test_a_delivered_draw_is_of_the_power(alpha, tokens):
    """Total variation at most .01 at N = 256 (``claims/power_sampling.py`` has it at a lower noise)."""
    engine = SMC(256, 400, twist=PowerRamp(alpha, tokens), proposal=at_temperature(1 / alpha))
    found = delivered(engine.run(sharp, alpha, ENDING, seed=SEED), Oracle(sharp, alpha, ENDING))
    assert found.noise_floor < 0.006
    assert found.total_variation < 0.01


def test_texts_that_end_early_climb_the_ramp_too():
    """The trap: with its full power, finished text is lost beside unfinished text that has yet to pay for its own."""

    class OnlyUnfinished(PowerRamp):
        def ended(self, prefixes):
            return None

    oracle, away = Oracle(sharp, 4.0, ENDING), {}
    for twist in (OnlyUnfinished, PowerRamp):
        engine = SMC(256, 400, twist=twist(4.0, tokens=8), proposal=at_temperature(0.25))
        away[twist] = delivered(engine.run(sharp, 4.0, ENDING, seed=SEED), oracle).total_variation
    assert away[PowerRamp] < 0.01
    assert away[OnlyUnfinished] > 0.05


@pytest.mark.parametrize("alpha", [2.0, 4.0])
def test_chains_arrive_at_the_power(alpha):
    """Probable texts and their lengths, averaged over independent chains."""
    kernel = SuffixMH(proposal=at_temperature(1 / alpha))
    run = MCMC(kernel, num_chains=300, num_warmup=64, num_samples=32).run(sharp, alpha, ENDING, seed=SEED)
    oracle = Oracle(sharp, alpha, ENDING)
    drawn, known = run.completions["x"], oracle.completions["x"]
    target = oracle.log_target.exp()
    shares, exact = [], []
    for length in (1, 2, 3, 6):
        shares.append((drawn.lengths == length).double().mean(-1))
        exact.append(target[known.lengths[0] == length].sum())
    for best in target.topk(3).indices:
        shares.append((drawn.tokens == oracle.values["x"][best]).all(-1).double().mean(-1))
        exact.append(target[best])
    for share, wanted in zip(shares, exact, strict=True):
        assert abs(float(mean_z(share, float(wanted)))) < bonferroni_z(2 * len(shares))


def test_the_network_is_not_asked_again(tiny_llama):
    def program():
        x = completion("x", tiny_llama, [0], max_new_tokens=5)
        power("sharp", x, 2.0)

    options = {"ess_threshold": 0.0, "num_particles": 16, "num_replicates": 2}
    ramped = SMC(twist=PowerRamp(2.0, tokens=3), **options).run(program, seed=SEED).cost
    plain = ImportanceSampling(16, 2).run(program, seed=SEED).cost
    assert ramped.scored_tokens == plain.scored_tokens == 0
    assert ramped.lm_forwards == plain.lm_forwards


def test_what_the_ramp_says():
    log_prior = torch.tensor([-1.0, -3.0], dtype=torch.float64)
    ramp = PowerRamp(3.0, tokens=4)
    assert [ramp.exponent(t) for t in (1, 2, 4, 9)] == [1.5, 2.0, 3.0, 3.0]
    assert PowerRamp(3.0, tokens=0).exponent(1) == 3.0

    def prefixes(t):
        return Prefixes("x", torch.zeros(2, t), [], {}, torch.zeros(2), log_prior=log_prior)

    assert ramp.prefix(prefixes(2)).tolist() == [-1.0, -3.0]
    assert ramp.ended(prefixes(2)).tolist() == [1.0, 3.0]
    assert ramp.prefix(prefixes(5)).tolist() == [-2.0, -6.0]
    assert ramp.ended(prefixes(4)) is None
    assert repr(PowerRamp(2.0, 8, "x")) == "PowerRamp(2, tokens=8, site='x')"
    with pytest.raises(RunError, match="log p0"):
        ramp.prefix(prefixes(2)._replace(log_prior=None))


@pytest.mark.parametrize("arguments", [(-1.0,), (float("inf"),), (float("nan"),), (2.0, -1)])
def test_what_is_no_ramp(arguments):
    with pytest.raises(InputError):
        PowerRamp(*arguments)
