"""Where "± ?" is printed, it is said why, and what gives an error."""

import math
from dataclasses import replace

import pytest
import torch
from toys.synthetic import importance, smc, weigh

from ppl_align import SMC, CallableLM, ImportanceSampling, compare, completion, reward
from ppl_align.posterior.unstated import unstated

LM = CallableLM(3, lambda prefix: torch.zeros(prefix.shape[0], 3), name="uniform")


def program():
    x = completion("x", LM, [0], max_new_tokens=3)
    reward("twos", lambda tokens: (tokens == 2).sum(-1).double(), x.tokens, beta=1.0)
    return x


def ended(posterior):
    """Replicates 2 and on die: one population is left."""
    log_weight = posterior.log_weight.clone()
    log_weight[1:] = -math.inf
    return replace(posterior, log_weight=log_weight)


def alone(posterior):
    """All the weight on one draw."""
    log_weight = torch.full_like(posterior.log_weight, -math.inf)
    log_weight[0, 0] = 0.0
    return replace(posterior, log_weight=log_weight)


def infinite(posterior):
    return replace(posterior, rewards={"praise": torch.full_like(posterior.log_weight, math.inf)})


def inapplicable(posterior):
    return replace(posterior, rewards={"praise": torch.full_like(posterior.log_weight, math.nan)})


@pytest.mark.parametrize(
    ("posterior", "said"),
    [
        (smc(replicates=1), "a single population is too few"),
        (smc(replicates=3), "3 populations are too few"),
        (ended(smc()), "one population carries all the weight"),
        (alone(importance()), "fewer than 2 effective draws"),
        (infinite(importance()), "infinite"),
        (inapplicable(importance()), "applies to none"),
    ],
)
def test_why_there_is_no_error(posterior, said):
    assert str(posterior.mean("praise")).endswith("± ?")
    (line,) = unstated(posterior)
    assert "E[praise]" in line
    assert said in line
    assert f"± ?: {line}." in posterior.summary()
    headed = " ".join(str(compare({"one": posterior, "two": importance()})).split())
    assert "± ?: one has no standard error of E[praise]" in headed


def test_nothing_is_said_where_there_is_an_error():
    for posterior in (smc(), importance(), smc(replicates=4)):
        assert unstated(posterior) == []
        assert "?" not in posterior.summary()
        assert "?" not in str(compare({"one": posterior}))


def test_what_is_advised_gives_an_error():
    single = SMC(num_particles=16, num_replicates=1, twist="prefix", ess_threshold=1.0).run(program)
    assert "num_replicates=4 gives one" in repr(single)
    several = SMC(num_particles=16, num_replicates=4, twist="prefix", ess_threshold=1.0).run(program)
    assert several.mean("twos").standard_error > 0
    assert "?" not in repr(several)


def test_runs_that_lack_an_error_for_one_reason_share_a_line():
    text = " ".join(str(compare({"a": smc(0, replicates=1), "b": smc(1, replicates=1), "c": importance()})).split())
    assert text.count("± ?:") == 1
    assert "± ?: a, b have no standard error of E[praise]" in text


def test_it_stands_in_the_report():
    from ppl_align.report.html import render

    assert "num_replicates=4 gives one" in render(compare({"a": smc(replicates=1), "b": importance()}))


def test_one_effective_draw_of_a_real_run():
    with_one = ImportanceSampling(num_particles=1, num_replicates=1).run(program)
    assert "fewer than 2 effective draws" in repr(with_one)


def test_a_single_episode():
    index = torch.zeros(1, 1, dtype=torch.long)
    decided = weigh("svi", index, torch.zeros(1, 1), 0.8, kind="policy", log_weight=torch.zeros(1, 1))
    assert any("of J: a single episode" in line for line in unstated(decided))
