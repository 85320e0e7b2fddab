"""What the engines for far posteriors share: the contract, on the programs of the others, and what they refuse."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from toys.contracts import oracle_of

from ppl_align import MCMC, SMC, SVI, ConditionalSMC, Enumeration, ParticleGibbs, TemperedSMC
from ppl_align.core.errors import InputError
from ppl_align.kernels import BlockSuffixMH, Cycle, IndependenceMH, InfillMH, SuffixMH, at_temperature
from ppl_align.testing import PROGRAMS
from ppl_align.testing.checks import CHECKS, STATISTICAL
from ppl_align.testing.contract import Case
from ppl_align.testing.statistics import RATE

BOTH = Cycle(InfillMH(size=2), SuffixMH())
ENGINES = {
    "tempered": TemperedSMC(24, max_moves=6),
    "tempered, both kernels, waste-free": TemperedSMC(16, kernel=BOTH, ess_threshold=0.8, num_moves=2, waste_free=True),
    "rejuvenated": SMC(24, twist="prefix", ess_threshold=1.0, rejuvenate=SuffixMH(cuts="word")),
    "rejuvenated, every 2": SMC(24, twist="prefix", every=2, resampling="chopthin", rejuvenate=BOTH),
    "mcmc": MCMC(Cycle(InfillMH(), SuffixMH()), num_chains=8, num_samples=8, num_warmup=4),
    "particle gibbs": ParticleGibbs(SMC(4, twist="prefix", resampling="multinomial"), 8, 8, num_warmup=4),
}
WIDE = {"fixed_length": 64, "whole_prefix": 64, "upstream_latent": 32, "plated": 64}  # particles for a spread below .6
LEVEL = RATE / (len(STATISTICAL) * len(ENGINES) * len(PROGRAMS))
FEW = ["with_eos", "two_completions"]
VARIANTS, HALF = ["tempered, both kernels, waste-free", "rejuvenated, every 2"], list(PROGRAMS)[::2]


def contract():
    for setting, name, check in itertools.product(ENGINES, PROGRAMS, CHECKS):
        slow = check == "arviz" and not (name in FEW and setting in ("tempered", "mcmc"))
        if not slow and not (check == "Zhat" and setting in ("mcmc", "particle gibbs")):
            marks = [pytest.mark.statistical] if setting in VARIANTS and name not in HALF else []
            yield pytest.param(setting, name, check, id=f"{setting}-{name}-{check}", marks=marks)


def widened(engine, name):
    if hasattr(engine, "num_particles"):
        return replace(engine, num_particles=WIDE.get(name, engine.num_particles))
    return replace(engine, num_samples=64) if name == "truncated" else engine  # nearly all of it is one text


CASES: dict[tuple[str, str], Case] = {}


def case(setting, name):
    if (setting, name) not in CASES:
        CASES.clear()  # the checks of one case follow one another
        CASES[setting, name] = Case(widened(ENGINES[setting], name), name, oracle_of(name), 0, 300, LEVEL)
    return CASES[setting, name]


@pytest.mark.parametrize(("setting", "name", "check"), list(contract()))
def test_contract(setting, name, check):
    result = case(setting, name).judge(check)
    assert result.status == "passed", result.line


# -- what they refuse -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TemperedSMC(1), "num_particles"),
        (lambda: TemperedSMC(ess_threshold=1.0), "above 0 and below 1"),
        (lambda: TemperedSMC(kernel="suffix"), "takes a kernel, such as SuffixMH"),
        (lambda: TemperedSMC(kernel=SuffixMH(proposal=at_temperature(2))), "give proposal= and twist= to TemperedSMC"),
        (lambda: TemperedSMC(kernel=Cycle(SuffixMH(), InfillMH(twist="lookahead"))), "to TemperedSMC"),
        (lambda: TemperedSMC(resampling="chopthin"), "resampling"),
        (lambda: TemperedSMC(twist="prefix"), "twist"),
        (lambda: TemperedSMC(num_moves=0), "num_moves"),
        (lambda: SMC(rejuvenate="suffix"), "takes a kernel, such as SuffixMH"),
        (lambda: SMC(rejuvenate=SuffixMH(cuts="entropy")), "do not ask for entropies"),
        (lambda: SMC(rejuvenate=SuffixMH(), every="word"), "give every= a number of tokens"),
        (lambda: SMC(rejuvenate=IndependenceMH(proposal=at_temperature(2))), "give proposal= and twist= to SMC"),
        (lambda: MCMC("suffix"), "takes a kernel, such as SuffixMH"),
        (lambda: MCMC(num_chains=0), "num_chains"),
        (lambda: MCMC(num_warmup=-1), "num_warmup"),
        (lambda: MCMC(init=3), "init= takes a Posterior"),
        (lambda: SuffixMH(cuts="letter"), "cuts"),
        (lambda: SuffixMH(twist="prefix"), "twist"),
        (lambda: InfillMH(size=0), "size"),
        (lambda: BlockSuffixMH(size=0), "size"),
        (lambda: Cycle(), "takes kernels"),
        (lambda: at_temperature(0), "above zero"),
    ],
)
def test_what_they_refuse(make, says):
    with pytest.raises(InputError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_retained_draws_are_not_moved():
    exact = Enumeration().run(PROGRAMS["with_eos"])
    with pytest.raises(InputError, match="without rejuvenate="):
        ConditionalSMC(SMC(8, twist="prefix", rejuvenate=SuffixMH()), exact)
    with pytest.raises(InputError, match="without rejuvenate="):
        ParticleGibbs(SMC(8, twist="prefix", resampling="multinomial", rejuvenate=SuffixMH()))


def test_a_guide_of_whole_values_is_no_proposal_for_kernels():
    guide = SVI(num_steps=1, num_particles=4).run(PROGRAMS["upstream_latent"]).guide
    assert TemperedSMC(proposal=guide).run(PROGRAMS["upstream_latent"]).kind.has_evidence
