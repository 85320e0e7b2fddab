"""The transition matrices of ``claims/_power_rule.py`` against the rules, written out as loops."""

from __future__ import annotations

import math
import random

import pytest
import torch
from conftest import SEED

from ppl_align.claims._power_rule import EXACT, PUBLISHED, Rule, Strings, random_lm

LENGTH, BLOCK, MOVES, ALPHA = 4, 2, 3, 2.0
LM = random_lm(3, 7, 1.2)
RULES = [EXACT, PUBLISHED, Rule(no_length=True), Rule(truncates=True), Rule(ratchet=True)]


@pytest.fixture(scope="module")
def strings():
    return Strings(LM, LENGTH, ALPHA)


class Loop:
    """One text after the other, in plain Python; ends with the token 2."""

    def __init__(self, rule, seed):
        self.rule, self.random = rule, random.Random(seed)
        self.p = [LM.log_initial.softmax(-1).tolist(), *LM.log_table.softmax(-1).tolist()]
        self.q = [[x**ALPHA / sum(y**ALPHA for y in row) for x in row] for row in self.p]

    def draw(self, text, limit):
        text = list(text)
        while len(text) < limit and 2 not in text:
            text += self.random.choices(range(3), self.q[text[-1] + 1 if text else 0])
        return text

    def value(self, text):
        before = [0, *(token + 1 for token in text)]
        pairs = list(zip(before[:-1], text, strict=True)) if text else []
        return sum(ALPHA * math.log(self.p[s][v]) - math.log(self.q[s][v]) for s, v in pairs)

    def move(self, x, limit):
        y = self.draw(x[: self.random.randrange(len(x))], len(x) if self.rule.ratchet else limit)
        log_ratio = self.value(y) - self.value(x[: len(y)] if self.rule.truncates else x)
        if not self.rule.no_length:
            log_ratio += math.log(len(x) / len(y))
        return y if math.log(self.random.random()) < log_ratio else x

    def sample(self):
        x = []
        for limit in range(BLOCK, LENGTH + 1, BLOCK):
            x = self.draw(x, len(x) + BLOCK)
            for _ in range(MOVES):
                x = self.move(x, limit)
            if self.rule.ratchet and 2 in x:
                return x
        return x


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_sampler_is_what_its_description_says(rule, strings):
    law = strings.sampler(rule, BLOCK, [1, MOVES])[1]
    assert float(law.sum()) == pytest.approx(1.0)
    row_of = {tuple(v for v in row if v >= 0): i for i, row in enumerate(strings.tokens.tolist())}
    loop, counts, draws = Loop(rule, SEED), torch.zeros(len(law)), 20_000
    for _ in range(draws):
        counts[row_of[tuple(loop.sample())]] += 1
    expected = draws * law
    seen = expected > 5
    assert float(counts[~seen].sum()) < float(expected[~seen].sum()) + 5 * float(expected[~seen].sum() + 1) ** 0.5
    chi2 = float(((counts - expected)[seen] ** 2 / expected[seen]).sum())
    freedom = int(seen.sum()) - 1
    assert chi2 < freedom + 4.5 * (2 * freedom) ** 0.5 + 12  # a tail of 1e-4 at most for any freedom


def test_the_exact_rule_leaves_the_power_as_it_is(strings):
    kernel, target = strings.step(EXACT, LENGTH)[0], strings.target()
    assert torch.allclose(kernel.sum(-1), torch.ones(len(kernel), dtype=torch.float64))
    flow = target[:, None] * kernel
    assert torch.allclose(flow, flow.T, atol=1e-14), "detailed balance"
    published = strings.step(PUBLISHED, LENGTH)[0]
    assert not torch.allclose(target @ published, target, atol=1e-3)
