"""Every run of a program meets the same sites: one that comes or goes later is named."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_align import CallableLM, completion, reward
from ppl_align.core.errors import ModelError
from ppl_align.lints import lint
from ppl_align.particles.particles import Particles
from ppl_align.program import Program
from ppl_align.program.compiled import refuse_change

COIN = CallableLM(2, lambda prefix: torch.zeros(len(prefix), 2, dtype=torch.float64), tokens=["a", "b"], name="coin")
HEADS, TAILS = torch.ones(3), torch.zeros(3)


def lucky(test):
    """A reward for those who ask for the truth of a batch in a way that does not fail."""

    def program():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        word = completion("word", COIN, [], max_new_tokens=1)
        reward("always", lambda tokens: tokens[..., 0], word.tokens)
        if test(z > 0):
            reward("luck", lambda tokens: tokens[..., 0], word.tokens)

    return program


WORD = torch.tensor([[0], [1], [0]])


@pytest.mark.parametrize(("first", "then"), [(TAILS, HEADS), (HEADS, TAILS)], ids=["comes", "goes"])
def test_a_site_that_comes_or_goes_is_named(first, then):
    program = Program(lucky(torch.any))
    program.run(Particles(3, {"z": first, "word": WORD}), draw=False)
    program.run(Particles(3, {"z": first, "word": WORD}), draw=False)
    with pytest.raises(ModelError, match=r"structure changes from run to run \(site 'luck'\)") as caught:
        program.run(Particles(3, {"z": then, "word": WORD}), draw=False)
    assert "\n" not in str(caught.value)


def test_other_numbers_of_particles_run_the_same_program():
    program = Program(lucky(torch.any))
    program.run(Particles(3, {"z": TAILS, "word": WORD}), draw=False)
    with pytest.raises(ModelError, match="site 'luck'"):
        program.run(Particles(1, {"z": HEADS[:1], "word": WORD[:1]}), draw=False)
    other = Program(lucky(torch.any))
    other.run(Particles(1, {"z": HEADS[:1], "word": WORD[:1]}), draw=False)
    with pytest.raises(ModelError, match="site 'luck'"):
        other.run(Particles(3, {"z": TAILS, "word": WORD}), draw=False)


@pytest.mark.parametrize(
    ("known", "seen", "named"),
    [
        ("ab", "abc", "c"),
        ("abc", "ab", "c"),
        ("ac", "abc", "b"),
        ("abc", "ac", "b"),
        ("abd", "acd", "c"),
        ("ab", "ba", "a"),
    ],
)
def test_the_site_that_makes_the_difference_is_named(known, seen, named):
    with pytest.raises(ModelError, match=rf"\(site '{named}'\)"):
        refuse_change(known, seen)


def test_a_run_that_stopped_may_be_the_beginning_of_another():
    refuse_change("ab", "abc", known_ended=False)
    refuse_change("abc", "ab", ended=False)
    refuse_change("", "abc", known_ended=False)
    with pytest.raises(ModelError, match="site 'c'"):
        refuse_change("ab", "abc", ended=False)
    with pytest.raises(ModelError, match="site 'c'"):
        refuse_change("abc", "ab", known_ended=False)
    with pytest.raises(ModelError, match="site 'x'"):
        refuse_change("ab", "ax", known_ended=False, ended=False)


@pytest.mark.parametrize("test", [torch.any, torch.all], ids=["any", "all"])
def test_the_lint_looks_at_single_particles(test):
    (finding,) = [f for f in lint(lucky(test)) if f.lint == "dynamic structure"]
    assert finding.severity == "error"
    assert "site 'luck'" in finding.text
    assert not [f for f in lint(lucky(lambda batch: True)) if f.lint == "dynamic structure"]
