"""Tests of text as hard constraints: engines against enumeration, and what the functions are asked."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
from conftest import SEED
from toys.blocks import BlockLM
from toys.constrained_programs import LETTERS, spelling
from toys.predicates import PROGRAMS, begins_well, even, good, no_bb, with_dead_ends, without_bb

from ppl_align import (
    SMC,
    SVI,
    Enumeration,
    ImportanceSampling,
    MarkovLM,
    Predicate,
    Regex,
    Rejection,
    completion,
    constrain,
)
from ppl_align.core.errors import InputError, PredicateError, RunError
from ppl_align.core.runs import run_memory
from ppl_align.engines.conditional import evidence_bounds
from ppl_align.lm import adaptive_rejection
from ppl_align.lm.restriction import Restriction
from ppl_align.particles.particles import Particles
from ppl_align.program.compiled import Program
from ppl_align.runner.known_constraints import known_constraints
from ppl_align.runner.runner import Runner
from ppl_align.testing.checks import CHECKS, STATISTICAL
from ppl_align.testing.contract import Case
from ppl_align.testing.oracle import Oracle
from ppl_align.testing.statistics import RATE, bonferroni_z, mean_z

ENGINES = {
    "importance": ImportanceSampling(40),
    "smc": SMC(40, ess_threshold=0.9),
    "smc, prefix": SMC(40, twist="prefix", ess_threshold=0.8, resampling="stratified"),
    "smc, lookahead": SMC(40, twist="lookahead", ess_threshold=0.9, num_pool=8),
    "rejection": Rejection(8, max_draws=1_000_000),
}
CASES = [("importance", name) for name in PROGRAMS] + [
    ("smc", "with_dead_ends"),
    ("smc", "two_tests"),
    ("smc, prefix", "without_bb"),
    ("smc, prefix", "stop_string"),
    ("smc, prefix", "in_a_plate"),
    ("smc, lookahead", "contains_and_test"),
    ("rejection", "without_bb"),
]
LEVEL = RATE / (len(STATISTICAL) * len(CASES))
Z = bonferroni_z(40)


@functools.cache
def oracle(name):
    return Oracle(PROGRAMS[name])


# -- against enumeration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "site", "accepts"),
    [
        ("without_bb", "x", no_bb),
        ("with_dead_ends", "x", good),
        ("stop_string", "x", even),
        ("second_site", "second", no_bb),
        ("two_tests", "x", lambda t: no_bb(t) and even(t)),
        ("at_the_end", "x", good),
    ],
)
def test_enumeration_is_what_the_function_says(name, site, accepts):
    run = Enumeration().run(PROGRAMS[name])
    met = torch.tensor([accepts(text) for text in run.particles[site].texts()])
    assert torch.equal(run.log_weight.reshape(-1).isfinite(), met)
    assert 0 < met.sum() < len(met)


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_engines_keep_the_contract(engine, name):
    found = Case(ENGINES[engine], name, oracle(name), SEED + len(engine + name), 150, LEVEL)
    assert found.ran.status == "passed", found.ran.line
    for check in CHECKS:
        if check != "arviz":
            result = found.judge(check)
            assert result.status == "passed", result.line


@pytest.mark.parametrize(
    ("name", "twist", "patience"),
    [
        ("without_bb", None, 64),
        ("without_bb", "prefix", 64),
        ("without_bb", "prefix", 1),
        ("in_a_plate", "prefix", 64),
        ("second_site", None, 64),
        ("two_tests", "prefix", 64),
    ],
)
def test_conditional_runs_bound_the_evidence_from_above(name, twist, patience, monkeypatch):
    """E[Zhat] = Z, and E[1 / Zhat_c] = 1 / Z where no population dies (else P(Zhat > 0) / Z)."""
    monkeypatch.setattr(adaptive_rejection, "PATIENCE", patience)
    engine = SMC(3, 1500, twist=twist, ess_threshold=0.9)
    known = oracle(name)
    bounds = evidence_bounds(engine, PROGRAMS[name], exact=known.sample(1, 1500, seed=SEED), seed=SEED)
    inverse = (known.log_evidence - bounds.upper).exp()
    assert abs(float(mean_z((bounds.lower - known.log_evidence).exp(), 1.0))) < Z
    if bounds.lower.isfinite().all():
        assert abs(float(mean_z(inverse, 1.0))) < Z
    else:
        assert patience == 1 or name == "two_tests", "nothing dies without dead ends, or searches that are given up"
        assert inverse.mean() < 1 + Z * inverse.std() / len(inverse) ** 0.5


def test_a_retained_draw_that_searched_like_any_other_would_be_seen(monkeypatch):
    """The law of its search is another one: the test above can fail."""
    given = adaptive_rejection.Search.__init__

    def twice(self, *args, **kwargs):
        given(self, *args, **kwargs)
        self.missing = 2

    monkeypatch.setattr(adaptive_rejection.Search, "__init__", twice)
    known = oracle("without_bb")
    exact = known.sample(1, 6000, seed=SEED)
    bounds = evidence_bounds(ImportanceSampling(2, 6000), without_bb, exact=exact, seed=SEED)
    assert float(mean_z((known.log_evidence - bounds.upper).exp(), 1.0)) > 5


def test_what_is_drawn_anew_after_a_beginning_is_weighed_right():
    """The mean weight of continuations of one prefix is the mass of all that goes on from it."""
    exact = Enumeration().run(without_bb)
    x, share = exact.particles["x"].tokens.reshape(-1, 4), exact.log_weight.reshape(-1).softmax(-1)
    begun = x[:, 0] == 0
    value = share[begun].sum().log() + exact.log_evidence - LETTERS.log_initial[0]
    program = Program(without_bb)
    runner = Runner(program, constraints=known_constraints(program), tests=True)
    held = runner.given({"x": x[begun][:1].expand(8000, -1)})
    new = runner.redraw(held, "x", 1)
    assert bool((new.particles.values["x"][:, 0] == 0).all())
    continued = (new.particles.log_potential + new.log_prior - new.log_proposal - value).exp()
    assert abs(float(mean_z(continued, 1.0))) < Z


def test_another_language_model_proposes():
    run = ImportanceSampling(24, 300, proposal=spelling(["a", "b", "ab"], seed=5)).run(without_bb, seed=SEED)
    assert abs(float(mean_z((run.log_evidence - oracle("without_bb").log_evidence).exp(), 1.0))) < Z


def test_every_particle_passes_where_there_are_no_dead_ends():
    run = SMC(16, 8, twist="prefix", ess_threshold=0.9).run(without_bb, seed=SEED)
    assert run.log_weight.isfinite().all()
    assert all(no_bb(text) for text in run.particles["x"].texts())


def test_blocks_are_rejected_when_they_have_ended():
    blocks = BlockLM(LETTERS)

    def model(lm=blocks):
        constrain("form", Predicate(accepts=good, viable=begins_well), completion("x", lm, [], max_new_tokens=3))

    log_z = Enumeration().run(model, LETTERS).log_evidence
    for engine in (ImportanceSampling(16, 300), SMC(16, 300, twist="prefix", every=1, ess_threshold=0.9)):
        run = engine.run(model, seed=SEED)
        assert abs(float(mean_z((run.log_evidence - log_z).exp(), 1.0))) < Z


# -- what is asked ----------------------------------------------------------------------------------------------------


class Asked:
    """A function that counts its questions."""

    def __init__(self, fn):
        self.fn, self.texts, self.__name__ = fn, Counter(), fn.__name__

    def __call__(self, text):
        self.texts[text] += 1
        return self.fn(text)


@pytest.mark.parametrize("engine", ["importance", "smc, prefix", "rejection"])
def test_no_text_is_asked_about_twice(engine):
    accepts, viable = Asked(good), Asked(begins_well)

    def model():
        constrain("form", Predicate(accepts, viable), completion("x", LETTERS, [], max_new_tokens=4))

    ENGINES[engine].run(model, seed=SEED)
    assert max(accepts.texts.values()) == 1
    assert max(viable.texts.values()) == 1
    first = viable.texts.total()
    ENGINES[engine].run(model, seed=SEED)
    assert viable.texts.total() == 2 * first, "another run remembers nothing"


def test_what_is_ruled_out_once_is_not_drawn_again():
    """Later searches after the same prefix begin without it: fewer rejections, T closer to the mass that passes."""
    found = []

    class Noticing(adaptive_rejection.Search):
        def __init__(self, row, known=(), *args, **kwargs):
            found.append(len(known))
            super().__init__(row, known, *args, **kwargs)

    def model():
        one = completion("one", LETTERS, [], max_new_tokens=1)
        two = completion("two", LETTERS, [], max_new_tokens=1)
        for name, x in (("a", one), ("b", two)):
            constrain(name, Predicate(lambda t: t == "a", viable=lambda t: t in ("", "a")), x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppl_align.lm.decoding.Search", Noticing)
        program = Program(model)
        with run_memory():
            run = Runner(program, constraints=known_constraints(program), tests=True).finish(Particles(400))
    assert set(found[:400]) == {0}
    assert set(found[400:]) == {3}
    assert len(run.log_proposal["one"].unique()) > 3
    assert torch.allclose(run.log_proposal["two"], torch.zeros(()).double(), atol=1e-9), "T is the mass itself"


def test_few_of_the_vocabulary_are_asked_about():
    vocab, steps, particles = 2000, 5, 64
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(vocab, vocab, generator=generator)
    lm = MarkovLM(logits, logits[0], tokens=[f"{v} " for v in range(vocab)], name="large")
    accepts, viable = (Asked(lambda text: sum(map(int, text.split())) % 2 == 0) for _ in range(2))

    def model():
        constrain("even", Predicate(accepts, viable), completion("x", lm, [], max_new_tokens=steps))

    run = ImportanceSampling(particles, 1).run(model, seed=SEED)
    asked = accepts.texts.total() + viable.texts.total()
    assert run.log_weight.isfinite().all()
    assert 2 * 0.9 < asked / (particles * steps) < 8  # two acceptances at a rate of a half, and the factor at the end


def test_it_says_that_it_acts_at_the_end():
    for engine, said in ((ImportanceSampling(32), 1), (SMC(32, twist="prefix"), 1), (ENGINES["rejection"], 0)):
        run = engine.run(PROGRAMS["at_the_end"], seed=SEED)
        assert sum("acts only at the end, as a rejection: give viable=" in line for line in run.warnings) == said
    assert not any("viable" in line for line in ImportanceSampling(8).run(without_bb).warnings)


def test_a_search_that_finds_nothing_leaves_a_dead_end():
    run = ImportanceSampling(200, 1).run(with_dead_ends, seed=SEED)
    texts = run.particles["x"].texts()
    for text, log_weight in zip(texts, run.log_weight.reshape(-1).tolist(), strict=True):
        assert good(text) == (log_weight > -torch.inf)
    assert not all(map(good, texts))


# -- text -------------------------------------------------------------------------------------------------------------


def test_half_a_character_is_left_out_of_a_beginning(smollm2):
    seen = []

    def viable(text):
        seen.append(text)
        return True

    ids = smollm2.encode(" \N{SNOWMAN}!")
    assert len(ids) > 3, "the snowman is spelt by several tokens"
    matcher = Predicate(lambda text: "\N{SNOWMAN}" in text, viable).compile(smollm2)
    assert bool(matcher.viable([ids[:n] for n in range(len(ids) + 1)], 0).all())
    assert set(seen) == {"", " ", " \N{SNOWMAN}", " \N{SNOWMAN}!"}
    assert matcher.accepts([ids, ids[:2]]).tolist() == [True, False]
    assert matcher.text(ids[:2]).endswith("\ufffd")


def test_a_special_token_that_ends_a_text_is_no_part_of_it(smollm2):
    seen = []

    def accepts(text):
        seen.append(text)
        return True

    matcher = Predicate(accepts, lambda text: True).compile(smollm2)
    (special,) = [v for v, name in smollm2.special_tokens.items() if name == "<|im_start|>"]
    (full_stop,) = smollm2.encode(".")
    source = smollm2.completion("It is", max_new_tokens=8, stop=["<|im_start|>", "."])
    restriction = Restriction([matcher], source, tests=True)
    words = smollm2.encode(" a cat")
    assert restriction.passes([(*words, special), (*words, full_stop), words], [True, True, False]) == [True] * 3
    assert seen == [" a cat", " a cat."]


def test_a_text_that_tokens_do_not_spell_one_by_one():
    lm = MarkovLM(torch.zeros(3, 3), torch.zeros(3), name="numbers")

    def model():
        constrain("up", Predicate(lambda t: t == "0 1 2", lambda t: "0 1 2".startswith(t)), completion("x", lm, [], 3))

    run = ImportanceSampling(64, 2).run(model, seed=SEED)
    assert "0 1 2" in run.particles["x"].texts()


# -- other engines, and what goes wrong -------------------------------------------------------------------------------


def test_svi_says_why_not():
    with pytest.raises(RunError, match="no guide can be kept to a Predicate") as caught:
        SVI(num_steps=5, num_particles=32).run(with_dead_ends, seed=SEED)
    assert "\n" not in str(caught.value)


def raises(text):
    return text[3] == "a"


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (raises, r"viable of Predicate\(accepts=good, viable=raises\) raised IndexError: string index .*, on ''"),
        (len, r"viable of Predicate\(accepts=good, viable=len\) returned 0 for '': it must be True or False"),
        (lambda t: None, r"viable=<lambda>\) returned None for ''"),
    ],
)
@pytest.mark.parametrize("engine", [ImportanceSampling(4), SMC(4, twist="prefix"), Enumeration()])
def test_errors_name_the_predicate_and_the_text(fn, says, engine):
    def model():
        constrain("form", Predicate(good, fn), completion("x", LETTERS, [], max_new_tokens=3))

    with pytest.raises(PredicateError, match=says) as caught:
        engine.run(model, seed=SEED)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", [ImportanceSampling(16), SMC(16, twist="prefix"), Rejection(2)])
def test_so_do_errors_later_in_a_text(engine):
    def model():
        late = Predicate(lambda t: 1 / (2 - len(t)) != 9, lambda t: 1 / (2 - len(t)) != 9)
        constrain("form", late, completion("x", LETTERS, [], max_new_tokens=3))

    with pytest.raises(PredicateError, match=r"raised ZeroDivisionError: .*, on '[ab]{2}'$"):
        engine.run(model, seed=SEED)


def test_what_is_no_predicate():
    for wrong in ({"accepts": "ab"}, {"accepts": None}, {"accepts": good, "viable": 3}, {"accepts": bool}):
        with pytest.raises(InputError, match="takes a function of a text"):
            Predicate(**wrong)


def test_nothing_can_begin():
    def model():
        constrain("form", Predicate(good, lambda t: False), completion("x", LETTERS, [], max_new_tokens=3))

    with pytest.raises(InputError, match=r"no text of at most 3 tokens meets Predicate\(accepts=good, viable=<lambda>"):
        ImportanceSampling(4).run(model)


def test_predicates_are_values():
    def make(n):
        return Predicate(lambda text: len(text) > n)

    assert make(1) == make(1)
    assert hash(make(1)) == hash(make(1))
    assert make(1) != make(2)
    assert Predicate(good, no_bb) != Predicate(good)
    assert repr(Predicate(functools.partial(good), no_bb)) == "Predicate(accepts=partial(good), viable=no_bb)"
    assert repr(Regex("a") & Predicate(good)).endswith("second=Predicate(accepts=good))")
