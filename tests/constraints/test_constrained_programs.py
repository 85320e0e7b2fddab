"""Programs with hard constraints: every engine against enumeration, and enumeration against the text itself.

``Enumeration`` and the oracle ask the same matcher that the proposals are confined by. So the oracle is itself held to
what Python says of the decoded text (``MEANS``), over all id sequences.
"""

from __future__ import annotations

import functools
import itertools
import json
import re

import pytest
import torch
from conftest import SEED
from toys.constrained_programs import LETTERS, PROGRAMS, regex_eos, spelling, taste, two_constraints
from toys.oracles import matches

from ppl_align import (
    SMC,
    SVI,
    CallableLM,
    Enumeration,
    ImportanceSampling,
    Rejection,
    completion,
    constrain,
    reward,
)
from ppl_align.constraints import LengthLimit, Regex
from ppl_align.core.errors import InputError, RunError
from ppl_align.engines.conditional import evidence_bounds
from ppl_align.testing.checks import CHECKS, STATISTICAL
from ppl_align.testing.contract import Case
from ppl_align.testing.oracle import Oracle
from ppl_align.testing.statistics import RATE, bonferroni_z, mean_z

ENGINES = {
    "importance": ImportanceSampling(32),
    "smc": SMC(32, ess_threshold=0.9),
    "smc, prefix": SMC(32, twist="prefix", ess_threshold=0.8, resampling="stratified"),
    "smc, lookahead": SMC(32, twist="lookahead", ess_threshold=0.9, num_pool=8),
    "smc, both": SMC(32, twist=("prefix", "lookahead"), ess_threshold=0.9, num_pool=8),
    "svi": SVI(num_steps=2, num_particles=32, learning_rate=0.2),
    "rejection": Rejection(8, max_draws=1_000_000),
}
DEAD_ENDS = {"two_constraints", "joined", "regex_stop"}  # that show only when they are reached: no gradient
REFUSED = {("svi", name) for name in DEAD_ENDS | {"for_some_only"}}
EXPENSIVE = {("rejection", name) for name in PROGRAMS} - {("rejection", name) for name in ("regex_eos", "text_reward")}
LEVEL = RATE / (len(STATISTICAL) * len(ENGINES) * len(PROGRAMS))
Z = bonferroni_z(200)
each_program = pytest.mark.parametrize("name", PROGRAMS)


@functools.cache
def oracle(name):
    return Oracle(PROGRAMS[name])


# -- enumeration against the text -------------------------------------------------------------------------------------


def balanced(text):
    while "ab" in text:
        text = text.replace("ab", "")
    return not text


def record(text):
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return False
    return isinstance(value, dict) and set(value) == {"a"} and value["a"] <= 20


MEANS = {
    "regex_eos": ("x", matches("a*b(ab)?")),
    "regex_fixed": ("x", matches("(ab|b)+a?")),
    "regex_stop": ("x", matches("a(ab|a)*b?")),
    "grammar": ("x", balanced),
    "json_cut_off": ("x", record),
    "contains": ("x", lambda text: "bab" in text),
    "words": ("x", lambda text: len(text.split()) == 2),
    "two_constraints": ("x", lambda text: matches("(a|bb)*b?")(text) and text.endswith("ba")),
    "joined": ("x", lambda text: matches("(a|bb)*b?")(text) and text.endswith("ba")),
    "text_reward": ("x", matches("[ab]{2,4}")),
    "second_completion": ("second", matches("b?(ab)+")),
    "both_completions": ("second", matches("(ab)*")),
    "cut_by_top_k": ("x", matches("b?a*|ab")),
}


@pytest.mark.parametrize("name", MEANS)
def test_enumeration_is_what_the_text_says(name):
    """Finite weight if and only if the text is acceptable, and no factor but 0 and -inf nats."""
    site, accepts = MEANS[name]
    known = oracle(name)
    run = Enumeration().run(PROGRAMS[name])
    texts = run.particles[site].texts()
    good = torch.tensor([accepts(text) for text in texts])
    if name == "words":
        good &= torch.tensor([len(ids) >= 3 for ids in run.particles[site].ids])
    if name == "both_completions":
        good &= torch.tensor(["b" in text for text in run.particles["first"].texts()])
    alive = run.log_weight.reshape(-1).isfinite()
    possible = sum(value.reshape(-1) for value in run.log_prior.values()).isfinite()
    assert torch.equal(alive, good & possible)
    assert 0 < alive.sum() < len(alive)
    mass = sum(value.reshape(-1) for value in run.log_prior.values())
    weight = sum(v.reshape(-1) for k, v in run.factors.items())
    assert known.log_evidence == pytest.approx((mass + weight)[alive].logsumexp(0).item())


def test_without_reward_the_evidence_is_a_probability():
    """Z = P(acceptable), by hand: the mass of the id sequences that spell "b" or "ab", EOS included."""

    def model():
        constrain("format", Regex("a?b"), completion("x", LETTERS, [], max_new_tokens=3))

    p = LETTERS.log_table.exp()
    first = LETTERS.log_initial.exp()
    a, b, ab, eos = range(4)
    z = first[b] * p[b, eos] + first[a] * p[a, b] * p[b, eos] + first[ab] * p[ab, eos]
    assert Enumeration().run(model).log_evidence.exp().item() == pytest.approx(z.item())


def test_a_text_at_the_limit_needs_no_eos():
    def model(limit):
        constrain("format", Regex("ab"), completion("x", LETTERS, [], max_new_tokens=limit))

    p, first = LETTERS.log_table.exp(), LETTERS.log_initial.exp()
    one = Enumeration().run(model, 1).log_evidence.exp().item()
    two = Enumeration().run(model, 2).log_evidence.exp().item()
    assert one == pytest.approx(first[2].item()), "one token: cut off where it is acceptable"
    assert two == pytest.approx((first[2] * p[2, 3] + first[0] * p[0, 1]).item())


# -- the contract -----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def case(engine, name):
    return Case(ENGINES[engine], name, oracle(name), SEED + sum(map(ord, engine + name)), 200, LEVEL)


@pytest.mark.parametrize(("engine", "name"), [p for p in itertools.product(ENGINES, PROGRAMS) if p not in EXPENSIVE])
def test_engines_keep_the_contract(engine, name):
    found = case(engine, name)
    if (engine, name) in REFUSED:
        assert found.ran.status == "refused", found.ran.line
        return
    assert found.ran.status == "passed", found.ran.line
    for check in CHECKS:
        if check != "arviz":  # half a second each; nothing in it depends on constraints
            result = found.judge(check)
            assert result.status == "passed", result.line


@pytest.mark.parametrize("name", ["regex_eos", "json_cut_off", "second_completion", "plated", "two_constraints"])
@pytest.mark.parametrize("twist", [None, "prefix"])
def test_conditional_runs_bound_the_evidence_from_above(name, twist):
    engine = SMC(4, 1500, twist=twist, ess_threshold=0.9)
    bounds = evidence_bounds(engine, PROGRAMS[name], exact=oracle(name).sample(1, 1500, seed=SEED), seed=SEED)
    log_z = oracle(name).log_evidence
    died = bounds.lower.isneginf().double().mean()
    assert abs(float(mean_z((bounds.lower - log_z).exp(), 1.0))) < Z
    inverse = (log_z - bounds.upper).exp()
    assert inverse.mean() < 1 + Z * inverse.std() / len(inverse) ** 0.5
    if not died:
        assert abs(float(mean_z(inverse, 1.0))) < Z


# -- the weights ------------------------------------------------------------------------------------------------------


def test_every_weight_is_the_mass_that_was_allowed():
    """Under a Regex alone: product over steps of the allowed mass, from the LM's table and Python's ``re`` only."""
    pattern, limit = "(ab)*", 4

    def model():
        constrain("format", Regex(pattern), completion("x", LETTERS, [], max_new_tokens=limit))

    texts = ["".join(t) for n in range(limit + 1) for t in itertools.product(("a", "b", "ab"), repeat=n)]

    def fits(prefix, left):
        spelt = "".join(LETTERS.tokens[v] for v in prefix)
        return any(
            re.fullmatch(pattern, spelt + "".join(rest))
            for n in range(left + 1)
            for rest in itertools.product(("a", "b", "ab"), repeat=n)
        )

    def allowed_mass(prefix):
        log_p = LETTERS.log_table[prefix[-1]] if prefix else LETTERS.log_initial
        left = limit - len(prefix) - 1
        good = [v for v in range(3) if fits((*prefix, v), left)] + ([3] if fits(prefix, 0) else [])
        return log_p[good].logsumexp(0)

    assert texts
    run = ImportanceSampling(200, 2).run(model, seed=SEED)
    assert run.log_weight.isfinite().all(), "there are no dead ends, so no particle is lost"
    x = run.particles["x"]
    for row, length, log_weight in zip(
        x.tokens.reshape(-1, limit).tolist(), x.lengths.reshape(-1).tolist(), run.log_weight.reshape(-1).tolist(),
        strict=True,
    ):  # fmt: skip
        drawn = tuple(row[:length])
        assert log_weight == pytest.approx(sum(allowed_mass(drawn[:t]).item() for t in range(length)), abs=1e-9)
    assert len(run.log_weight.unique()) > 3


def test_a_forced_text_has_one_weight():
    """Where the constraint leaves one sequence, every particle is it, and Zhat is Z without variance."""
    lm = spelling(["a", "b"])

    def model():
        constrain("format", Regex("aab"), completion("x", lm, [], max_new_tokens=4))

    run = ImportanceSampling(8, 2).run(model, seed=SEED)
    assert run.log_weight.std() < 1e-12
    assert run.log_weight[0, 0].item() == pytest.approx(Enumeration().run(model).log_evidence.item())


def test_importance_sampling_needs_fewer_draws_than_rejection():
    """The point of it: a constraint that the prior meets once in a thousand times costs nothing extra."""
    lm = spelling(["a", "b", "c", "d", "e"])

    def model():
        constrain("format", Regex("abcde"), completion("x", lm, [], max_new_tokens=6))

    log_z = Enumeration().run(model).log_evidence.item()
    assert log_z < -6
    assert ImportanceSampling(4, 1).run(model, seed=SEED).log_evidence.item() == pytest.approx(log_z)


# -- SVI --------------------------------------------------------------------------------------------------------------


def test_a_trained_guide_keeps_the_constraint_and_finds_the_posterior():
    run = SVI(num_steps=150, num_particles=32, learning_rate=0.1).run(regex_eos, seed=SEED)
    assert all(MEANS["regex_eos"][1](text) for text in run.particles["x"].texts())
    known = oracle("regex_eos")
    assert known.reverse_kl(run.guide) < 0.03
    assert run.log_evidence.mean().item() == pytest.approx(known.log_evidence, abs=0.1)


def test_a_guide_is_confined_as_a_proposal_too():
    guide = SVI(num_steps=2, num_particles=16).run(regex_eos, seed=SEED).guide
    run = ImportanceSampling(64, 2, proposal=guide).run(regex_eos, seed=SEED)
    assert run.log_weight.isfinite().all()


def test_lora_says_why_not(tiny_llama):
    def model():
        constrain("short", LengthLimit(max_tokens=2), completion("x", tiny_llama, [0], max_new_tokens=3))

    with pytest.raises(InputError, match=r'cannot be confined .* use guide="head"'):
        SVI(guide="lora", num_steps=1, num_particles=4).run(model, seed=SEED)
    head = SVI(guide="head", num_steps=2, num_particles=8).run(model, seed=SEED)
    assert max(map(len, head.particles["x"].ids)) <= 2


# -- a transformer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["importance", "smc", "smc, prefix", "svi"])
def test_on_a_transformer(engine, tiny_llama):
    """Its rows follow the particles through dead ends and finished texts as well."""

    def model():
        x = completion("x", tiny_llama, [0, 3], max_new_tokens=3)
        constrain("short", LengthLimit(min_tokens=1, max_tokens=2), x)
        reward("taste", taste, x.tokens, beta=2.0, upper=3.0)

    chosen = SVI(num_steps=2, num_particles=32) if engine == "svi" else ENGINES[engine]
    found = Case(chosen, "transformer", Oracle(model), SEED, 100, LEVEL)
    assert found.ran.status == "passed", found.ran.line
    for check in ("shapes", "scores", "cost", "Zhat", "weights"):
        result = found.judge(check)
        assert result.status == "passed", result.line


# -- bad input --------------------------------------------------------------------------------------------------------


def test_what_no_text_within_the_limit_can_be():
    def too_short():
        constrain("long", LengthLimit(min_tokens=5), completion("x", LETTERS, [], max_new_tokens=3))

    def too_long():
        constrain("format", Regex("aaaaab"), completion("x", LETTERS, [], max_new_tokens=3))

    for model in (too_short, too_long):
        for engine in (ImportanceSampling(8), SMC(8, twist="prefix"), Enumeration(), SVI(num_steps=1)):
            with pytest.raises(InputError, match="no text of at most 3 tokens meets"):
                engine.run(model, seed=SEED)


def test_a_text_of_no_letters():
    """An LM whose ids spell nothing cannot be held to a text."""
    silent = CallableLM(3, lambda prefix: torch.zeros(len(prefix), 3), eos_id=2)

    def model():
        constrain("format", Regex("0"), completion("x", silent, [0], max_new_tokens=3))

    with pytest.raises(InputError, match="spell no text"):
        ImportanceSampling(4).run(model, seed=SEED)


def test_dead_ends_stop_svi_in_one_line():
    with pytest.raises(RunError, match=r"dead ends: .* Raise max_new_tokens, or use another engine: SMC") as caught:
        SVI(num_steps=30, num_particles=32).run(two_constraints, seed=SEED)
    assert "\n" not in str(caught.value)
