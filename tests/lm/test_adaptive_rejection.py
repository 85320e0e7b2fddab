"""The search for next tokens that pass a test: every way it can go, and what it says of the mass that passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SEED

from ppl_align.lm import adaptive_rejection
from ppl_align.lm.adaptive_rejection import Search, search
from ppl_align.lm.sampling import TokenTree
from ppl_align.testing.statistics import bonferroni_z, mean_z

Q = np.array([0.35, 0.2, 0.15, 0.12, 0.1, 0.08])
CASES = {
    "two pass": ((1, 4), ()),
    "one rare passes": ((5,), ()),
    "all pass": (range(6), ()),
    "some are known": ((1, 4), (0, 3)),
    "all others are known": ((2,), (0, 1, 3, 4, 5)),
}
each_case = pytest.mark.parametrize("case", CASES)
each_patience = pytest.mark.parametrize("patience", [1, 2, 3, 64])


def outcomes(passes, known=(), given=None):
    """Every search, with its probability: each draw from what is left of q, each coin."""
    stack = [((), 1.0)]
    while stack:
        path, p = stack.pop()
        one = Search(0, known, given)
        for token, coin in path:
            one.begin([token], coin)
            drawn = one.next()
            one.hear(drawn, drawn in passes)
        left = [v for v in range(len(Q)) if v not in one.out]
        if one.done or not left:
            one.ended |= not left
            yield one, p
            continue
        for v in left:
            share, rounds = p * Q[v] / Q[left].sum(), (len(one.rejected) + 1) / adaptive_rejection.PATIENCE
            if v in passes or given is not None or rounds != int(rounds):
                stack.append(((*path, (v, 0.0)), share))
            else:
                stack.append(((*path, (v, 0.0)), share * rounds / (rounds + 1)))
                stack.append(((*path, (v, 0.999999)), share / (rounds + 1)))


def mass(one):
    """T, and 0 for a search that failed."""
    if one.ended:
        return 0.0
    left = 1 - Q[one.out].sum()
    return np.exp(one.log_mass(Q[one.rejected], left))


@each_case
@each_patience
def test_the_estimate_is_unbiased_whatever_was_drawn(case, patience, monkeypatch):
    """E[T 1(v)] = q(v) for every token that passes: then p0 / q of the draw is right on average."""
    monkeypatch.setattr(adaptive_rejection, "PATIENCE", patience)
    passes, known = CASES[case]
    found = list(outcomes(passes, known))
    assert sum(p for _, p in found) == pytest.approx(1)
    for v in range(len(Q)):
        share = sum(p * mass(one) for one, p in found if one.written == v)
        assert share == pytest.approx(Q[v] if v in passes else 0.0)
    assert all(0 < mass(one) <= 1 + 1e-9 for one, _ in found if not one.ended)


@each_case
@each_patience
def test_a_given_token_has_searches_that_count_as_much_as_they_weigh(case, patience, monkeypatch):
    """Their law is that of the others, times T / a: E_given[f(T)] = E[T f(T)] / a. So E_given[1/T] = P(success) / a."""
    monkeypatch.setattr(adaptive_rejection, "PATIENCE", patience)
    passes, known = CASES[case]
    ordinary, held = list(outcomes(passes, known)), list(outcomes(passes, known, given=next(iter(passes))))
    a = Q[list(passes)].sum()
    for f in (lambda t: 1.0, lambda t: 1 / t, np.log, lambda t: t**2):
        size_biased = sum(p * mass(one) * f(mass(one)) for one, p in ordinary if mass(one)) / a
        assert sum(p * f(mass(one)) for one, p in held) == pytest.approx(size_biased)
    if patience == 64:  # nothing is given up
        assert sum(p / mass(one) for one, p in held) == pytest.approx(1 / a)
    assert all(one.written == next(iter(passes)) for one, _ in held)


def test_the_proof_can_fail():
    """Stopping at the first acceptance, as a given token does, is biased upwards for one that is drawn."""
    passes = (1, 4)
    assert sum(p * mass(one) for one, p in outcomes(passes, given=1)) > Q[list(passes)].sum() * 1.2


def found_by(logits, searches, passes, seed=SEED):
    generator = torch.Generator().manual_seed(seed)
    asked = []

    def judge(pairs):
        asked.extend(pairs)
        return [token in passes[i] for i, token in pairs]

    def uniform(rows, columns):
        return torch.rand((rows, columns), generator=generator, dtype=torch.float64)

    return search(logits, TokenTree(logits), searches, judge, uniform), asked


def test_many_searches_at_once_over_two_rows():
    """Batches of candidates are the same process: law of the first acceptance, mean of T, for each row."""
    size = 4000
    logits = torch.stack([torch.tensor(Q).log() + 3.0, torch.tensor(Q[::-1].copy()).log()])
    rows = np.arange(size) % 2
    found, _ = found_by(logits, [Search(int(r)) for r in rows], [(1, 4)] * size)
    t = found.log_mass.exp()
    for row, q in enumerate((Q, Q[::-1])):
        at = rows == row
        for v in (1, 4):
            z = mean_z(torch.where(torch.from_numpy(found.tokens[at] == v), t[at], 0.0), float(q[v]))
            assert abs(z) < bonferroni_z(4)
    assert set(found.tokens.tolist()) == {1, 4}


def test_rare_tokens_of_a_large_vocabulary(monkeypatch):
    """Draws that go on over many rounds, rejected tokens left out; the law is right for two tokens in a thousand."""
    monkeypatch.setattr(adaptive_rejection, "_ROWS", 100)
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(1, 1000, generator=generator)).float()
    order = logits[0].argsort(descending=True)
    passes = (int(order[60]), int(order[150]))
    q = logits[0].double().softmax(-1)
    size = 2000
    searches = [Search(0) for _ in range(size)]
    found, _ = found_by(logits, searches, [passes] * size)
    assert max(len(one.rejected) for one in searches) > 200
    failed = torch.tensor([one.ended for one in searches])
    assert bool(failed.any())
    assert {int(v) for v in found.tokens[~failed.numpy()]} == set(passes)
    assert not {int(v) for v in found.tokens[failed.numpy()]} & set(passes)
    t = torch.where(failed, 0.0, found.log_mass.exp())
    z = mean_z(t, float(q[list(passes)].sum()))
    assert abs(z) < bonferroni_z(1)


def test_where_nothing_passes_every_token_is_asked_about_once():
    (one,) = searches = [Search(0)]
    found, asked = found_by(torch.tensor(Q)[None].log(), searches, [()])
    assert sorted(token for _, token in asked) == list(range(6))
    assert one.ended
    assert int(found.tokens[0]) == one.rejected[0]
    assert float(found.log_mass[0]) == 0.0


def test_tokens_of_probability_zero_are_never_asked_about():
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]])
    _, asked = found_by(logits, [Search(0)], [(1, 3)])
    assert {token for _, token in asked} == {0, 2}


def test_a_hopeless_text_is_not_asked_about():
    found, asked = found_by(torch.tensor(Q)[None].log(), [Search(0, hopeless=True), Search(0)], [(), range(6)])
    assert {i for i, _ in asked} == {1}
    assert found.log_mass.tolist() == [0.0, 0.0]


def test_a_mass_that_is_nearly_nothing_is_exact():
    """1 - (the rest) would have no digits left in float32: the token that passes has probability 1e-9."""
    logits = torch.tensor([[0.0, 1.0, -20.0]])
    (one,) = searches = [Search(0)]
    found, _ = found_by(logits, searches, [(2,)])
    q = logits[0].double().softmax(-1)
    m = [1.0]
    for token in one.rejected:
        m.append(sum(float(q[v]) for v in range(3) if v not in one.rejected[: len(m)]))
    assert len(one.rejected) == 2
    assert token in (0, 1)
    assert float(found.log_mass[0]) == pytest.approx(-np.log(sum(1 / x for x in m)), rel=1e-6)
