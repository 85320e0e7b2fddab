"""Moment constraints on a program that can be enumerated."""

from __future__ import annotations

import pytest
import torch

from ppl_align import completion, moment_constraint, reward
from ppl_align.lm import MarkovLM
from ppl_align.testing import Oracle
from ppl_align.testing.programs import EOS, LADDER


class Feature:
    """A function of a list of ids (EOS included), with bounds, as Rejection wants them; None: does not apply."""

    def __init__(self, fn, lower=0.0, upper=1.0):
        self.fn, self.lower, self.upper = fn, lower, upper

    def __call__(self, completion_ids, **_):
        return [None if (value := self.fn(ids)) is None else float(value) for ids in completion_ids]


ONE = Feature(lambda ids: 1 in ids)
FIRST = Feature(lambda ids: ids[:1] == [0])
SCORE = Feature(lambda ids: 1000 * sum(LADDER[ids]), -2800.0, 3600.0)
WHERE = Feature(lambda ids: ids[0] == 1 if 1 in ids else None)
"""Of the texts that have a 1: does it begin with it?"""

MESSAGES = MarkovLM(
    torch.tensor([[0.2, 1.0, -0.4], [0.6, -0.3, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64),
    torch.tensor([0.8, -0.5, -0.9], dtype=torch.float64),
    eos_id=2,
    tokens=["he ", "she ", ""],
)


def says_she(texts):
    return [float("she" in text) if text else None for text in texts]


def make(features, targets, *, rewarded=True, **settings):
    """A constraint, and a program that it stands in."""
    constraint = moment_constraint(features, targets, **settings)

    def program(prompt=(0,)):
        x = completion("x", EOS, list(prompt), max_new_tokens=4)
        if rewarded:
            reward("r", lambda t: 0.8 * (t == 0).sum(-1), x.tokens, upper=3.2)
        constraint(x)

    return constraint, program


CONSTRAINTS = {
    "one": ({"one": ONE}, {"one": 0.7}),
    "rare": ({"first": FIRST}, {"first": 0.02}),
    "large units": ({"score": SCORE}, {"score": 900.0}),
    "where it applies": ({"where": WHERE}, {"where": 0.7}),
    "nearly so": ({"where": WHERE}, {"where": 0.25}),
    "two": ({"one": ONE, "score": SCORE}, {"one": 0.6, "score": 500.0}),
    "three": ({"one": ONE, "first": FIRST, "where": WHERE}, {"one": 0.75, "first": 0.4, "where": 0.6}),
}
each_constraint = pytest.mark.parametrize("name", CONSTRAINTS)


def enumerated(program, constraint, *args):
    """(log p [S], phi [S, K], mu [K]) of the program without the constraint, by enumeration."""
    with constraint._switched_off():
        oracle = Oracle(program, *args)
    phi = torch.stack([oracle.rewards[name] for name in constraint.targets], -1)
    return oracle.log_target, phi, torch.tensor(list(constraint.targets.values()), dtype=torch.float64)


def tilted(log_p, phi, mu, weights):
    return (log_p + (phi - mu).nan_to_num(0.0) @ weights).log_softmax(0)


def means(log_q, phi):
    applies = ~phi.isnan()
    q = log_q.exp()[:, None]
    return (q * phi.nan_to_num(0.0)).sum(0) / (q * applies).sum(0)
