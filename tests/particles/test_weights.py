"""Every number that is read off weights, against its definition written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppl_align.particles.weights import Weights, effective_sample_size, kish

DEAD = torch.full((8,), -math.inf, dtype=torch.float64)


@pytest.fixture
def log_weight() -> Tensor:
    """Three replicates of eight: one with a draw of weight zero, one far from zero nats."""
    found = torch.randn(3, 8, dtype=torch.float64)
    found[1, 3] = -math.inf
    found[2] -= 2000.0
    return found


def by_hand(row: Tensor) -> list[float]:
    """W of one row, in plain Python."""
    top = max(row.tolist())
    w = [math.exp(x - top) for x in row.tolist()]
    return [x / math.fsum(w) for x in w]


def test_rows_by_definition(log_weight: Tensor) -> None:
    weights = Weights(log_weight)
    for r, row in enumerate(log_weight):
        w = by_hand(row)
        top = float(row.max())
        assert weights.normalised[r].tolist() == pytest.approx(w)
        assert float(weights.ess[r]) == pytest.approx(1 / math.fsum(x * x for x in w))
        assert float(weights.largest[r]) == pytest.approx(max(w))
        assert float(weights.perplexity[r]) == pytest.approx(math.exp(-math.fsum(x * math.log(x) for x in w if x > 0)))
        mean = math.fsum(math.exp(x - top) for x in row.tolist()) / 8
        assert float(weights.log_mean[r]) == pytest.approx(top + math.log(mean))
        alive = [x for x in row.tolist() if x > -math.inf]
        half = by_hand(torch.tensor(alive, dtype=torch.float64) / 2)
        centre = math.fsum(h * x for h, x in zip(half, alive, strict=True))
        variance = math.fsum(h * (x - centre) ** 2 for h, x in zip(half, alive, strict=True))
        assert float(weights.foretold_ess[r]) == pytest.approx(len(alive) * math.exp(-variance), rel=1e-6)


def test_pooled_is_one_row_of_all(log_weight: Tensor) -> None:
    pooled, flat = Weights(log_weight).pooled, Weights(log_weight.reshape(1, -1))
    for name in ("ess", "perplexity", "log_mean", "largest", "foretold_ess"):
        assert float(getattr(pooled, name)) == pytest.approx(float(getattr(flat, name)))


def test_each_row_is_weights_of_its_own(log_weight: Tensor) -> None:
    weights = Weights(log_weight)
    assert [float(row.ess) for row in weights] == weights.ess.tolist()


def test_what_does_not_count_has_weight_zero(log_weight: Tensor) -> None:
    counts = torch.ones(3, 8, dtype=torch.bool)
    counts[0, :4] = False
    some = Weights(log_weight).only(counts)
    assert some.normalised[0, 4:].tolist() == pytest.approx(by_hand(log_weight[0, 4:]))
    assert float(some.ess[0]) == pytest.approx(float(Weights(log_weight[0, 4:]).ess))
    assert bool((some.normalised[0, :4] == 0).all())


def test_a_dead_row_has_no_draws() -> None:
    weights = Weights(DEAD)
    assert float(weights.ess) == float(weights.foretold_ess) == float(weights.largest) == 0
    assert float(weights.log_mean) == -math.inf
    assert math.isnan(float(weights.pareto_k))


def test_equal_weights_are_all_effective() -> None:
    weights = Weights(torch.full((50,), -700.0, dtype=torch.float64))
    for name in ("ess", "perplexity", "foretold_ess"):
        assert float(getattr(weights, name)) == pytest.approx(50)
    with_dead = Weights(torch.cat([torch.zeros(50, dtype=torch.float64), DEAD]))
    assert float(with_dead.foretold_ess) == pytest.approx(50)


def test_effective_sample_size_needs_no_normalised_weights() -> None:
    w = torch.rand(4, 9, dtype=torch.float64)
    assert torch.allclose(effective_sample_size(w), effective_sample_size(100 * w))
    assert torch.allclose(kish(w.sum(-1), w.square().sum(-1)), Weights(w.log()).ess)
    assert effective_sample_size(torch.zeros(2, 3)).tolist() == [0, 0]


def test_lognormal_weights_are_foretold() -> None:
    """Of variance 1: n / e."""
    normal = torch.randn(100_000, dtype=torch.float64)
    assert float(Weights(normal).foretold_ess) == pytest.approx(100_000 / math.e, rel=0.03)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_k_hat_of_pareto_draws(k: float) -> None:
    """w = U^-k has P(w > t) = t^(-1/k): shape k."""
    uniform = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(Weights(-k * uniform.log()).pareto_k) == pytest.approx(k, abs=0.1)


def test_what_has_no_tail() -> None:
    for log_weight in (torch.zeros(1000), torch.arange(20.0), torch.cat([torch.zeros(500), DEAD.repeat(60)])):
        assert math.isnan(float(Weights(log_weight).pareto_k))
    rows = torch.stack([torch.zeros(1000), -0.5 * torch.rand(1000).log()])
    assert Weights(rows).pareto_k.isnan().tolist() == [True, False]
