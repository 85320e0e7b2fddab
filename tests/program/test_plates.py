"""Plates: what is drawn before one has room for it, and what does not fit is said in one line."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from toys.contracts import contract_of

from ppl_align import SMC, SVI, Enumeration, ImportanceSampling, Rejection, completion, reward
from ppl_align.core.errors import ModelError
from ppl_align.particles.particles import Particles
from ppl_align.program import Program
from ppl_align.testing.oracle import Oracle
from ppl_align.testing.programs import EOS, FIXED, STEP, count_score


def latent_first():
    """Arithmetic with a latent inside the plate, before the first site there."""
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
    with pyro.plate("pair", 2):
        w = (z + torch.arange(2)) % 3
        x = completion("x", FIXED, w[..., None], max_new_tokens=1)
        reward("r", count_score, x.tokens, upper=STEP)


def completion_first():
    """A completion outside, which the prompts of the plate hold, one for each element."""
    p = completion("p", EOS, [0], max_new_tokens=1)
    reward("q", count_score, p.tokens, upper=STEP)
    with pyro.plate("pair", 2):
        x = completion("x", FIXED, (torch.tensor([[0], [1]]), p), max_new_tokens=1)
        reward("r", count_score, x.tokens, upper=STEP)


def one_inside_another():
    z = pyro.sample("z", dist.Bernoulli(0.4)).long()
    with pyro.plate("rows", 2):
        y = pyro.sample("y", dist.Bernoulli(torch.sigmoid(z - torch.tensor([0.5, -0.5])))).long()
        with pyro.plate("columns", 2):
            prompts = (y + z + torch.tensor([[0], [1]])) % 3
            x = completion("x", FIXED, prompts[..., None], max_new_tokens=1)
            reward("r", count_score, x.tokens, upper=STEP)


PROGRAMS = {p.__name__: p for p in (latent_first, completion_first, one_inside_another)}
ENGINES = [
    Enumeration(),
    ImportanceSampling(32),
    SMC(32, twist="prefix", ess_threshold=0.9),
    SVI(num_steps=2, num_particles=32),
    Rejection(4, max_draws=1_000_000),
]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_what_is_drawn_before_a_plate_has_room_for_it(engine):
    contract_of(engine, PROGRAMS, seed=5, num_replicates=60).raise_if_failed()


def test_against_a_sum_by_hand():
    total = torch.zeros(())
    for p, log_p in zip((0, 1, 2), EOS.log_table[0], strict=True):
        each = [FIXED.log_table[p if p != 2 else own] + count_score(torch.arange(3)[:, None]) for own in (0, 1)]
        total = total + (log_p + count_score(torch.tensor([p])) + sum(e.logsumexp(0) for e in each)).exp()
    assert Oracle(completion_first).log_evidence == pytest.approx(float(total.log()), abs=1e-9)


def test_room_is_found_out_without_asking_a_reward_or_a_random_number():
    asked = []

    def program():
        x = completion("x", EOS, [0], max_new_tokens=2)
        reward("r", lambda texts: [asked.append(t) or 0.0 for t in texts], x)
        with pyro.plate("three", 3):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.zeros(3))

    compiled, state = Program(program), torch.get_rng_state()
    compiled.look()
    assert compiled.nesting == 1
    assert asked == []
    assert torch.equal(torch.get_rng_state(), state)
    assert compiled.run(Particles(4), draw=True).pending.fn.batch_shape == (4, 1)


def a_dimension_too_many():
    z = pyro.sample("z", dist.Categorical(torch.ones(3)))
    with pyro.plate("pair", 2):
        completion("x", FIXED, ((z[..., None] + torch.arange(2)) % 3)[..., None], max_new_tokens=2)


def of_another_size():
    with pyro.plate("pair", 2):
        completion("x", FIXED, [[0], [1], [2]], max_new_tokens=2)


def sums_that_do_not_fit():
    with pyro.plate("pair", 2):
        z = pyro.sample("z", dist.Categorical(torch.ones(3)))
        completion("x", FIXED, ((z + torch.arange(3)) % 3)[..., None], max_new_tokens=2)


def no_plate_at_all():
    completion("x", FIXED, [[0], [1]], max_new_tokens=2)


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (
            a_dimension_too_many,
            r"'x' is a batch of \[\d+, \d+, 2\], but no plate declares its dimension -3: outside of a plate",
        ),
        (of_another_size, r"site 'x' has 3 elements in dimension -1, its plate 'pair' has 2"),
        (sums_that_do_not_fit, r"shapes do not fit in line \d+ \(.*arange\(3\).*index from the right"),
        (
            no_plate_at_all,
            r"completion 'x' is a batch of \[\d+, 2\], but no plate declares its dimension -1: write it under",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(program, says):
    with pytest.raises(ModelError, match=says) as caught:
        ImportanceSampling(4, 2).run(program)
    assert "\n" not in str(caught.value)
