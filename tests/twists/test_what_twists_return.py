"""What a twist returns is checked before anything is drawn by it; what it leaves out is said."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pyro
import pytest
import torch
from conftest import SEED

from ppl_align import SMC, ImportanceSampling, MarkovLM, completion, reward
from ppl_align.core.errors import InputError, PartialTextError, PplAlignError
from ppl_align.twists import PrefixReward, Sum, Twist

LM = MarkovLM(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)), eos_id=3, tokens=["a", "b", "\n", "</s>"])


def likes(tokens):
    return (tokens == 1).double().sum(-1)


def program(plated=False):
    with pyro.plate("two", 2) if plated else nullcontext():
        x = completion("x", LM, [[0], [1]] if plated else [0], max_new_tokens=4)
        reward("r", likes, x.tokens, beta=0.8)


class Table(Twist):
    """Returns whatever it was given, once it has seen its rows."""

    def __init__(self, make):
        self.make = make

    def next_token(self, rows):
        return self.make(rows)


def one_column(value):
    def make(rows):
        table = torch.zeros_like(rows.log_probs)
        table[:, 1] = value
        return table

    return make


def raises(rows):
    raise KeyError("no head for this")


WRONG = {
    "nan": (one_column(torch.nan), "below +inf"),
    "+inf": (one_column(torch.inf), "below +inf"),
    "list": (lambda rows: rows.log_probs.tolist(), "a tensor [R, 4] is needed"),
    "array": (lambda rows: np.zeros(tuple(rows.log_probs.shape)), "a tensor [R, 4] is needed"),
    "shape": (lambda rows: rows.log_probs[:, :2], "returned shape [R, 2] for rows of [R, 4]"),
    "raises": (raises, "failed on unfinished texts after 0 tokens: KeyError"),
    "no hidden states": (lambda rows: rows.hidden.float(), "failed on unfinished texts after 0 tokens: AttributeError"),
}


@pytest.mark.parametrize("among", ["alone", "in a sum"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_table_is_an_error_of_one_line(name, among):
    make, says = WRONG[name]
    twist = Table(make) if among == "alone" else ("prefix", Table(make))
    with pytest.raises(PplAlignError) as caught:
        SMC(8, 2, twist=twist).run(program)
    said = str(caught.value)
    assert "\n" not in said
    assert says in said.replace("[1, ", "[R, ")


def test_a_trained_head_need_not_be_detached():
    weight = torch.nn.Parameter(torch.randn(4, 4))
    trained = Table(lambda rows: weight[0] + 0 * rows.log_probs)
    detached = Table(lambda rows: weight[0].detach() + 0 * rows.log_probs)
    whole = Table(lambda rows: torch.ones_like(rows.log_probs, dtype=torch.long))
    a, b = (SMC(16, 2, twist=twist).run(program, seed=SEED) for twist in (trained, detached))
    assert torch.equal(a.log_weight, b.log_weight)
    assert SMC(16, 2, twist=whole).run(program).log_evidence.isfinite().all(), "whole numbers are numbers"


class Greedy(Table):
    defensive = 2.0


@pytest.mark.parametrize(
    ("twist", "says"),
    [
        (Table, "write Table"),
        (Greedy(one_column(1.0)), "between 0 and 1"),
        (("prefix", PrefixReward(-1.0)), "one is there twice"),
        (("lookahead", "lookahead"), "one is there twice"),
    ],
    ids=["class", "defensive", "prefix", "lookahead"],
)
def test_what_is_no_twist_is_refused(twist, says):
    with pytest.raises(InputError, match=says):
        SMC(8, 2, twist=twist)


def test_a_sum_is_of_twists_and_functions():
    def judgement(prefixes):
        return 0.2 * prefixes.tokens.double().sum(-1)

    both = SMC(16, 2, twist=Sum([judgement, PrefixReward()])).run(program, seed=SEED)
    assert torch.equal(both.log_weight, SMC(16, 2, twist=(judgement, "prefix")).run(program, seed=SEED).log_weight)
    with pytest.raises(InputError, match="a sum is of twists"):
        Sum(["prefix"])


@pytest.mark.parametrize("kind", ["prefix", "table"])
def test_what_is_given_up_for_good_is_remarked_on(kind):
    """log psi = -inf where the text could still have gone well: Zhat is too small on average."""

    def hopeless(prefixes):
        return torch.where(prefixes.tokens[:, -1] == 2, -torch.inf, 0.0).double()

    class Certain(Table):
        certain = True

    twist = hopeless if kind == "prefix" else Table(one_column(-torch.inf))
    run = SMC(32, 200, twist=twist, ess_threshold=0.9).run(program, seed=SEED)
    assert any("log psi = -inf" in warning for warning in run.warnings)
    exact = ImportanceSampling(4000, 50).run(program, seed=SEED).log_evidence.exp()
    assert float(run.log_evidence.exp().mean()) < float(exact.mean()) - 4 * float(exact.std()) / 50**0.5
    assert not SMC(32, 4, twist=Certain(one_column(-torch.inf))).run(program).warnings
    assert not SMC(32, 4, twist="prefix").run(program).warnings


def test_a_table_that_proposes_steers():
    """As the same tokens from a proposal do: diagnostics must not take its draws for draws of the prior."""
    table = one_column(0.7)

    def proposal(rows):
        return (rows.log_probs + table(rows)).log_softmax(-1)

    class Defensive(Table):
        defensive = 0.2

    by_twist = SMC(32, 4, twist=Table(table), ess_threshold=0.0).run(program, seed=SEED)
    by_proposal = SMC(32, 4, proposal=proposal, twist=lambda p: torch.zeros(len(p.tokens)), ess_threshold=0.0)
    by_proposal = by_proposal.run(program, seed=SEED)
    assert torch.allclose(by_twist.log_weight, by_proposal.log_weight, atol=1e-6)
    assert by_twist.steered
    assert by_proposal.steered
    assert not SMC(32, 4, twist=Defensive(table)).run(program).steered, "a share of the prior reaches everything"
    assert not SMC(32, 4, twist="prefix").run(program).steered


@pytest.mark.parametrize("plated", [False, True])
def test_prefixes_show_their_texts(plated):
    seen = []

    def judge(prefixes):
        texts = prefixes.texts().tolist()
        assert len(texts) == len(prefixes.tokens)
        seen.extend(
            zip(texts, prefixes.tokens.reshape(len(texts), -1, prefixes.tokens.shape[-1]).tolist(), strict=True)
        )
        return torch.zeros(len(texts))

    SMC(16, 2, twist=judge).run(program, plated, seed=SEED)
    assert {len(texts) for texts, _ in seen} == {2 if plated else 1}
    for texts, tokens in seen:
        for text, ids in zip(texts, tokens, strict=True):
            upto = ids.index(3) if 3 in ids else len(ids)
            assert text == "".join("ab\n"[i] for i in ids[:upto])


def test_a_function_that_returns_no_numbers():
    with pytest.raises(PartialTextError, match="one number for each of"):
        SMC(8, 2, twist=lambda prefixes: [None] * len(prefixes.tokens)).run(program)
