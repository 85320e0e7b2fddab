"""A program that lets its particles look at each other has another target for each number of them: it is refused."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from toys.lms import chain
from toys.rewards import ones

from ppl_align import (
    SMC,
    SVI,
    Completion,
    Engine,
    Enumeration,
    ImportanceSampling,
    Rejection,
    completion,
    label,
    reward,
)
from ppl_align.core.errors import ModelError

LM = chain(3, 0)
ENGINES = [Enumeration(), ImportanceSampling(256, 4), SMC(128, 4, twist="prefix"), SVI(num_steps=2)]


def weight(x: Completion) -> None:
    reward("f", ones, x.tokens, weight=ones(x.tokens).mean() / 2)


def of_tensor(x: Completion) -> None:
    reward("f", lambda t: ones(t) - ones(t).mean(0), x.tokens)


def observed(x: Completion) -> None:
    pyro.sample("f", dist.Normal(ones(x.tokens).mean(), 1.0), obs=torch.tensor(0.3).double())


def prior(x: Completion) -> None:
    pyro.sample("f", dist.Bernoulli(torch.sigmoid(ones(x.tokens).mean() - 1)))


def labelled(x: Completion) -> None:
    r = ones(x.tokens)
    label("f", (r - r.mean()) / (r.std() + 1), 1)


MIXED: dict[str, Callable[[Completion], object]] = {
    "a sum": lambda x: pyro.factor("f", ones(x.tokens).sum() / 50),
    "a mean": lambda x: pyro.factor("f", ones(x.tokens) - ones(x.tokens).mean()),
    "their number": lambda x: pyro.factor("f", ones(x.tokens) * len(x.tokens) / 100),
    "their order": lambda x: pyro.factor("f", ones(x.tokens).flip(0)),
    "ranks": lambda x: pyro.factor("f", ones(x.tokens).argsort().argsort() / len(x.tokens)),
    "a weight": weight,
    "a reward of tokens": of_tensor,
    "an observation": observed,
    "a label": labelled,
    "the prior of a latent": prior,
}


def model(thing: Callable[[Completion], object]) -> None:
    thing(completion("x", LM, [0], max_new_tokens=4))


@pytest.mark.parametrize("thing", MIXED)
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_what_hangs_on_the_others_is_refused_in_one_line(engine: Engine, thing: str) -> None:
    if engine.name == "exact" and thing == "their order":
        pytest.skip("the assignments are listed, and their order is theirs")
    with pytest.raises(ModelError, match=r"site 'f' says .* nats of a draw among all others") as error:
        engine.run(model, MIXED[thing])
    assert len(str(error.value).splitlines()) == 1


def test_rejection_as_well() -> None:
    def mixed(x: Completion) -> None:
        reward("f", lambda t: ones(t) - ones(t).mean(0), x.tokens, upper=4.0, lower=-4.0)

    with pytest.raises(ModelError, match="site 'f' says"):
        Rejection(64, 2).run(model, mixed)


def alone(x: Completion) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("k", 3):
        w = pyro.sample("w", dist.Gamma(2.0, 1.0))
        reward("r", ones, x.tokens, weight=w.mean(-1, keepdim=True) + z**2, beta=9.0)
    pyro.factor("f", torch.log_softmax(torch.stack([z, -z], -1), -1).sum((-1, -2))[..., None])
    pyro.factor("same for all", torch.tensor(1.5))


@pytest.mark.parametrize("engine", ENGINES[1:], ids=lambda engine: engine.name)
def test_sums_within_a_particle_are_fine(engine: Engine) -> None:
    assert engine.run(model, alone).log_evidence.isfinite().all()
