"""Constraints over token ids, held against brute force: every sequence of a toy vocabulary, judged by its text."""

from __future__ import annotations

import functools
import itertools
import json
import pickle
import random

import pytest
import torch
from toys.oracles import matches

from ppl_align import CallableLM, MarkovLM, Mixture, Prompted
from ppl_align.constraints import Both, Constraint, Contains, EndsWith, Grammar, JsonSchema, LengthLimit, Regex
from ppl_align.constraints.llg import Vocabulary
from ppl_align.core.errors import InputError, PromptError

LETTERS = ["a", "b", "ab", " ", "a", "</s>"]  # "ab" in two ways, and two tokens that spell the same
SYMBOLS = ['{"', "a", '":', " ", '{"a": ', "1", "12", "}", '"', "true", "{", ":", "</s>"]
EOS = -1


def toy(tokens, eos=True):
    """A language model whose logits nobody asks for."""
    return MarkovLM(
        torch.zeros(len(tokens), len(tokens)), eos_id=len(tokens) - 1 if eos else None, tokens=tokens, name="toy"
    )


def balanced(text):
    depth = 0
    for letter in text:
        depth += {"a": 1, "b": -1}.get(letter, -99)
        if depth < 0:
            return False
    return depth == 0


def small_object(text):
    """What the schema below describes, written as ``json.dumps`` would, keys in order."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return False
    return (
        isinstance(value, dict)
        and text == json.dumps(value)
        and set(value) == {"a"}
        and (value["a"] is True or (type(value["a"]) is int and 0 <= value["a"] <= 20))
    )


SCHEMA = {
    "type": "object",
    "properties": {"a": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 20}, {"const": True}]}},
    "required": ["a"],
    "additionalProperties": False,
}


def words(low, high):
    return lambda text: low <= len(text.split()) <= high


CASES: dict[str, tuple[Constraint, list[str], int, object]] = {
    **{
        f"regex {pattern}": (Regex(pattern), LETTERS, 4, matches(pattern))
        for pattern in ("(ab)+", "a*b", "ab|abab", "a(b| )*a?", "[^b]{2,3}", "(?i)A B?", "", "a+?b", "(a|ab)(b|ba)")
    },
    "grammar": (Grammar('start: "a" start "b" start | ""'), LETTERS, 4, balanced),
    "json": (JsonSchema(SCHEMA), SYMBOLS, 4, small_object),
    "words": (LengthLimit(min_words=1, max_words=2), LETTERS, 4, words(1, 2)),
    "words at least": (LengthLimit(min_words=3), LETTERS, 5, words(3, 99)),
    "words of long tokens": (LengthLimit(min_words=4, max_words=4), ["a a a", " b", "", "</s>"], 4, words(4, 4)),
    "both": (Regex("[ab]*") & Contains("bab"), LETTERS, 4, lambda t: matches("[ab]*")(t) and "bab" in t),
    "ends": (EndsWith("ba"), LETTERS, 4, lambda t: t.endswith("ba")),
}
PERMITS = {"both"}  # cannot see every dead end
each_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def sequences(size, length):
    return [ids for n in range(length + 1) for ids in itertools.product(range(size), repeat=n)]


class BruteForce:
    """All sequences up to ``length`` tokens, none of them EOS."""

    def __init__(self, tokens, length, accepts, eos=True):
        self.size, self.length = len(tokens) - eos, length
        spells = functools.partial(map, tokens.__getitem__)
        self.good = {ids for ids in sequences(self.size, length) if accepts("".join(spells(ids)))}

    def nearest(self, prefix):
        """Tokens that are missing to an acceptable sequence, at least; None if there is none within the length."""
        return self.distance.get(prefix)

    @functools.cached_property
    def distance(self):
        found = {}
        for ids in self.good:
            for n in range(len(ids) + 1):
                found[ids[:n]] = min(found.get(ids[:n], 99), len(ids) - n)
        return found

    def allowed(self, prefix, left):
        """Tokens (EOS left out) after which something acceptable fits."""
        after = (self.distance.get((*prefix, v), 99) for v in range(self.size))
        return [distance <= left for distance in after]


@each_case
@pytest.mark.parametrize("eos", [True, False])
def test_a_reader_is_the_language(name, eos):
    constraint, tokens, length, accepts = CASES[name]
    tokens = tokens if eos else tokens[:-1]
    matcher, truth = constraint.compile(toy(tokens, eos)), BruteForce(tokens, length, accepts, eos)
    for n in range(length + 1):
        prefixes = [ids for ids in sequences(truth.size, n) if len(ids) == n]
        good = [ids in truth.good for ids in prefixes]
        assert matcher.accepts(prefixes).tolist() == good
        assert matcher.viable(prefixes, 0).tolist() == good, "with nothing left to write, viable is acceptable"
        if n == length:
            continue
        left = length - n - 1
        mask = matcher.allowed(prefixes, left)
        assert mask.shape == (len(prefixes), len(tokens))
        assert mask.dtype == torch.bool
        if eos:
            assert mask[:, -1].tolist() == good, "EOS where the text is acceptable, and nowhere else"
        viable = matcher.viable(prefixes, left + 1).tolist()
        for prefix, row, can in zip(prefixes, mask[:, : truth.size].tolist(), viable, strict=True):
            exact = truth.allowed(prefix, left)
            assert all(m for m, e in zip(row, exact, strict=True) if e), f"{prefix}: forbids what is possible"
            assert can or truth.nearest(prefix) is None
            if name not in PERMITS:
                assert row == exact, f"{prefix}: so near to the limit, look-ahead is exact"
                assert can == (truth.nearest(prefix) is not None)
    assert truth.good, "the case is not empty"


@each_case
def test_far_from_the_limit_only_what_is_hopeless_is_forbidden(name):
    constraint, tokens, length, accepts = CASES[name]
    matcher, truth = constraint.compile(toy(tokens)), BruteForce(tokens, length, accepts)
    short = [ids for ids in sequences(truth.size, 1) if len(ids) == 1]
    far = matcher.viable(short, 50).tolist()
    assert all(can for prefix, can in zip(short, far, strict=True) if truth.nearest(prefix) is not None)
    if name in ("regex (ab)+", "regex ab|abab", "json"):
        assert not all(far), "some first tokens lead nowhere, however many may follow"


def test_the_order_of_questions_does_not_matter():
    """Resampling brings back prefixes whose matchers were given up long ago."""
    matcher = Regex("(ab)+a?").compile(toy(LETTERS))
    asked = [ids for ids in sequences(5, 4) if ids]
    expected = {ids: matcher.allowed([ids], 3)[0].tolist() for ids in asked}
    shuffled = random.Random(0).sample(asked, len(asked))
    for batch in itertools.batched(shuffled, 7) if hasattr(itertools, "batched") else [shuffled]:
        matcher.young, matcher.old = {}, {}
        assert [row.tolist() for row in matcher.allowed(list(batch), 3)] == [expected[ids] for ids in batch]
    matcher.young, matcher.old = {}, {}
    assert matcher.allowed(shuffled, 3).tolist() == [expected[ids] for ids in shuffled]


def test_memory_is_bounded():
    lm = toy(["a", "b", "</s>"])
    matcher = Regex("[ab]*").compile(lm)
    for seed in range(10):
        rng = random.Random(seed)
        assert matcher.allowed([tuple(rng.choices((0, 1), k=20)) for _ in range(100)], 5).all()
    assert len(matcher.young) + len(matcher.old) <= 2 * (1024 + 100 * 20), "two generations, of ten that were asked for"


def test_a_text_that_nothing_may_follow_allows_eos_only():
    matcher = Regex("ab").compile(toy(LETTERS))
    assert matcher.allowed([(2,), (0, 1)], 4).nonzero().tolist() == [[0, 5], [1, 5]]
    without = Regex("ab").compile(toy(LETTERS[:-1], eos=False))
    assert not without.allowed([(2,)], 4).any()
    assert without.accepts([(2,)]).all()
    assert without.viable([(2,)], 4).all(), "it is acceptable as it is"


def test_tokens_that_spell_nothing_are_not_written():
    lm = toy(["a", "", "b", "</s>"])
    matcher = Regex("ab*").compile(lm)
    assert matcher.allowed([(), (0,)], 3)[:, 1].tolist() == [False, False]
    assert matcher.accepts([(0, 1)]).tolist() == [False]


def test_the_text_of_eos_is_no_text():
    """EOS ends the text even if its name would be acceptable."""
    matcher = Regex("ab*").compile(toy(["a", "c", "b"]))  # EOS is called "b"
    assert matcher.allowed([(), (0,)], 3).tolist() == [[True, False, False], [False, False, True]]


def test_length_counts_tokens():
    matcher = LengthLimit(min_tokens=2, max_tokens=3).compile(MarkovLM(torch.zeros(3, 3), eos_id=2))  # needs no text
    assert matcher.accepts([(), (0,), (0, 1), (1, 1, 1), (0,) * 4]).tolist() == [False, False, True, True, False]
    assert matcher.allowed([(0,)], 0).tolist() == [[True, True, False]]
    assert matcher.allowed([()], 0).tolist() == [[False, False, False]], "two do not fit any more"
    assert matcher.allowed([(0, 0, 0)], 5).tolist() == [[False, False, True]]
    assert matcher.viable([(), (0,)], 1).tolist() == [False, True]


def test_length_counts_tokens_and_words_together():
    lm = toy(["a ", "b", " ", "</s>"])
    matcher = LengthLimit(min_tokens=4, max_words=1).compile(lm)
    for n in range(4):
        for prefix in itertools.product(range(3), repeat=n):
            ends = [prefix + rest for rest in itertools.product(range(3), repeat=4 - n)]
            possible = any(len("".join(lm.tokens[v] for v in ids).split()) <= 1 for ids in ends)
            assert matcher.viable([prefix], 4 - n).item() == possible
    assert not matcher.viable([()], 3).item()


# -- bad input, one line each ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Regex("[a"), "unclosed character class"),
        (lambda: Regex("a(?=b)"), "look-ahead"),
        (lambda: Regex(r"(a)\1"), "backreferences are not supported"),
        (lambda: Regex(r"\bab"), "not supported"),
        (lambda: Regex(3), "takes a pattern as text, got int"),
        (lambda: JsonSchema('{"type": '), "is not JSON"),
        (lambda: JsonSchema({"type": {1, 2}}), "is not JSON"),
        (lambda: JsonSchema([1, 2]), "takes a schema as a dict or as JSON text"),
        (lambda: JsonSchema({"type": "strnig"}), "Invalid type: strnig"),
        (lambda: JsonSchema({"not": {}}), "Unimplemented keys"),
        (lambda: JsonSchema({"type": "string", "pattern": "["}), "unclosed character class"),
        (lambda: JsonSchema(False), "cannot be met"),
        (lambda: JsonSchema({"type": "integer", "minimum": 3, "maximum": 2}), "Unsatisfiable schema"),
        (lambda: JsonSchema({}, separators=("x", ":")), "a comma and a colon"),
        (lambda: Grammar("start: x\nx: b\n"), 'line 2: unknown name: "b"'),
        (lambda: Grammar('rule: "a"'), "no start rule"),
        (lambda: Grammar("start: ("), "Expected token"),
        (lambda: Grammar(b"start:"), "takes a grammar as text, got bytes"),
        (lambda: LengthLimit(), "needs a bound"),
        (lambda: LengthLimit(min_words=5, max_words=3), "min_words=5 is more than max_words=3"),
        (lambda: LengthLimit(min_tokens=-1), "at least 0"),
        (lambda: LengthLimit(max_words=1.5), "got 1.5"),
        (lambda: Regex("a") & "b", "joins constraints"),
        (lambda: Regex("c+").compile(toy(LETTERS)), "cannot be met: toy can write no such text"),
        (lambda: Regex("ac").compile(toy(["ac", "b"], eos=False)), None),
        (lambda: Grammar("X: /a/ & /b/\nstart: X").compile(toy(LETTERS)), "cannot be met"),
        (lambda: Regex("a").compile(MarkovLM(torch.zeros(2, 2))), "spell no text: give it tokens"),
        (
            lambda: LengthLimit(max_words=2).compile(MarkovLM(torch.zeros(2, 2))),
            "constrain its ids (AcceptedBy, LengthLimit(max_tokens=))",
        ),
    ],
)
def test_bad_input_is_one_line(make, says):
    if says is None:
        make()
        return
    with pytest.raises(InputError) as caught:
        make()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_transformer_without_tokenizer(tiny_llama):
    with pytest.raises(InputError, match="spell no text"):
        Regex("1+").compile(tiny_llama)
    assert LengthLimit(max_tokens=2).compile(tiny_llama).allowed([(0, 0)], 3).nonzero().tolist() == [[0, 6]]


def test_without_llguidance(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(InputError, match=r"pip install ppl-align\[constraints\]"):
        Regex("a")
    LengthLimit(max_words=2).compile(toy(LETTERS))


@each_case
def test_constraints_are_values(name):
    constraint = CASES[name][0]
    again = pickle.loads(pickle.dumps(constraint))
    assert again == constraint
    assert hash(again) == hash(constraint)
    assert len({constraint, again, Regex("something else")}) == 2


def test_a_dict_and_its_text_are_one_schema():
    assert JsonSchema(SCHEMA) == JsonSchema(json.dumps(SCHEMA))
    assert JsonSchema(SCHEMA) != JsonSchema(SCHEMA, separators=None)
    assert isinstance(Regex("a") & LengthLimit(max_words=1), Both)


def test_white_space_in_json():
    lm = toy(['{"a":', "1", "}", " ", "</s>"])
    compact, free = (JsonSchema(SCHEMA, separators=s).compile(lm) for s in ((",", ":"), None))
    texts = [(0, 1, 2), (0, 3, 1, 2), (0, 3, 3, 1, 3, 2)]
    assert compact.accepts(texts).tolist() == [True, False, False]
    assert free.accepts(texts).tolist() == [True, True, True]
    assert JsonSchema(SCHEMA).compile(lm).accepts(texts).tolist() == [False, True, False]


def test_an_lm_made_of_others_spells_as_they_do():
    one, other = toy(LETTERS), toy(LETTERS)
    persona = Prompted(Mixture([one, other], [0.5, 0.5]), before="ab")
    assert Regex("(ab)+").compile(persona).accepts([(2,), (0, 1), (0,)]).tolist() == [True, True, False]
    assert Vocabulary.of(persona) is Vocabulary.of(one)


def test_text_that_is_no_concatenation():
    with pytest.raises((InputError, PromptError)):
        Regex("0").compile(CallableLM(2, lambda prefix: torch.zeros(len(prefix), 2)))
