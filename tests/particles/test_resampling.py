"""Which particles go on: rows of low ESS, in proportion to their weights."""

from __future__ import annotations

import torch
from conftest import SEED

from ppl_align.core.seeds import isolated
from ppl_align.particles.resampling import SCHEMES, resample
from ppl_align.particles.weights import Weights


def test_rows_of_low_ess_are_resampled_each_on_its_own():
    """E[Zhat f] stays what it was: particles go on by weight, the row's mean weight with them."""
    log_weight = torch.tensor([[0.0, -1.0, -torch.inf, 0.5], [0.0, 0.1, 0.0, 0.1], [-torch.inf] * 4]).double()
    found = resample(log_weight, 0.9)
    assert found.resampled.tolist() == [True, False, False]
    assert torch.allclose(found.ess, Weights(log_weight).ess)
    assert found.ancestors[1:].tolist() == [[0, 1, 2, 3]] * 2
    assert found.flat.tolist() == [*found.ancestors[0].tolist(), *range(4, 12)]
    assert 2 not in found.ancestors[0], "a weight of zero has no descendants"
    row, size = log_weight[:1].expand(4000, 4), 4000
    with isolated(SEED):
        counts = torch.nn.functional.one_hot(resample(row, 1.0, SCHEMES["multinomial"]).ancestors, 4).double().sum(1)
    expected = 4 * Weights(log_weight).normalised[0]
    error = (expected * (1 - expected / 4) / size).sqrt().clamp_min(1e-12)
    assert bool(((counts.mean(0) - expected).abs() < 4.5 * error + 1e-9).all())
    assert resample(log_weight, 0.0).resampled.any().item() is False
