"""What keeps a run from being believed: in numbers that a reader can compare, under the name that they deserve."""

from __future__ import annotations

import re

import pytest
import torch

from ppl_align import ImportanceSampling, MarkovLM, Rejection, completion, reward
from ppl_align.core.estimate import Estimate
from ppl_align.posterior import evidence
from ppl_align.posterior.doubts import doubts, too_wide

LM = MarkovLM(torch.zeros(2, 2), torch.zeros(2))


def tilted(beta: float) -> None:
    x = completion("x", LM, [], max_new_tokens=12)
    reward("ones", lambda tokens: (tokens == 1).sum(-1), x.tokens, beta=beta, upper=12.0)


def test_a_shift_that_draws_of_the_posterior_do_not_know_is_called_the_least_that_it_may_be() -> None:
    run = Rejection(8, 4).run(tilted, 1.0)
    (line,) = [doubt.reason for doubt in doubts(run) if doubt.reason.startswith("E[ones]")]
    said = re.search(r"not to 30% of the least that it may have moved, ([\d.]+)", line)
    assert said is not None, line
    least, known = float(said[1]), run.mean("ones").value - 6.0
    assert least == pytest.approx(evidence.kl_to_prior(run).value, rel=0.05)
    assert least < known, "the true shift is larger"


def test_a_shift_that_is_known_is_called_so() -> None:
    run = ImportanceSampling(16, 4).run(tilted, 6.0)
    lines = [doubt.reason for doubt in doubts(run) if doubt.reason.startswith("E[ones]")]
    assert any("of what it has moved" in line for line in lines), lines


@pytest.mark.parametrize("error", [0.2552, 0.25512, 0.3, 2.0])
def test_what_is_beyond_a_limit_is_printed_so(error: float) -> None:
    estimate = Estimate(1.0, error)
    found = too_wide("log Z", estimate, 0.5, "0.5 nats")
    assert found is not None
    shown = re.search(r"± ([\d.]+) ", found.reason)
    assert shown is not None
    assert 0.5 < float(shown[1]) == pytest.approx(estimate.half_width(0.95), rel=0.05)
