"""What engines record of chains, tempering and rejuvenation: a file gives it back as it was, and ArviZ finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SEED

from ppl_align import MCMC, SMC, Engine, ParticleGibbs, Posterior, TemperedSMC
from ppl_align.diagnostics import acceptance_by_cut
from ppl_align.kernels import Cycle, InfillMH, SuffixMH
from ppl_align.posterior.chains import acceptance_by_state
from ppl_align.posterior.run_summary import summary_of
from ppl_align.testing import PROGRAMS

ENGINES: dict[str, tuple[Engine, set[str]]] = {
    "mcmc": (
        MCMC(Cycle(SuffixMH(), InfillMH()), num_chains=4, num_samples=12, num_warmup=3, thinning=2),
        {"cut", "accepted", "move_site", "num_warmup"},
    ),
    "no warm-up": (MCMC(num_chains=4, num_samples=12, num_warmup=0), {"cut", "accepted", "move_site", "num_warmup"}),
    "particle Gibbs": (ParticleGibbs(num_chains=4, num_samples=12, num_warmup=2), {"accepted", "num_warmup"}),
    "tempered": (
        TemperedSMC(32, ess_threshold=0.9),
        {
            "exponent",
            "num_moves",
            "move_correlation",
            "lasting",
            "move_accepted",
            "ess",
            "resampled",
            "log_evidence_increment",
            "step",
            "lineage",
        },
    ),
    "waste-free": (TemperedSMC(32, ess_threshold=0.9, waste_free=True), {"exponent", "num_moves", "lineage"}),
    "rejuvenated": (
        SMC(32, twist="prefix", ess_threshold=0.99, rejuvenate=SuffixMH()),
        {"moved", "ess", "resampled", "ancestors", "lineage", "step"},
    ),
    "rejuvenated, nothing to look at": (SMC(32, rejuvenate=SuffixMH()), {"moved"}),
    "chopthin": (SMC(32, twist="prefix", resampling="chopthin"), {"ess", "lineage"}),
}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("program", ["with_eos", "upstream_latent"])
def test_a_file_keeps_every_history(name: str, program: str, tmp_path: Path) -> None:
    engine, keys = ENGINES[name]
    run = engine.run(PROGRAMS[program], seed=SEED)
    assert keys <= set(run.history)
    back = Posterior.load(run.save(tmp_path / "run.nc"))
    assert set(back.history) == set(run.history)
    for key, value in run.history.items():
        same(key, back.history[key], value)
    assert summary_of(back).row() == pytest.approx(summary_of(run).row(), nan_ok=True)
    assert repr(summary_of(back).chain_rows) == repr(summary_of(run).chain_rows)
    again = Posterior.load(back.save(tmp_path / "again.nc"))
    for key, value in run.history.items():
        same(key, again.history[key], value)


def same(key: str, found: Any, expected: Any) -> None:
    assert type(found) is type(expected), key
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, key
        assert found.shape == expected.shape, key
        assert torch.equal(found.nan_to_num(-7.0), expected.nan_to_num(-7.0)) if found.numel() else True, key
    else:
        assert found == expected, key


def test_the_table_of_cuts_survives(tmp_path: Path) -> None:
    run = ENGINES["mcmc"][0].run(PROGRAMS["upstream_latent"], seed=SEED)
    back = Posterior.load(run.save(tmp_path / "run.nc"))
    assert acceptance_by_cut(back).equals(acceptance_by_cut(run))


def test_arviz_has_them_beside_the_draws() -> None:
    run = ENGINES["mcmc"][0].run(PROGRAMS["with_eos"], seed=SEED)
    rate = run.to_arviz()["sample_stats"]["acceptance_rate"]
    assert rate.dims == ("chain", "draw")
    moves = run.history["accepted"][3 * 2 :].double().reshape(12, 4, 4).mean(1).T  # two kernels, two steps a state
    tried = (run.history["cut"][3 * 2 :] >= 0).all()
    assert bool(tried)
    assert torch.equal(torch.as_tensor(rate.values), moves)
    assert torch.equal(acceptance_by_state(run), moves)
    tempered = ENGINES["tempered"][0].run(PROGRAMS["with_eos"], seed=SEED)
    stats = tempered.to_arviz()["sample_stats"]
    assert stats["exponent"].values[-1] == 1
    assert stats["step_ess"].dims == ("chain", "step")
    moved = ENGINES["rejuvenated"][0].run(PROGRAMS["with_eos"], seed=SEED).to_arviz()["sample_stats"]["step_moved"]
    assert moved.dims == ("chain", "step")
