"""Runs that are pooled keep what each of them promises: held to the contract of engines, as one run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toys.contracts import contract_of, oracle_of
from toys.synthetic import exact, importance, smc

from ppl_align import SMC, SVI, Engine, Enumeration, ImportanceSampling, Posterior, Rejection, compare, completion
from ppl_align.core.errors import AllDeadError
from ppl_align.posterior import evidence
from ppl_align.posterior.lineage import ancestors_by_replicate
from ppl_align.posterior.pooling import pooled
from ppl_align.posterior.prior import prior_log_weight
from ppl_align.posterior.run_summary import summary_of
from ppl_align.program import reward
from ppl_align.testing.programs import EOS

PROGRAMS = ("with_eos", "upstream_latent", "observed_ending", "plated", "hard_rejection")


@dataclass(frozen=True)
class InRounds(Engine):
    """``engine``, then what :meth:`Engine.more` says of 1 and of 2 times as many particles; their pool."""

    engine: Any = None
    num_replicates: int = 4
    name = "in rounds"

    def run(self, model: Any, *args: Any, seed: int = 0, **kwargs: Any) -> Posterior:
        engine = replace(self.engine, num_replicates=self.num_replicates)
        runs = [engine.run(model, *args, seed=seed, **kwargs)]
        for factor in (1, 2):
            more = engine.more(factor, runs[0])
            assert more is not None
            runs.append(more.run(model, *args, seed=seed + 1000 * factor, **kwargs))
        return replace(pooled(runs), engine=self.name)

    def _infer(self, task: Any) -> Posterior:
        raise NotImplementedError


@pytest.mark.parametrize(
    "engine",
    [ImportanceSampling(16), SMC(16, twist="prefix"), SMC(16), SVI(num_steps=8, num_particles=16, guide="table")],
    ids=lambda engine: f"{engine.name}-{getattr(engine, 'twist', '')}",
)
def test_a_pool_keeps_the_contract(engine: Engine) -> None:
    programs = PROGRAMS if engine.name != "svi" else ("with_eos",)
    report = contract_of(InRounds(engine), {name: oracle_of(name) for name in programs})
    assert report, str(report)


def test_a_pool_of_exact_draws_keeps_the_contract() -> None:
    report = contract_of(InRounds(Rejection(num_particles=8)), {"with_eos": oracle_of("with_eos")})
    assert report, str(report)


def test_draws_of_one_engine_are_no_other_for_coming_in_rounds() -> None:
    runs = [importance(seed, particles=particles) for seed, particles in ((0, 16), (1, 16), (2, 32))]
    pool = pooled(runs)
    assert pool.log_weight.shape == (len(runs[0].log_weight), 64)
    z = torch.stack([run.log_evidence for run in runs]).exp()
    assert torch.allclose(pool.log_evidence.exp(), (z * torch.tensor([[0.25], [0.25], [0.5]])).sum(0))
    total = torch.cat([run.log_weight.reshape(-1) for run in runs])
    values = torch.cat([run.rewards["praise"].reshape(-1) for run in runs]).double()
    assert pool.mean("praise").value == pytest.approx(float((total.softmax(0) * values).sum()))
    assert pool.cost.lm_tokens == sum(run.cost.lm_tokens for run in runs)
    assert pool.history["rounds"].tolist() == [16, 16, 32]


def test_populations_of_a_pool_stay_apart() -> None:
    """First particles are told apart, and the narrowest place is that of the union."""
    runs = [smc(seed) for seed in range(3)]
    pool, size = pooled(runs), runs[0].log_weight.shape[1]
    ancestors = [ancestors_by_replicate(run) for run in runs]
    assert ancestors_by_replicate(pool) == [sum(each) for each in zip(*ancestors, strict=True)]  # type: ignore[arg-type]
    assert pool.ess_by_step is not None
    share = torch.stack([run.log_evidence for run in runs]).softmax(0)
    for step, of_all in enumerate(pool.ess_by_step):
        each = torch.stack([torch.as_tensor(run.ess_by_step)[step].double() for run in runs])
        assert torch.allclose(of_all, 1 / (share**2 / each).sum(0))
        assert bool((of_all <= 3 * size).all())


def test_the_error_of_a_pool_is_its_spread() -> None:
    truth = exact().mean("praise").value
    pools = [pooled([smc(10 * seed + k, replicates=8) for k in range(3)]).mean("praise") for seed in range(120)]
    z = [(found.value - truth) / found.standard_error for found in pools]
    values = torch.tensor([found.value for found in pools])
    errors = torch.tensor([found.standard_error for found in pools])
    assert abs(sum(z) / len(z)) < 4 / math.sqrt(len(z)) + 0.2
    assert float((errors**2).mean().sqrt()) == pytest.approx(float(values.std()), rel=0.25)


def test_a_round_in_which_all_died_counts_as_zero() -> None:
    run = importance(particles=16)
    pool = pooled([run], died=48)
    assert torch.allclose(pool.log_evidence, run.log_evidence - math.log(4))
    assert pool.mean("praise").value == pytest.approx(run.mean("praise").value)
    assert bool(prior_log_weight(pool)[:, 16:].isneginf().all()), "they are no draws of the prior either"
    assert float(pool.importance_weights.pooled.ess) == pytest.approx(float(run.importance_weights.pooled.ess))


def test_with_the_rounds_that_died_the_evidence_is_unbiased() -> None:
    """One text in nine is allowed, of 4 draws; those pools that are there, and zero for the others, average to Z."""

    def rare() -> None:
        x = completion("x", EOS, [], max_new_tokens=2)
        reward("r", lambda t: torch.where((t == 1).all(-1), 0.0, -torch.inf), x.tokens, beta=1.0)

    z = math.exp(evidence.log_evidence(Enumeration().run(rare)))
    found = []
    for seed in range(600):
        runs, died = [], 0
        for k in range(3):
            try:
                runs.append(ImportanceSampling(2, 2).run(rare, seed=3 * seed + k))
            except AllDeadError:
                died += 2
        found.append(float(pooled(runs, died).log_evidence.exp().mean()) if runs else 0.0)
    values = torch.tensor(found, dtype=torch.float64)
    assert (values == 0).any()
    assert abs(float(values.mean()) - z) < 4 * float(values.std()) / math.sqrt(len(values))


def test_a_pool_is_saved_shown_and_compared(tmp_path: Path) -> None:
    pool = pooled([smc(seed) for seed in range(2)])
    loaded = Posterior.load(pool.save(tmp_path / "pool.nc"))
    assert torch.equal(loaded.log_weight, pool.log_weight)
    assert torch.equal(loaded.history["rounds"], pool.history["rounds"])
    assert loaded.completions["review"].texts() == pool.completions["review"].texts()
    again = pooled([loaded, loaded])
    assert (
        again.completions["review"].texts()[: loaded.log_weight.shape[1]]
        == (loaded.completions["review"].texts()[: loaded.log_weight.shape[1]])
    )
    assert summary_of(compare({"pool": pool, "loaded": loaded}).runs["pool"]).effective_draws > 0


def test_more_of_what_is_exact_is_none() -> None:
    run = Enumeration().run(oracle_of("with_eos").model)
    assert Enumeration().more(2, run) is None
    assert ImportanceSampling(8).more(3, None) == ImportanceSampling(24)
    assert SVI().more(2, None) is None
