"""The Pyro side: what a program may be, and what the engines say when it may not."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_align import SMC, CausalLM, Completion, ImportanceSampling, choose, completion, reward
from ppl_align.core.errors import BatchTextError, InputError, ModelError
from ppl_align.core.text import Texts
from ppl_align.engines import rerun as steadiness
from ppl_align.particles.particles import Particles
from ppl_align.program import Program
from ppl_align.testing.programs import EOS, FIXED, PROGRAMS


def run_once(program, particles=4):
    compiled = Program(program)
    first = compiled.run(Particles(particles), draw=True)
    values = {**first.values, first.pending.name: first.pending.fn.sample()}
    return compiled, first, compiled.run(first.replace(values=values), draw=True)


def test_a_run_stops_at_the_first_completion_without_a_value():
    _, first, second = run_once(PROGRAMS["upstream_latent"], particles=5)
    assert first.pending.name == "x"
    assert first.pending.fn.batch_shape == (5,)
    assert first.values["z"].shape == (5,)
    assert second.pending is None
    assert second.factors["r"].shape == (5,)
    assert second.rewards["r"].shape == (5,)
    torch.testing.assert_close(second.factors["r"], second.rewards["r"] * second.scales["r"])


def test_without_draw_it_stops_at_any_latent():
    compiled = Program(PROGRAMS["upstream_latent"])
    assert compiled.run(Particles(3), draw=False).pending.name == "z"


def test_prior_terms_are_never_scored():
    calls = []

    class Loud(type(EOS)):
        def token_log_probs(self, *args):
            calls.append(args)
            return super().token_log_probs(*args)

    lm = Loud(torch.zeros(3, 3), torch.zeros(3), eos_id=2)

    def program():
        x = completion("x", lm, [], max_new_tokens=3)
        pyro.factor("f", (x.tokens == 1).sum(-1).double())

    ImportanceSampling(8, 2).run(program)
    SMC(8, 2, twist="prefix").run(program)
    assert calls == []


def test_python_state_is_never_stale_after_resampling():
    """Whatever Python computes from a completion is computed anew from the particles as they are."""

    def program():
        x = completion("x", FIXED, [0], max_new_tokens=4)
        words = x.text.map(lambda s: float(s.count("1"))) if isinstance(x.text, Texts) else float(x.text.count("1"))
        pyro.factor("f", 1.5 * torch.as_tensor(words).double())

    posterior = SMC(16, 8, twist="prefix", ess_threshold=1.0).run(program, seed=1)
    want = 1.5 * (posterior.particles["x"].tokens == 1).sum(-1).double()
    assert bool(posterior.history["resampled"].any())
    torch.testing.assert_close(posterior.factors["f"], want)


def test_the_helpers_and_raw_pyro_give_the_same_posterior():
    def sugar():
        x = completion("x", EOS, [], max_new_tokens=3)
        reward("f", lambda t: (t == 1).sum(-1).double(), x.tokens, beta=0.5, weight=0.8)

    def raw():
        x = pyro.sample("x", EOS.completion([], 3))
        pyro.factor("f", 0.8 / 0.5 * (x == 1).sum(-1).double())

    for engine in (ImportanceSampling(8, 4), SMC(8, 4, twist="prefix", ess_threshold=0.9)):
        one, two = engine.run(sugar, seed=3), engine.run(raw, seed=3)
        torch.testing.assert_close(one.log_weight, two.log_weight)
        assert set(one.rewards) == {"f"}
        assert set(two.rewards) == set()
        assert set(two.factors) == {"f"}


def test_a_program_can_be_run_by_hand():
    torch.manual_seed(0)
    x = completion("x", EOS, [], max_new_tokens=3)
    assert isinstance(x, Completion)
    assert isinstance(x.text, str)
    assert reward("r", lambda texts: [1.0 for _ in texts], x).item() == 1.0
    assert completion("y", EOS, [], obs=[0, 1]).tokens.tolist() == [0, 1, 2]


def test_observations_count_eos_and_prefixes_do_not():
    def exactly():
        completion("x", EOS, [], max_new_tokens=2)
        completion("y", EOS, [0], obs=[1, 0])

    def goes_on():
        completion("x", EOS, [], max_new_tokens=2)
        completion("y", EOS, [0], starts_with=[1, 0])

    table = EOS.log_table
    prefix = (table[0, 1] + table[1, 0]).item()
    assert ImportanceSampling(2, 1).run(goes_on).factors["y"][0, 0].item() == pytest.approx(prefix)
    assert ImportanceSampling(2, 1).run(exactly).factors["y"][0, 0].item() == pytest.approx(prefix + table[0, 2].item())


def test_scored_tokens_have_a_counter_of_their_own():
    posterior = ImportanceSampling(8, 2).run(PROGRAMS["observed_ending"])
    again = steadiness.PARTICLES * steadiness.TIMES  # a few are executed again: does the program repeat itself?
    assert posterior.cost.scored_tokens == (16 + again) * 2


def test_choose_and_texts():
    assert choose(torch.tensor(1), ["a", "b"]) == "b"
    texts = choose(torch.tensor([1, 0, 1]), ["a", "b"])
    assert (texts + "!").tolist() == ["b!", "a!", "b!"]
    assert ("<" + texts).tolist() == ["<b", "<a", "<b"]
    assert texts.map(len).tolist() == [1.0, 1.0, 1.0]
    assert texts[1] == "a"
    for habit in (lambda: "a" in texts, lambda: texts == "a", lambda: len(texts), lambda: f"{texts}", texts.__bool__):
        with pytest.raises(BatchTextError, match=r"batch of 3 strings.*\.map"):
            habit()
    with pytest.raises(BatchTextError, match="upper"):
        texts.upper()


@pytest.mark.parametrize(
    ("index", "options", "says"),
    [
        (torch.tensor([0]), [[1], [2]], "torch.tensor"),
        (torch.tensor(0), [[{"role": "user", "content": "hi"}]], "is none"),
        (torch.tensor([0, 2]), ["a", "b"], "number 2"),
        (torch.tensor([-1]), ["a", "b"], "number -1"),
        (torch.tensor(0.5), ["a", "b"], "number 0.5"),
        (torch.tensor(torch.nan), ["a", "b"], "number nan"),
    ],
)
def test_choose_refuses_what_is_no_choice(index, options, says):
    with pytest.raises(InputError, match=says):
        choose(index, options)


def test_a_completion_prints_as_what_it_is(tiny_llama: CausalLM):
    x = Completion(torch.tensor([[1, 2, 6], [3, 6, 6]]), tiny_llama.completion([1], 3))
    assert repr(x) == 'Completion(2 particles, "1 2")'
    assert x.ids == [(1, 2), (3,)]


# -- what cannot be run is said in one line -------------------------------------------------------------------------


def branches_on_a_batch():
    z = pyro.sample("z", dist.Bernoulli(0.5))
    if z == 1:
        completion("x", EOS, [], max_new_tokens=2)


def python_habits_on_text():
    x = completion("x", FIXED, [0], max_new_tokens=2)
    reward("r", lambda texts: [float("1" in x.text)] * len(texts), x)


class Flips:
    """A different set of sites at every execution."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1
        x = completion("x", FIXED, [0], max_new_tokens=2)
        pyro.factor(f"f{self.times % 2}", (x.tokens == 1).sum(-1).double())
        completion("y", FIXED, ([1], x), max_new_tokens=2)


def a_batch_without_a_plate():
    x = completion("x", FIXED, [[0], [1]], max_new_tokens=2)
    pyro.factor("f", (x.tokens == 1).sum(-1).double())


@pytest.mark.parametrize(
    ("program", "error", "says"),
    [
        (branches_on_a_batch, ModelError, "instead of `if`"),
        (Flips(), ModelError, "structure changes from run to run"),
        (python_habits_on_text, InputError, "holds .x., a batch of"),
    ],
)
@pytest.mark.parametrize("engine", [ImportanceSampling(4, 2), SMC(4, 2, twist="prefix")], ids=str)
def test_dynamic_structure_is_refused(program, error, says, engine):
    with pytest.raises(error, match=says) as caught:
        engine.run(program)
    assert "\n" not in str(caught.value)


def test_a_batch_of_prompts_belongs_in_a_plate():
    with pytest.raises((ModelError, InputError, ValueError)):
        ImportanceSampling(4, 2).run(a_batch_without_a_plate)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda x: reward("r", lambda t: t, x, beta=0.0), "beta must be positive"),
        (lambda x: reward("r", lambda t: t, x, beta=-1), "beta must be positive"),
        (lambda x: reward("r", lambda t: t, x, beta=float("nan")), "beta must be positive"),
        (lambda x: reward("r", lambda t: t, x, weight=float("inf")), "weight must be finite"),
        (lambda x: completion("y", EOS, [0], obs=[1], starts_with=[1]), "not both"),
        (lambda x: completion("y", EOS, [0], starts_with=[]), "empty"),
        (lambda x: completion("y", EOS, [0], max_new_tokens=1, starts_with=[1, 0]), "more than max_new_tokens=1"),
    ],
)
def test_bad_arguments(make, says):
    def program():
        make(completion("x", EOS, [], max_new_tokens=2))

    with pytest.raises(InputError, match=says):
        ImportanceSampling(2, 1).run(program)


def test_a_wrong_shape_names_the_site():
    def program():
        with pyro.plate("pair", 2):
            x = completion("x", FIXED, [[0], [1]], max_new_tokens=2)
        pyro.factor("lost a plate", (x.tokens == 1).sum(-1).sum(-1).double())

    with pytest.raises(ModelError, match="'lost a plate'"):
        ImportanceSampling(4, 2).run(program)


def test_only_rejections_are_floored_on_a_prefix():
    """A log-probability of -30 on a prefix is a judgement; only -inf, "not yet", is softened."""
    factors = {"score": torch.tensor([-30.0, -1.0, 0.5]), "hard": torch.tensor([0.0, -torch.inf, 0.0])}
    execution = Particles(3, factors={k: v.double() for k, v in factors.items()})
    assert execution.prefix_potential(-2.0).tolist() == [-30.0, -3.0, 0.5]
