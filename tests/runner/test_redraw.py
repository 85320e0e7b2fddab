"""Going back to a token of a site: what is kept stays, what is drawn has its law, and its score is told."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SEED
from toys.lms import ABCD, OTHER_ABCD
from toys.rewards import likes

from ppl_align import Enumeration, completion, constrain, reward
from ppl_align.constraints import Contains
from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError
from ppl_align.core.seeds import isolated
from ppl_align.guides.program import ProgramGuide
from ppl_align.particles.particles import Particles
from ppl_align.posterior.selection import draws_of
from ppl_align.program.compiled import Program
from ppl_align.runner.known_constraints import known_constraints
from ppl_align.runner.proposals import FromPrior, FromTokens
from ppl_align.runner.runner import Runner


def dialogue(word=None):
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
    x = completion("x", ABCD, z[..., None], max_new_tokens=3)
    if word:
        constrain("word", Contains(word), x)
    u = pyro.sample("u", dist.Bernoulli(0.4))
    y = completion("y", ABCD, (x, [1]), max_new_tokens=2)
    reward("r", likes, x.tokens, beta=0.7)
    reward("s", likes, y.tokens, beta=0.9, weight=1.0 + u)


def plated():
    with pyro.plate("two", 2):
        x = completion("x", ABCD, [[0], [1]], max_new_tokens=2)
        reward("r", likes, x.tokens, beta=0.6)


PROGRAMS = {"dialogue": (dialogue, ()), "confined": (dialogue, ("b",)), "plated": (plated, ())}
PROPOSALS = {"prior": FromPrior(), "another": FromTokens(OTHER_ABCD)}


def runner_of(name, proposal="prior"):
    model, args = PROGRAMS[name]
    program = Program(model, args)
    return Runner(
        program, *([PROPOSALS[proposal]] if PROPOSALS[proposal] else []), constraints=known_constraints(program)
    )


@pytest.mark.parametrize("proposal", PROPOSALS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_before_is_kept_and_scores_add_up(name, proposal):
    runner, size = runner_of(name, proposal), 60
    with isolated(SEED):
        old = runner.finish(runner.start(size))
        for site in old.values:
            width = old.values[site].shape[-1] if site in old.sources else 1
            token = torch.randint(width + 1 if site in old.sources else 1, (size,))
            new = runner.redraw(old, site, token)
            before = list(old.values)[: list(old.values).index(site)]
            assert all(torch.equal(new.particles.values[s], old.values[s]) for s in before)
            assert list(new.particles.values) == list(old.values)
            if site in old.sources:
                kept = torch.arange(width) < token[:, None]
                rows = kept.reshape(size, *(1,) * (old.values[site].dim() - 2), width)
                same = new.particles.values[site] == old.values[site]
                assert bool((same | ~rows).all())
            again = runner.given(new.particles.values)
            for what in ("log_prior", "log_proposal"):
                for s, value in getattr(again, what).items():
                    assert torch.allclose(getattr(new.particles, what)[s], value, atol=1e-6), (what, s)
            for of_new, total in ((new.log_prior, "total_log_prior"), (new.log_proposal, "total_log_proposal")):
                own = sum((getattr(new.particles, total[6:])[s] for s in before), torch.zeros(size).double())
                rest = getattr(new.particles, total) - own - of_new
                whole = token >= width if site in old.sources else torch.zeros(size, dtype=torch.bool)
                assert torch.allclose(rest[token == 0], torch.zeros(int((token == 0).sum())).double(), atol=1e-9)
                assert not bool(whole.any()) or torch.allclose(
                    rest[whole], getattr(old, total[6:])[site][whole], atol=1e-6
                )


@pytest.mark.parametrize("token", [0, 1, 2, None])
@pytest.mark.parametrize("proposal", PROPOSALS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_step_that_accepts_by_the_weights_leaves_the_posterior_as_it_is(name, proposal, token):
    """From exact draws, one step of Metropolis-Hastings from each site; E[f] before and after, paired."""
    model, args = PROGRAMS[name]
    exact, size = Enumeration().run(model, *args), 12_000
    runner = runner_of(name, proposal)
    with isolated(SEED):
        now = runner.given(draws_of(exact, size))
        for site in list(now.values):
            length = now.values[site].shape[-1] if site in now.sources else 1
            at = torch.randint(length, (size,)) if token is None else min(token, length - 1)
            new = runner.redraw(now, site, at).particles
            now = new.where(torch.rand(size).log() < new.log_weight - now.log_weight, now)
    for reward_name, exact_value in ((n, exact.mean(n).value) for n in exact.rewards):
        r = now.rewards[reward_name]
        assert abs(float(r.mean()) - exact_value) < 4.5 * float(r.std()) / size**0.5


def test_particles_with_one_prefix_share_the_network():
    runner = runner_of("dialogue")
    old = Particles(500, {"z": torch.zeros(500).long(), "x": torch.tensor([[1, 0, 2]]).expand(500, 3)})
    with isolated(SEED), measure() as cost:
        runner.redraw(old, "x", 2)
    apart = len(runner.redraw(old, "x", 2).particles.values["x"].unique(dim=0))
    assert cost.lm_tokens < 40, "one row to the cut, then one for each different text"
    assert apart > 1


def test_a_text_that_had_ended_is_kept():
    runner = runner_of("dialogue")
    ended = torch.tensor([[1, 4, 4]]).expand(50, 3)
    old = Particles(50, {"z": torch.zeros(50).long(), "x": ended})
    assert torch.equal(runner.redraw(old, "x", 2).particles.values["x"], ended)


def test_a_site_that_is_none_is_named():
    runner = runner_of("dialogue")
    with pytest.raises(InputError, match="redraw from 'w': the latents are 'z'"):
        runner.redraw(Particles(1, {"z": torch.zeros(1).long()}), "w")


@pytest.mark.parametrize(
    ("site", "token", "says"),
    [
        ("w", 0, "the latents are 'z', 'x'"),
        ("x", -1, "has tokens 0 to 3"),
        ("x", 4, "has tokens 0 to 3"),
        ("x", 1.5, "a whole number"),
        ("x", True, "a whole number"),
        ("x", torch.zeros(7).long(), "one for each of the 50 particles"),
        ("z", 1, "it is no completion"),
    ],
)
def test_what_cannot_be_redrawn_is_said_in_one_line(site, token, says):
    old = Particles(50, {"z": torch.zeros(50).long(), "x": torch.tensor([[1, 4, 4]]).expand(50, 3)})
    with pytest.raises(InputError, match=says) as caught:
        runner_of("dialogue").redraw(old, site, token)
    assert "\n" not in str(caught.value)


def test_a_guide_of_whole_programs_can_neither_weigh_given_values_nor_redraw():
    """It draws a latent knowing nothing of what is kept: as if it were the prior, weights would be wrong."""

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        x = completion("x", ABCD, [0], max_new_tokens=2)
        reward("r", likes, x.tokens, beta=1.0, weight=1.0 + z)

    def guide():
        pyro.sample("z", dist.Bernoulli(0.9))

    runner = Runner(Program(model), ProgramGuide(guide))
    old = runner.finish(runner.start(10))
    for ask in (lambda: runner.redraw(old, "x"), lambda: runner.given(old.values)):
        with pytest.raises(InputError, match="a guide that draws whole programs"):
            ask()
