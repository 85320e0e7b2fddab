"""The contract of every engine, and every claim, with more replicates and other seeds than the quick suite takes."""

from __future__ import annotations

import dataclasses

import pytest
from conftest import SEED
from engines.test_engines import LEARNED, LEARNED_HERE, assert_learned

from ppl_align import SMC, SVI, Enumeration, ImportanceSampling, claims
from ppl_align.claims import CLAIMS, running
from ppl_align.particles.resampling import SCHEMES
from ppl_align.testing import PROGRAMS, check_engine

pytestmark = pytest.mark.statistical

WIDE = {"fixed_length": 64, "whole_prefix": 64, "upstream_latent": 32, "plated": 64}
ENGINES = {
    "importance": ImportanceSampling(32),
    **{name: SMC(32, twist="prefix", ess_threshold=0.9, resampling=name) for name in SCHEMES},
    "every 2": SMC(32, twist="prefix", every=2, ess_threshold=1.0),
    "no twist": SMC(32, ess_threshold=1.0),
    "svi": SVI(num_steps=3, num_particles=32, learning_rate=0.1),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("engine", ENGINES)
def test_contract(engine, name):
    wide = dataclasses.replace(ENGINES[engine], num_particles=WIDE.get(name, 32))
    report = check_engine(wide, {name: PROGRAMS[name]}, seed=SEED + 1, num_replicates=1000)
    if engine == "svi" and name == "hard_rejection":
        assert "hard rejection" in str(report)
        return
    report.raise_if_failed()


@pytest.mark.parametrize("offset", [1, 2])
@pytest.mark.parametrize("name", CLAIMS)
def test_claims_hold_at_other_seeds(name, offset, tmp_path):
    (result,) = running.run([name], seed=SEED + offset)
    assert not result.failure
    assert not [line for line in result.found.lines if not line.passed]
    claims.load(name).figure(result.found).savefig(tmp_path / "figure.png", dpi=60)
    assert (tmp_path / "figure.png").stat().st_size > 4000


@pytest.mark.parametrize("name", [name for name in LEARNED if name not in LEARNED_HERE])
def test_a_trained_guide_is_the_posterior_and_its_weights_are_honest(name):
    assert_learned(name, {name: Enumeration().run(PROGRAMS[name])})
