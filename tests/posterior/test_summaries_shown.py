"""Where the numbers of a run are shown they are those computed here from its weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from toys.runs_by_weights import MADE, of, resampled, weighted
from toys.synthetic import exact

from ppl_align import Posterior, compare
from ppl_align.posterior.run_summary import summary_of


def numbers(run: Posterior) -> dict[str, float]:
    """By column of a comparison, computed here."""
    w, r, likelihood = of(run)
    each = np.log(np.exp(run.log_weight.numpy()).mean(1))
    log_z = math.log(np.exp(each).mean())
    texts = run.completions["review"].tokens.tolist()
    return {
        "E[praise]": (w * r).mean(),
        "log_evidence": log_z,
        "log_evidence_spread": each.std(ddof=1),
        "kl_to_prior": (w * likelihood).mean() - log_z,
        "ess": (w.sum(1) ** 2 / (w**2).sum(1)).mean(),
        "largest_weight": (w.max(1) / w.sum(1)).mean(),
        "distinct_completions": float(np.mean([len(set(map(tuple, row))) for row in texts])),
        "num_replicates": len(w),
        "num_particles": w.shape[1],
        "lm_tokens": 2000,
    }


def test_the_table_of_a_comparison_holds_the_same_numbers() -> None:
    runs = {"is": weighted(), "smc": resampled(), "exact": exact()}
    found = compare(runs)
    for name in ("is", "smc"):
        expected = numbers(runs[name])
        assert found.table.loc[name, list(expected)].to_dict() == pytest.approx(expected)
        row = summary_of(runs[name]).row()
        assert {key: found.rows[name][key] for key in row if isinstance(row[key], float)} == pytest.approx(
            {key: value for key, value in row.items() if isinstance(value, float)}, nan_ok=True
        )
    assert math.isnan(found.table.loc["exact", "ess"])


def test_a_printed_comparison_shows_them() -> None:
    run = weighted()
    w, r, _ = of(run)
    expected, n = numbers(run), w.size
    error = (w * (r - (w * r).mean())).std(ddof=1) / math.sqrt(n)
    log_z_error = w.std(ddof=1) / math.sqrt(n)
    lines = [line.split() for line in str(compare({"is": run, "exact": exact()})).splitlines()]
    cells = {cell for words in lines if words[:1] == ["is"] for cell in words[1:]}
    assert {f"{error:.2g}", f"{log_z_error:.2g}"} <= cells
    assert {f"{expected['log_evidence_spread']:.2g}", f"{expected['ess']:.1f}"} <= cells
    assert {f"{expected['largest_weight']:.2g}", "2,000", "200", "4"} <= cells


@pytest.mark.parametrize("name", ["weighted", "resampled"])
def test_a_paragraph_says_the_same_numbers(name: str) -> None:
    run = MADE[name]()
    expected, said = numbers(run), run.summary()
    assert f"log Z = {expected['log_evidence']:.4g}, spread {expected['log_evidence_spread']:.2g} over" in said
    particles = run.log_weight.shape[1]
    assert f"Weight ESS {expected['ess']:.1f} of {particles}, largest weight {expected['largest_weight']:.2g}, " in said
    assert f", {expected['distinct_completions']:.1f} distinct completions per replicate." in said
    value, error = map(float, said.split("E[praise] = ")[1].split(". ")[0].split(" ± "))
    assert abs(value - expected["E[praise]"]) < 0.06 * error, "to the second digit of the error"
