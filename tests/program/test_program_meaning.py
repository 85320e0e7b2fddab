"""Programs mean what they say, or are refused: plates that subsample or loop, factors that are no number."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from toys.lms import chain

from ppl_align import SMC, SVI, Enumeration, ImportanceSampling, completion, reward
from ppl_align.core.errors import ModelError, PplAlignError, RunError

LM = chain(3, 0)
ENGINES = [Enumeration(), ImportanceSampling(64, 1), SMC(64, 1, twist="prefix")]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_subsample_is_refused(engine):
    def model():
        x = completion("x", LM, [0], max_new_tokens=2)
        with pyro.plate("data", 6, dim=-1, subsample_size=2):
            pyro.sample("y", dist.Normal((x.tokens == 1).sum(-1).double(), 1.0), obs=torch.zeros(2).double())

    with pytest.raises(ModelError, match=r"plate 'data' takes a subsample of 2 of 6"):
        engine.run(model)


INDICES = {"drawn": lambda: torch.randperm(6)[:2], "fixed": lambda: torch.tensor([0, 1]), "a list": lambda: [0, 1]}


@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_subsample_of_one_s_own_is_refused(engine, loop, indices):
    """``subsample=``: of a fixed one SVI would take the whole plate, and of a drawn one no two runs the same."""

    def model():
        x = completion("x", LM, [0], max_new_tokens=2)
        likely = dist.Normal((x.tokens == 1).sum(-1).double(), 1.0)
        plate = pyro.plate("data", 6, subsample=INDICES[indices]())
        if loop:
            for i in plate:
                pyro.sample(f"y{i}", likely, obs=torch.zeros(()).double())
        else:
            with plate as at:
                pyro.sample("y", likely, obs=torch.arange(6.0).double()[at])

    with pytest.raises(ModelError, match=r"plate 'data' takes a subsample of 2 of 6"):
        engine.run(model)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_pyro_subsample_in_a_whole_plate_is_the_data(engine):
    data = torch.tensor([0.0, 2.0, 1.0]).double()

    def model(read):
        x = completion("x", LM, [0], max_new_tokens=2)
        with pyro.plate("data", 3):
            seen = pyro.subsample(data, event_dim=0) if read else data
            pyro.sample("y", dist.Normal((x.tokens == 1).sum(-1).double(), 1.0), obs=seen)

    torch.testing.assert_close(engine.run(model, True).log_evidence, engine.run(model, False).log_evidence)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_sequential_plate_is_range(engine):
    def model(loop):
        for i in loop():
            x = completion(f"x{i}", LM, [0], max_new_tokens=2)
            reward(f"r{i}", lambda t: (t == 1).sum(-1).double(), x.tokens)

    plate, plain = (engine.run(model, loop).log_evidence for loop in (lambda: pyro.plate("k", 2), lambda: range(2)))
    torch.testing.assert_close(plate, plain)


CONDITIONING = [*ENGINES, SVI(num_steps=4)]


@pytest.mark.filterwarnings("ignore:Encountered")  # Pyro's own word on it, before SVI's
@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("engine", CONDITIONING, ids=lambda engine: engine.name)
def test_a_factor_that_is_no_number_names_its_site(engine, value, validation):
    def model():
        x = completion("x", LM, [0], max_new_tokens=2)
        pyro.factor("f", torch.where((x.tokens == 1).any(-1), value, 0.0))

    with pyro.validation_enabled(validation), pytest.raises(RunError, match=r"'f' is (NaN|\+inf)") as error:
        engine.run(model)
    assert len(str(error.value).splitlines()) == 1


def _observed(family, value):
    def model():
        x = completion("x", LM, [0], max_new_tokens=2)
        pyro.sample("y", family((x.tokens == 1).sum(-1).double()), obs=torch.tensor(value).double())

    return model


def _drawn(family):
    def model():
        x = completion("x", LM, [0], max_new_tokens=2)
        pyro.sample("y", family((x.tokens == 1).sum(-1).double()))

    return model


BROKEN = {
    "a scale of 0": _observed(lambda n: dist.Normal(0.0, n), 0.0),
    "a location of NaN": _observed(lambda n: dist.Normal(n * math.nan, 1.0), 0.0),
    "a value of NaN": _observed(lambda n: dist.Normal(n, 1.0), math.nan),
    "a value outside": _observed(lambda n: dist.Bernoulli(n / 4 + 0.25), 0.5),
    "too many values": _observed(lambda n: dist.Normal(n[..., None].expand(-1, 3), 1.0).to_event(1), [0.0] * 5),
    "a latent of scale 0": _drawn(lambda n: dist.Normal(0.0, n)),
    "a latent at NaN": _drawn(lambda n: dist.Normal(n * math.nan, 1.0)),
    "odds of NaN": _drawn(lambda n: dist.Categorical(logits=torch.stack([n * math.nan, n], -1))),
    "odds below 0": _drawn(lambda n: dist.Categorical(torch.stack([n - 5, n + 5], -1))),
}
SAID_BY_VALIDATION = ("a value outside", "odds below 0")
"""Without validation these are numbers: of a Bernoulli at 1/2, and of some other categorical."""


@pytest.mark.filterwarnings("ignore:Encountered")
@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("engine", CONDITIONING, ids=lambda engine: engine.name)
def test_what_is_no_distribution_and_what_no_value_is_said_in_one_line(engine, broken, validation):
    if not validation and broken in SAID_BY_VALIDATION:
        return
    with pyro.validation_enabled(validation), pytest.raises(PplAlignError, match=r"'y'|^line \d+ \(") as error:
        engine.run(BROKEN[broken])
    assert len(str(error.value).splitlines()) == 1
