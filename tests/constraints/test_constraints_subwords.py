"""Constraints over a byte-level vocabulary of 49,152 tokens, that of SmolLM2: every cut, parts of characters, masks."""

from __future__ import annotations

import random
import re

import pytest
from toys.subwords import Words
from transformers import AutoTokenizer

from ppl_align import JsonSchema, Regex
from ppl_align.constraints.llg import GuidanceMatcher, Vocabulary
from ppl_align.core.errors import WeightsNotFound
from ppl_align.lm.names import smollm2_folder

pytestmark = pytest.mark.lm


@pytest.fixture(scope="module")
def tokenizer():
    try:
        return AutoTokenizer.from_pretrained(smollm2_folder())
    except WeightsNotFound as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def subwords(tokenizer):
    return Words(tokenizer, eos_id=0)


def test_every_way_to_cut_a_text_is_accepted(subwords):
    matcher = Regex("It is (2022|2023)-1[12]!").compile(subwords)
    text = "It is 2022-11!"
    token_of = {text: v for v, text in enumerate(subwords.vocabulary)}
    rng = random.Random(0)
    cuts = set()
    for _ in range(100):
        ids: tuple[int, ...] = ()
        rest = text
        while rest:
            piece = rng.choice([rest[:k] for k in range(1, len(rest) + 1) if rest[:k] in token_of])
            ids, rest = (*ids, token_of[piece]), rest[len(piece) :]
        cuts.add(ids)
    assert len(cuts) > 5
    assert matcher.accepts(list(cuts)).all()
    for ids in cuts:
        for n in range(len(ids)):
            assert matcher.allowed([ids[:n]], 20)[0, ids[n]]


def test_a_mask_over_the_real_vocabulary(subwords):
    """Against every token's own text: after "4" of a number of at most three digits."""
    matcher = Regex("x[0-9]{1,3}y?").compile(subwords)
    prefix = subwords.encode("x") + subwords.encode("4")
    mask = matcher.allowed([prefix], 7)[0]
    expected = [bool(re.fullmatch("[0-9]{1,2}y?|y", text)) for text in subwords.vocabulary]
    expected[subwords.eos_id] = True
    assert mask.tolist() == expected
    assert 10 < mask.sum() < 200


def test_parts_of_characters(subwords):
    matcher = Regex("[é日]+").compile(subwords)
    characters = {"é": subwords.encode("é"), "日": subwords.encode("日")}
    parts = max(characters.values(), key=len)
    assert len(parts) > 1, "spelt in bytes"
    assert not matcher.accepts([parts[:1]]).any()
    assert matcher.viable([parts[:1]], len(parts) - 1).all()
    assert matcher.allowed([parts[:1]], 5)[0, parts[1]]
    assert matcher.accepts([parts]).all()
    assert not matcher.allowed([parts[:1]], 5)[0, subwords.encode("a")[0]], "half a character goes on with its rest"


@pytest.mark.parametrize("eos_id", [0, None])
def test_ids_that_only_the_network_has(tokenizer, eos_id):
    lm = Words(tokenizer, eos_id, extra=37)
    matcher = Regex("(?s).*").compile(lm)
    mask = matcher.allowed([(), lm.encode("Hello")], 3)
    assert mask.shape == (2, len(tokenizer) + 37)
    assert not mask[:, len(tokenizer) :].any()
    special = [v for v in tokenizer.all_special_ids if v != eos_id]
    assert not mask[:, special].any()
    assert not matcher.viable([(special[-1],)], 5).any()
    assert mask[:, 0].tolist() == [eos_id is not None] * 2
    assert mask[:, lm.encode(" world")[0]].all()
    assert Vocabulary.of(lm) is Vocabulary.of(lm), "made once"


def test_the_last_token_of_a_long_list(subwords):
    """With one token left, what does not end the text is not drawn, though hundreds of tokens could go on."""
    matcher = Regex("[a-z]{1,2}[.]").compile(subwords)
    assert isinstance(matcher, GuidanceMatcher)
    now, later = (matcher.allowed([()], left)[0] for left in (0, 5))
    ends = {v for v, text in enumerate(subwords.vocabulary) if re.fullmatch("[a-z]{1,2}[.]", text)}
    assert set(now.nonzero()[:, 0].tolist()) == ends
    assert later.sum() > 300


def test_a_json_record(subwords):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "mood": {"enum": ["good", "bad"]}},
        "required": ["name", "age", "mood"],
        "additionalProperties": False,
    }
    matcher = JsonSchema(schema).compile(subwords)
    good = subwords.encode('{"name": "Zoë", "age": 34, "mood": "good"}')
    assert matcher.accepts([good]).all()
    for n, token in enumerate(good):
        assert matcher.allowed([good[:n]], 40)[0, token]
    for text in ('{"name": "Zoë", "mood": "good", "age": 34}', '{"name": "Zoë", "age": 34, "mood": "so"', '{"name": 3'):
        assert not matcher.viable([subwords.encode(text)], 9).any()
