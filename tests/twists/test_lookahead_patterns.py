"""Looking ahead in patterns and length limits: psi against enumeration, E[Zhat] = Z, and what it is worth."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from conftest import SEED
from toys.constrained_programs import spelling, taste
from toys.contracts import contract_of

import ppl_align.constraints.byte_machine
import ppl_align.twists.context_lookahead
from ppl_align import (
    SMC,
    CallableLM,
    Contains,
    Enumeration,
    Grammar,
    JsonSchema,
    MarkovLM,
    Regex,
    completion,
    constrain,
    look_ahead,
    reward,
)
from ppl_align.constraints import LengthLimit
from ppl_align.core.errors import InputError
from ppl_align.program.constrain import compiled
from ppl_align.twists.context_lookahead import ContextLookAhead
from ppl_align.twists.context_model import ContextModel
from ppl_align.twists.seen_prefixes import Seen

LM = spelling(["a", "b", "ab", " "], seed=4)
FIXED = spelling(["a", "b", "ab", " "], eos=False, seed=5)


def pattern():
    x = completion("x", LM, [], max_new_tokens=5)
    constrain("format", Regex("a+ ?b(ab| )*"), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=5.0)


def cut_off():
    """No EOS: the limit ends every text."""
    x = completion("x", FIXED, [0], max_new_tokens=4)
    constrain("format", Regex("[ab]{5}|b .*"), x)


def stop_token():
    x = completion("x", FIXED, [1], max_new_tokens=5, stop=3)
    constrain("format", Regex("b?(ab)+ "), x)


def stop_string():
    """Where "bb" is completed depends on the token before."""
    x = completion("x", LM, [0], max_new_tokens=5, stop="bb")
    constrain("format", Regex("[ab]*bb|a* a"), x)


def limit():
    x = completion("x", LM, [2], max_new_tokens=6)
    constrain("length", LengthLimit(min_words=2, max_words=2, min_tokens=3, max_tokens=5), x)


def at_least():
    x = completion("x", FIXED, [2], max_new_tokens=5)
    constrain("length", LengthLimit(min_words=3), x)


def conjunction():
    """Each part that can look ahead does: a pattern, a word, a length."""
    x = completion("x", LM, [], max_new_tokens=5)
    constrain("all", Regex("[ab ]*b") & Contains("ba") & LengthLimit(max_tokens=4), x)


def many_prompts():
    first = completion("first", LM, [], max_new_tokens=2)
    second = completion("second", FIXED, ([0], first), max_new_tokens=4)
    constrain("format", Regex("a?(b a|ab)+"), second)


PROGRAMS = {
    program.__name__: program
    for program in (pattern, cut_off, stop_token, stop_string, limit, at_least, conjunction, many_prompts)
}


@pytest.mark.parametrize("num_pool", [4])
def test_every_psi_keeps_the_contract(num_pool, monkeypatch):
    monkeypatch.setattr(ppl_align.twists.context_lookahead, "LIKELY", 2.0)  # else masks are good enough for most
    engine = SMC(num_particles=24, twist="lookahead", num_pool=num_pool, ess_threshold=0.9)
    report = contract_of(engine, PROGRAMS, num_replicates=100)
    report.raise_if_failed()
    assert all(result.status != "refused" for result in report.results)


def test_a_special_token_that_ends_a_text_is_no_part_of_it():
    """What the program accepts has psi > 0: after such a token the text is judged without it."""

    class Special(MarkovLM):
        @property
        def special_tokens(self):
            return {3: "<end>"}

    lm = Special(LM.log_table, LM.log_initial, eos_id=4, tokens=["a", "b", "ab", "<end>", "</s>"])
    source = lm.completion([], 4, stop=3)
    look = look_ahead(lm, Regex("a*b"), [], 4, num_pool=8, stop=3)
    assert source.stop_ids == (3,)
    assert look.then([(0, 1), (0,)], 1)[:, 3].tolist() == [0.0, -math.inf]
    assert look.then([(0, 1), (0,)], 1)[:, 4].tolist() == [0.0, -math.inf]


# -- the automaton and the mask are one language ------------------------------------------------------------------

CASES = {
    "letters": (["a", "b", "ab", " ", "", "é", "</s>"], ["a+ ?b*", "(ab|é)*", "[^b]{2,3}", "(?i)A.?B*", "", r"\w+ \w"]),
    "no EOS": (["a", "b", "ab", " "], ["(a|b){3}", "a.*"]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_automaton_reads_what_the_mask_allows(name):
    tokens, patterns = CASES[name]
    eos = len(tokens) - 1 if tokens[-1] == "</s>" else None
    lm = MarkovLM(torch.zeros(len(tokens), len(tokens)), eos_id=eos, tokens=tokens)
    size = len(tokens) - (eos is not None)
    for pattern in patterns:
        matcher = compiled(Regex(pattern), lm)
        foreseen = matcher.foreseen()
        for length in range(4):
            prefixes = list(itertools.product(range(size), repeat=length))
            places = foreseen.places(prefixes)
            accepts = [s >= 0 and bool(foreseen.ends_well(length)[0, s]) for s, _ in places]
            assert accepts == matcher.accepts(prefixes).tolist()
            for left in (0, 1, 2):
                can = [s >= 0 and bool(foreseen.possible(length, left)[0, s]) for s, _ in places]
                assert can == matcher.viable(prefixes, left).tolist(), (pattern, left)
                masks = matcher.allowed(prefixes, left)[:, :size].tolist()
                for (s, _), mask in zip(places, masks, strict=True):
                    to = foreseen.moves[s][foreseen.kind[:size]] if s >= 0 else np.full(size, -1)
                    there = (to >= 0) & foreseen.possible(length + 1, left)[0, to]
                    assert there.tolist() == mask, (pattern, left)


@pytest.mark.lm
@pytest.mark.parametrize("pattern", [r" [a-zé]+ \w。?", r" #[0-9a-f]{6}", r"[\u4e00-\u9fff]+"])
def test_the_automaton_over_parts_of_characters(pattern, smollm2):
    """Random walks within the mask, and one step off it; tokens of SmolLM2 may be a part of a character."""
    matcher, rng = compiled(Regex(pattern), smollm2), np.random.default_rng(SEED)
    foreseen = matcher.foreseen()
    for _ in range(3):
        prefix: tuple[int, ...] = ()
        for _ in range(8):
            mask = matcher.allowed([prefix], 30)[0].numpy()
            ((state, _),) = foreseen.places([prefix])
            expected = foreseen.moves[state][foreseen.kind] >= 0
            expected[list(smollm2.eos_ids)] = foreseen.ends_well(0)[0, state]
            assert (mask == expected).all()
            mask[list(smollm2.eos_ids)] = False
            if not mask.any():
                break
            prefix = (*prefix, int(rng.choice(np.flatnonzero(mask))))


@pytest.mark.parametrize(
    "limit",
    [
        LengthLimit(min_words=2, max_words=3),
        LengthLimit(min_words=2),
        LengthLimit(min_tokens=1, max_tokens=2, max_words=1),
        LengthLimit(min_tokens=2),
    ],
    ids=repr,
)
def test_a_length_limit_counts_as_its_matcher_does(limit):
    lm = spelling(["a", " b", " ", "a a", "\u3000"])
    matcher = compiled(limit, lm)
    foreseen = matcher.foreseen()
    for length in range(4):
        prefixes = list(itertools.product(range(5), repeat=length))
        places = foreseen.places(prefixes)
        assert [bool(foreseen.ends_well(length)[n, s]) for s, n in places] == matcher.accepts(prefixes).tolist()
        for left in range(3):
            can = [bool(foreseen.possible(length, left)[n, s]) for s, n in places]
            assert can == matcher.viable(prefixes, left).tolist()


# -- psi against enumeration --------------------------------------------------------------------------------------


def exact(lm, source, matcher):
    """P(success | prefix) by brute force."""
    size = lm.vocab_size

    @functools.cache
    def value(prefix):
        ended = prefix and bool(source.ends_within(torch.tensor(prefix)))
        if ended or len(prefix) == source.max_new_tokens:
            return float(matcher.accepts([prefix])[0])
        p = source.warp(lm.start([(*source.prompts[0], *prefix)]).log_probs).exp()[0].tolist()
        total = 0.0
        for v in range(size):
            if v in lm.eos_ids:
                total += p[v] * float(matcher.accepts([prefix])[0])
            else:
                total += p[v] * value((*prefix, v))
        return total

    return value


@pytest.mark.parametrize("declared", [{}, {"stop": 3}, {"top_k": 3}, {"stop": "ba"}], ids=str)
@pytest.mark.parametrize("constraint", [Regex("a+ ?b(ab| )*"), LengthLimit(min_words=1, max_words=2)], ids=str)
def test_psi_is_exact_where_everything_was_seen(constraint, declared):
    lm = spelling(["a", "b", "ab", " "], seed=4)
    source, matcher = lm.completion([0], 4, **declared), compiled(constraint, lm)
    value, seen = exact(lm, source, matcher), Seen(matcher.foreseen(), source)
    every = [prefix for length in range(4) for prefix in itertools.product(range(4), repeat=length)]
    for prefix, place in zip(every, seen.foreseen.places(every), strict=True):
        p = source.warp(lm.start([(0, *prefix)]).log_probs).exp()[0]
        seen.note((0,), prefix, place, p.double().numpy())
    look = ContextLookAhead(matcher, ContextModel(seen, 4, (0,)))
    running = [x for x in every if x and not (source.ends_within(torch.tensor(x))) and value(x) > 0]
    for x in running:
        assert float(look.now([x], 4 - len(x)).exp()) == pytest.approx(value(x), rel=1e-6), x
    assert len(running) > 10


def test_one_token_of_context_is_all_there_is_to_know_of_a_chain():
    """Prefixes that the pool has not met: psi by context is near the truth, by state alone it is not."""
    look = look_ahead(LM, Regex("[ab]{4,6}( [ab]+)?"), [0], 6, num_pool=64, seed=SEED)
    value = exact(LM, LM.completion([0], 6), look.matcher)
    off = []
    for length in (2, 3, 4):
        for x in itertools.product(range(4), repeat=length):
            if look.model.seen.find((0,), x) < 0 and value(x) > 0:
                ((state, _),) = look.foreseen.places([x])
                truth = math.log(value(x))
                bare = math.log(look.model.values[6 - length, 0, state])
                off.append((float(look.now([x], 6 - length)) - truth, bare - truth))
    assert len(off) > 20
    by_context, by_state = torch.tensor(off).square().mean(0).sqrt().tolist()
    assert by_context < 0.5 * by_state


def test_psi_of_a_state_that_was_never_met_is_positive_where_success_is_possible():
    look = look_ahead(LM, Regex("(a|b){4}( a)*"), [0], 7, num_pool=1)
    for length in range(1, 7):
        for prefix in itertools.product(range(4), repeat=length):
            possible = bool(look.matcher.viable([prefix], 7 - length)[0])
            ((state, _),) = look.foreseen.places([prefix])
            assert not possible or look.now([prefix], 7 - length).isfinite()
            then = look.then([prefix], 6 - length)[0]
            for v in range(4):
                after = look.foreseen.places([(*prefix, v)])[0][0]
                can = state >= 0 and after >= 0 and bool(look.foreseen.possible(length + 1, 6 - length)[0, after])
                assert then[v].isfinite() == can


def test_what_is_proposed_is_what_weighs():
    """psi of a next token, and of the prefix with it, are one number."""
    for constraint in (Regex("a+ ?b(ab| )*"), LengthLimit(min_words=2, max_words=3)):
        look = look_ahead(LM, constraint, [0], 5, num_pool=8)
        for prefix in itertools.product(range(4), repeat=2):
            if look.foreseen.places([prefix])[0][0] < 0:
                continue
            then = look.then([prefix], 2)[0]
            now = look.now([(*prefix, v) for v in range(4)], 2)
            assert then[:4].tolist() == pytest.approx(now.float().tolist())


def misleading() -> CallableLM:
    """What it likes to write first it does not go on with as the pattern wants: "1" is more likely than "2", but only
    after a "2" do digits follow. The state of the automaton is the same after both."""
    tokens = [*"0123", "-", "x", "</s>"]

    def fn(prefix: torch.Tensor) -> torch.Tensor:
        p = torch.full((len(prefix), len(tokens)), 0.01, dtype=torch.float64)
        for i, row in enumerate(prefix.tolist()):
            if not row:
                p[i, :4] = torch.tensor([0.3, 0.3, 0.02, 0.3])
            elif row[0] == 2 and len(row) < 4:
                p[i, [4 if len(row) == 2 else 0, 6]] = torch.tensor([0.9, 0.01]).double()
            else:
                p[i, 5] = 3.0
        return p.log()

    return CallableLM(len(tokens), fn, eos_id=6, tokens=tokens)


def test_a_prefix_is_worth_more_than_its_state_says():
    """At a third of the particles, a third of the error of masks."""
    lm = misleading()

    def model():
        constrain("format", Regex("[0-3]{2}-[0-3]"), completion("x", lm, [], max_new_tokens=4))

    log_z = float(Enumeration().run(model).log_evidence)
    runs = [SMC(8, 1, twist="lookahead", num_pool=16).run(model, seed=seed).log_evidence for seed in range(16)]
    masks = SMC(24, 32).run(model, seed=SEED).log_evidence
    ahead = float(((torch.cat(runs) - log_z) ** 2).mean().sqrt())
    blind = float(((masks - log_z) ** 2).mean().sqrt())
    assert ahead < 0.5
    assert ahead < blind / 3


@pytest.mark.parametrize(("pattern", "sizes"), [("[ab ]*", [8]), ("(ab){4} (ab)*", [8, 8, 16, 32])])
def test_where_masks_are_good_enough_the_pool_is_saved(pattern, sizes, monkeypatch):
    """The first eighth of it says how likely success is. That masks steer alone then is no reason to warn."""
    drawn, inner = [], ppl_align.twists.context_lookahead._draw

    def spy(source, look, seen):
        drawn.append(source.index.numel())
        return inner(source, look, seen)

    monkeypatch.setattr(ppl_align.twists.context_lookahead, "_draw", spy)

    def model():
        constrain("format", Regex(pattern), completion("x", FIXED, [0], max_new_tokens=6))

    run = SMC(8, 2, twist="lookahead", num_pool=64).run(model, seed=SEED)
    assert drawn == sizes
    assert not run.warnings


@pytest.mark.parametrize(("num_pool", "sizes"), [(1, [1]), (3, [2, 1]), (8, [2, 2, 2, 2]), (64, [8, 8, 16, 32])])
def test_rounds_of_a_pool(num_pool, sizes):
    assert ppl_align.twists.context_lookahead.rounds_of(num_pool) == sizes


# -- what is said -------------------------------------------------------------------------------------------------


def test_a_pattern_that_is_too_large_keeps_its_mask_and_says_so_once(monkeypatch):
    monkeypatch.setattr(ppl_align.constraints.byte_machine, "MOST_STATES", 3)
    lm = spelling(["a", "b", "ab", " "], seed=4)

    def model():
        constrain("format", Regex("a{2,8}"), completion("x", lm, [0], max_new_tokens=4))

    run = SMC(8, 2, twist="lookahead").run(model, seed=SEED)
    said = [remark for remark in run.warnings if "too large" in remark]
    assert said == ["twist=\"lookahead\": the automaton of Regex('a{2,8}') is too large, its masks alone steer"]
    with pytest.raises(InputError, match="is too large"):
        look_ahead(lm, Regex("a{2,8}"), [0], 4)


@pytest.mark.parametrize("constraint", [Grammar('start: "a" start "b" | ""'), JsonSchema({"type": "null"})], ids=repr)
def test_what_cannot_look_ahead_says_what_can(constraint):
    lm = spelling(["a", "b", "null"])
    with pytest.raises(InputError, match="only Contains, EndsWith, AcceptedBy, Regex or LengthLimit can"):
        look_ahead(lm, constraint, [0], 4)


def test_a_look_ahead_serves_other_lengths_and_prompts():
    look = look_ahead(LM, Regex("a+ ?b(ab| )*"), [0], 4, num_pool=16)
    assert isinstance(look, ContextLookAhead)
    longer = look.checked(LM.completion([0], 6))
    assert len(longer.model.values) == 7
    assert longer.model.prompt == (0,)
    elsewhere = look.checked(LM.completion([1], 4))
    assert elsewhere.model.prompt == (1,)
    assert (elsewhere.model.child < 0).all(), "what followed another prompt is known by context alone"
    with pytest.raises(InputError, match="other stop tokens or strings"):
        look.checked(LM.completion([0], 4, stop=3))

    def model():
        constrain("format", Regex("a+ ?b(ab| )*"), completion("x", LM, [1], max_new_tokens=5))

    report = contract_of(SMC(24, twist=look), {"elsewhere": model}, num_replicates=100)
    report.raise_if_failed()


def test_a_conjunction_given_as_a_whole():
    both = Regex("[ab ]*b") & Contains("ba")
    look = look_ahead(LM, both, [], 5, num_pool=8)

    def model():
        constrain("both", both, completion("x", LM, [], max_new_tokens=5))

    contract_of(SMC(24, twist=look, ess_threshold=0.9), {"both": model}, num_replicates=120).raise_if_failed()
