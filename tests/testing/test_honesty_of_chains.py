"""``make honesty`` on engines that move texts: runs are cut by replicates and chains, and chains are judged by E[r]."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ppl_align import MCMC, SMC, ParticleGibbs, TemperedSMC
from ppl_align.core.estimate import Estimate
from ppl_align.kernels import SuffixMH
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.lineage import ancestors_by_replicate
from ppl_align.testing.honesty import coverage, greens
from ppl_align.testing.honesty.coverage import CHAINS, Cells, effective, measure
from ppl_align.testing.honesty.greens import FAR, JUDGED, SHOWN, Greens, is_wrong, round_of
from ppl_align.testing.honesty.groups import groups, of_chains, widened
from ppl_align.testing.honesty.page import page
from ppl_align.testing.honesty.problems import problem

SEED = 1
SMALL = {
    "tempered": TemperedSMC(16, max_moves=2),
    "rejuvenated": SMC(16, twist="prefix", every=2, ess_threshold=1.0, rejuvenate=SuffixMH()),
    "mcmc": MCMC(num_chains=4, num_samples=6, num_warmup=2),
    "gibbs": ParticleGibbs(SMC(4, twist="prefix", resampling="multinomial"), 4, 6, num_warmup=2),
}
BY_REPLICATE = {  # what history has of each replicate or chain, in its second dimension
    "tempered": ("ess", "resampled", "log_evidence_increment"),
    "rejuvenated": ("ess", "resampled", "log_evidence_increment", "ancestors", "moved"),
    "mcmc": ("cut", "accepted"),
    "gibbs": ("accepted",),
}
SHARED = {"tempered": ("exponent", "num_moves", "move_accepted", "step"), "mcmc": ("move_site", "num_warmup")}


@pytest.mark.parametrize("name", SMALL)
def test_a_run_is_cut_into_runs(name: str) -> None:
    truth = problem("graded", 2, 1.0, longest=8)
    run = widened(SMALL[name], 6).run(truth.model, seed=SEED)
    assert len(run.log_weight) == 6
    for at, part in enumerate(groups(run, 2)):
        rows = slice(2 * at, 2 * at + 2)
        assert part.kind is run.kind
        assert part.rewards["r"].equal(run.rewards["r"][rows]), "states of a chain stay in their order"
        assert part.completions["x"].tokens.equal(run.completions["x"].tokens[rows])
        assert part.log_weight.equal(run.log_weight[rows])
        for key in BY_REPLICATE[name]:
            assert part.history[key].nan_to_num(-1).equal(run.history[key][:, rows].nan_to_num(-1)), key
        for key in SHARED.get(name, ()):
            assert torch.as_tensor(part.history[key] == run.history[key]).all(), key
        if not of_chains(SMALL[name]):
            assert ancestors_by_replicate(part) == (ancestors_by_replicate(run) or [])[rows]
        known = {*BY_REPLICATE[name], *SHARED.get(name, ()), "lineage", "num_warmup", "step"}
        assert {key for key, value in run.history.items() if getattr(value, "ndim", 0) > 1} <= known
    assert next(groups(run, 4)).mean("r").value == pytest.approx(
        float((run.weights[:4] * run.rewards["r"][:4]).sum() / run.weights[:4].sum())
    )


def test_of_chains_only_the_mean_is_judged() -> None:
    truth = problem("graded", 3, 0.4)
    right, off = Estimate(truth.mean, 0.1), Estimate(truth.mean + 0.4 * (truth.mean - truth.prior_mean), 0.1)
    assert not is_wrong(None, right, truth)
    assert is_wrong(None, off, truth)
    assert is_wrong(Estimate(truth.log_z + 1.1, 1.0), right, truth)


def test_what_chains_are_worth_is_no_share_of_prior_draws() -> None:
    truth = problem("graded", 3, 0.4, longest=8)
    chains = MCMC(num_chains=8, num_samples=32).run(truth.model, seed=SEED)
    populations = SMALL["tempered"].run(truth.model, seed=SEED)
    assert chains.kind is Kind.CHAIN
    assert 1 < effective(chains, truth, False) < chains.log_weight.numel()
    assert effective(populations, truth, False) == populations.log_weight.numel() * truth.share


@pytest.mark.parametrize("name", ["mcmc", "gibbs"])
def test_chains_have_rows_of_their_means(name: str) -> None:
    cells = measure(name, SMALL[name], "graded", 3, SEED)
    assert set(cells.cells) == {(size, "E[r]") for size in CHAINS}
    assert all(cell.runs == 18 for cell in cells.cells.values())
    again = Cells.from_dict(cells.as_dict())
    assert again.as_dict() == cells.as_dict()
    settings = dict.fromkeys(_settings(), 1)
    lines = page("command", {(name, "graded"): again}, Greens(), settings).splitlines()
    assert [line.split("|")[3].strip() for line in lines if line.startswith(f"| {name} | graded")] == ["4", "8"]


def test_runs_that_share_a_pilot_are_as_many_as_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = TemperedSMC.run

    def counted(self: TemperedSMC, *args: object, **options: object) -> object:
        seen.append(self.num_replicates)
        return plain(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(TemperedSMC, "run", counted)
    monkeypatch.setattr(coverage, "DISTANCES", (0.15,))
    cells = measure("tempered", SMALL["tempered"], "graded", 12, SEED)
    assert seen == [8 * coverage.TOGETHER, 8 * 2]
    assert all(cell.runs == 12 for cell in cells.cells.values())


def test_greens_of_engines_that_move_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted adds up, and all rows have seen as many runs."""
    monkeypatch.setattr(greens, "_EACH", 3)
    monkeypatch.setattr(greens, "ENGINES", greens.ENGINES | SMALL | {"smc": SMC(64, twist="prefix")})
    found = round_of(SEED, "graded", 32, 4, [(name, 0) for name in FAR], problems=4)
    rows = {diagnostic: counts for (diagnostic, _, _), counts in found.strata.items()}
    assert set(rows) == set(FAR)
    assert len({counts.runs for counts in rows.values()}) == 1
    assert rows["tempered"].runs % 3 == 0
    assert Greens.from_dict(found.as_dict()).as_dict() == found.as_dict()
    assert all(JUDGED[name] in SHOWN[name] for name in JUDGED)
    assert not math.isnan(greens.how_often("graded", 0))


def test_more_chains_are_the_same_engine() -> None:
    assert widened(MCMC(num_warmup=3), 40) == MCMC(num_warmup=3, num_chains=40)
    assert widened(TemperedSMC(8), 40) == replace(TemperedSMC(8), num_replicates=40)


def _settings() -> set[str]:
    names = "seeds fewer longest each states pilot particles replicates most dear greens max_draws first budget"
    return {*names.split(), "svi_steps", "minutes", "tempered", "chains"}
