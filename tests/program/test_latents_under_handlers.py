"""A latent whose prior is scaled or masked is another program than engines would run: it is refused, never ignored."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from toys.lms import chain
from toys.rewards import ones

from ppl_align import SMC, SVI, Engine, Enumeration, ImportanceSampling, Rejection, completion, reward
from ppl_align.core.errors import ModelError

LM = chain(3, 0)
ENGINES = [Enumeration(), ImportanceSampling(32, 1), SMC(32, 1, twist="prefix"), SVI(num_steps=2), Rejection(4, 1)]


def scaled_text() -> None:
    with pyro.poutine.scale(scale=0.5):
        x = completion("x", LM, [0], max_new_tokens=2)
    reward("r", ones, x.tokens, upper=2.0)


def scaled_latent() -> None:
    with pyro.poutine.scale(scale=2.0):
        z = pyro.sample("x", dist.Bernoulli(torch.tensor(0.3)))
    y = completion("y", LM, [0], max_new_tokens=2)
    reward("r", ones, y.tokens, weight=z + 1, upper=2.0)


def masked_latent() -> None:
    with pyro.poutine.mask(mask=torch.tensor(False)):
        z = pyro.sample("x", dist.Bernoulli(torch.tensor(0.3)))
    y = completion("y", LM, [0], max_new_tokens=2)
    reward("r", ones, y.tokens, weight=z + 1, upper=2.0)


def masked_prior() -> None:
    z = pyro.sample("x", dist.Bernoulli(torch.tensor(0.3)).mask(False))
    y = completion("y", LM, [0], max_new_tokens=2)
    reward("r", ones, y.tokens, weight=z + 1, upper=2.0)


def masked_element() -> None:
    mask = torch.tensor([True, False])
    z = pyro.sample("x", dist.Bernoulli(torch.tensor([0.3, 0.3])).mask(mask).to_event(1))
    y = completion("y", LM, [0], max_new_tokens=2)
    reward("r", ones, y.tokens, weight=z.sum(-1) + 1, upper=2.0)


@pytest.mark.parametrize("program", [scaled_text, scaled_latent, masked_latent, masked_prior, masked_element])
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_it_is_refused_in_one_line(engine: Engine, program: Callable[[], None]) -> None:
    with pytest.raises(ModelError, match=r"latent 'x' is (scaled|masked)") as error:
        engine.run(program)
    assert len(str(error.value).splitlines()) == 1


def nothing_scaled() -> None:
    with pyro.poutine.scale(scale=torch.ones(())), pyro.poutine.mask(mask=torch.tensor(True)):
        pyro.sample("x", dist.Bernoulli(torch.tensor(0.3)).mask(True))
    y = completion("y", LM, [0], max_new_tokens=2)
    reward("r", ones, y.tokens, upper=2.0)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_scale_of_one_and_a_mask_of_all_change_nothing(engine: Engine) -> None:
    assert engine.run(nothing_scaled).log_evidence.isfinite().all()


def certain() -> None:
    z = pyro.sample("z", dist.Delta(torch.tensor(1.5)))
    both = pyro.sample("both", dist.Delta(torch.tensor([0.5, 0.25])).to_event(1))
    y = completion("y", LM, [0], max_new_tokens=2)
    reward("r", ones, y.tokens, weight=z + both.sum(-1), upper=2.0)


def plainly() -> None:
    y = completion("y", LM, [0], max_new_tokens=2)
    reward("r", ones, y.tokens, weight=2.25, upper=2.0)


@pytest.mark.parametrize(
    "engine", [e for e in ENGINES if not isinstance(e, Enumeration)], ids=lambda engine: engine.name
)
def test_a_latent_that_is_certain_is_a_number(engine: Engine) -> None:
    """A Delta has one value: the same draws, the same weights, and nothing for a guide to learn."""
    here, there = engine.run(certain), engine.run(plainly)
    assert torch.equal(here.particles["y"].tokens, there.particles["y"].tokens)
    torch.testing.assert_close(here.log_weight, there.log_weight, rtol=1e-9, atol=1e-9)
    assert bool((here.particles["z"] == 1.5).all())


def under_uncondition() -> None:
    def inner() -> None:
        y = completion("x", LM, [0], max_new_tokens=2)
        reward("r", ones, y.tokens, upper=2.0)

    pyro.poutine.uncondition(inner)()


def factor_under_uncondition() -> None:
    completion("x", LM, [0], max_new_tokens=2)
    with pyro.poutine.uncondition():
        pyro.factor("r", torch.tensor(-0.5))


@pytest.mark.parametrize("program", [under_uncondition, factor_under_uncondition])
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_factor_is_not_dropped_without_a_word(engine: Engine, program: Callable[[], None]) -> None:
    with pytest.raises(ModelError, match=r"'r' is a factor under poutine.uncondition") as error:
        engine.run(program)
    assert len(str(error.value).splitlines()) == 1


def test_an_observation_that_is_not_conditioned_on_is_a_latent() -> None:
    def program() -> None:
        x = completion("x", LM, [0], max_new_tokens=2)
        with pyro.poutine.uncondition():
            pyro.sample("seen", dist.Bernoulli(torch.tensor(0.3)), obs=torch.tensor(1.0))
        reward("r", ones, x.tokens, upper=2.0)

    run = Enumeration().run(program)
    assert run.mean("seen").value == pytest.approx(0.3)
