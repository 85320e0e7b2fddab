"""The record: whatever is done to the particles is done to every field of them, and to nothing else."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pyro
import pyro.distributions as dist
import pytest
import torch
from toys.lms import chain

from ppl_align import completion, environment, reward
from ppl_align.core.seeds import isolated
from ppl_align.particles.particles import Particles, Site
from ppl_align.program.compiled import Program
from ppl_align.runner.runner import Runner

LM = chain(4, 2, dtype=torch.float32, eos_id=3, tokens=["a", "b", "c", ""])


def program():
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
    strict = pyro.sample("strict", dist.Uniform(0.5, 2.0))
    x = completion("x", LM, z[..., None], max_new_tokens=3)
    said = environment("said", lambda text: text[::-1] or "c", x)
    y = completion("y", LM, said, max_new_tokens=2)
    reward("r", lambda t: (t == 1).double().sum(-1), x.tokens, weight=strict, upper=3.0)
    reward("s", lambda t: (t == 2).double().sum(-1), y.tokens, beta=0.5, upper=2.0)


BY_PARTICLE = {
    "values", "log_prior", "log_proposal", "token_log_proposal", "factors", "log_upper", "rewards", "scales",
    "sources", "answers",
}  # fmt: skip
FACTS = {
    "size", "log_lower", "targets", "prefix_closed", "environment", "constraints", "plates", "nesting", "pending",
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> Particles:
    with isolated(0):
        return Runner(Program(program)).finish(Particles(12))


def rows(particles: Particles, field: str, site: str) -> list:
    """What each particle has in a field."""
    value = getattr(particles, field)[site]
    if field == "sources":
        return value.prompt_rows((particles.size,))
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return value if isinstance(value, list) else [value] * particles.size


def test_every_field_is_known_to_this_test():
    assert {field.name for field in fields(Particles)} == BY_PARTICLE | FACTS


def test_the_program_has_something_in_every_field_of_particles(drawn):
    assert all(getattr(drawn, name) for name in BY_PARTICLE)


@pytest.mark.parametrize("index", [[3, 3, 0], [11], list(range(12)), []], ids=str)
def test_take(drawn, index):
    taken = drawn.take(torch.tensor(index, dtype=torch.long))
    assert taken.size == len(index)
    for name in BY_PARTICLE:
        for site in getattr(drawn, name):
            before = rows(drawn, name, site)
            assert rows(taken, name, site) == [before[i] for i in index], (name, site)
    assert all(getattr(taken, name) == getattr(drawn, name) for name in FACTS - {"size", "pending"})


def test_concat_undoes_a_cut_and_joins_prompts(drawn):
    parts = [drawn.take(torch.arange(start, stop)) for start, stop in ((0, 5), (5, 6), (6, 12))]
    whole = Particles.concat(parts)
    assert whole.size == 12
    for name in BY_PARTICLE:
        for site in getattr(drawn, name):
            assert rows(whole, name, site) == rows(drawn, name, site), (name, site)


def test_where_takes_each_from_one_of_two(drawn):
    other = drawn.take(torch.arange(11, -1, -1))
    chosen = torch.arange(12) % 3 == 0
    mixed = drawn.where(chosen, other)
    for name in BY_PARTICLE:
        for site in getattr(drawn, name):
            one, two = rows(drawn, name, site), rows(other, name, site)
            expected = [a if keep else b for a, b, keep in zip(one, two, chosen.tolist(), strict=True)]
            assert rows(mixed, name, site) == expected, (name, site)


def test_repeat_puts_copies_next_to_each_other(drawn):
    assert drawn.take(torch.arange(2)).repeat(3).values["strict"].tolist() == [
        value for value in drawn.values["strict"][:2].tolist() for _ in range(3)
    ]


def test_before_forgets_what_a_run_said(drawn):
    early = drawn.before(["said", "y"])
    assert list(early.values) == ["z", "strict", "x"]
    assert set(early.log_prior) == {"z", "strict", "x"}
    assert not any((early.factors, early.sources, early.answers, early.rewards))


def test_weights_are_psi_and_what_was_drawn(drawn):
    assert torch.allclose(drawn.log_potential, sum(drawn.factors.values()))
    assert torch.equal(drawn.log_ratio, torch.zeros(12).double()), "all of it from the prior"
    assert torch.equal(drawn.log_weight, drawn.log_potential)
    ruled_out = drawn.replace(
        factors={"f": torch.full((12,), -torch.inf).double()},
        log_prior={"x": torch.full((12,), -torch.inf).double()},
        log_proposal={"x": torch.full((12,), -torch.inf).double()},
    )
    assert bool(ruled_out.log_weight.isneginf().all()), "and not NaN"


def test_a_scale_that_is_a_number_in_one_batch_and_drawn_in_another():
    one, two = Particles(2, scales={"r": 1.5}), Particles(3, scales={"r": torch.tensor([1.0, 2.0, 3.0]).double()})
    assert Particles.concat([one, two]).scales["r"].tolist() == [1.5, 1.5, 1.0, 2.0, 3.0]


def test_a_pending_completion_follows_its_particles_and_another_latent_asks_for_a_run():
    runner = Runner(Program(program))
    with isolated(0):
        waiting = runner.advance(Particles(6))
    prompts = waiting.pending.fn.prompt_rows((6,))
    assert waiting.take(torch.tensor([5, 0])).pending.fn.prompt_rows((2,)) == [prompts[5], prompts[0]]
    first = runner.look(Particles(6))
    assert first.take(torch.tensor([1])).pending == Site("z", None)


def test_particles_are_not_changed(drawn):
    with pytest.raises(FrozenInstanceError):
        drawn.size = 3
    before = dict(drawn.values)
    drawn.write("w", torch.zeros(12), torch.zeros(12), torch.zeros(12))
    assert dict(drawn.values) == before
