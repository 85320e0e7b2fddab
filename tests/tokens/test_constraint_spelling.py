"""Readers judge the text that tokens spell, in bytes: held against what the tokenizer decodes.

Vocabularies in which a character takes several tokens, and tokenizers that leave out the space in front of a text.
"""

from __future__ import annotations

import itertools
import random
import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from toys.subwords import Words
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ppl_align import Contains, EndsWith, MarkovLM, Mixture, Prompted, Regex
from ppl_align.constraints import LengthLimit
from ppl_align.core.errors import InputError, WeightsNotFound
from ppl_align.engines.smc.schedule import Schedule
from ppl_align.lm.names import smollm2_folder
from ppl_align.lm.spelling import Spelling
from ppl_align.rewards import Automaton

BROKEN = "\ufffd"
SPACE = "▁"
DECODERS = {
    "llama": [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)],
    "gemma": [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()],
    "metaspace": [decoders.ByteFallback(), decoders.Metaspace(SPACE)],
}
PIECES = [SPACE, "a", "y", "es", "▁yes", "▁a", "é", "日", "▁日"]
USED = [*PIECES, "<0x20>", "<0xC3>", "<0xA9>", "<0xE3>", "<0x80>", "<s>"]


def sentencepiece(kind: str, name: str = "pieces") -> Words:
    """A tokenizer as SentencePiece models become: spaces are in front of words, and bytes are the last resort."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    vocabulary = {token: v for v, token in enumerate(names)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(DECODERS[kind])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", name=name
    )
    return Words(tokenizer, eos_id=2)


@pytest.fixture(scope="module", params=DECODERS)
def pieces(request):
    return sentencepiece(request.param)


def sequences(lm: Words, length: int) -> list[tuple[int, ...]]:
    """Of the tokens above; without those in which bytes are no character (ByteFallback then drops good ones too)."""
    ids = [lm.tokenizer.get_vocab()[name] for name in USED]
    found = [one for n in range(length + 1) for one in itertools.product(ids, repeat=n)]
    return [one for one in found if BROKEN not in lm.decode(one)]


CASES = {
    **{
        f"contains {w!r}": (Contains(w), lambda text, w=w: w in text)
        for w in ("yes", " yes", "a", "é", " 日", "\u3000")
    },
    **{f"ends {w!r}": (EndsWith(w), lambda text, w=w: text.endswith(w)) for w in ("yes", " a", "é", " ")},
    **{
        f"regex {p!r}": (Regex(p), lambda text, p=p: re.fullmatch(p, text) is not None)
        for p in ("yes", " yes", "(?s).*é.*", " ?a?(yes)*", "[^y]*")
    },
    **{
        f"{n} words": (LengthLimit(min_words=n, max_words=n), lambda text, n=n: len(text.split()) == n)
        for n in (0, 1, 2)
    },
}


@pytest.mark.parametrize("name", CASES)
def test_sentencepiece_vocabularies_are_read_as_they_are_decoded(name, pieces):
    """Every short sequence, judged by its text; and what may come next, where nothing may follow."""
    constraint, judge = CASES[name]
    matcher, texts = constraint.compile(pieces), sequences(pieces, 3)
    truth = [judge(pieces.decode(one)) for one in texts]
    silent = [isinstance(constraint, Regex) and 1 in one for one in texts]  # what spells nothing has no place in it
    wrong = [
        (pieces.decode(one), good)
        for one, got, good, never in zip(texts, matcher.accepts(texts).tolist(), truth, silent, strict=True)
        if got != (good and not never)
    ]
    assert not wrong
    assert any(truth)
    assert not all(truth)
    known = dict(zip(texts, matcher.accepts(texts).tolist(), strict=True))
    for prefix in [one for one in texts if len(one) < 2]:
        mask = matcher.allowed([prefix], 0)[0]
        after = [(v, (*prefix, v)) for v in range(pieces.vocab_size) if (*prefix, v) in known and v != pieces.eos_id]
        assert [bool(mask[v]) for v, _ in after] == [known[one] for _, one in after]
        assert bool(mask[pieces.eos_id]) == known[prefix]


def test_smc_sees_where_words_begin(pieces):
    """The text of such a token on its own has lost its space, and with it the end of the word before."""
    closes = Schedule("word", pieces).closes
    begin = {name for name, v in pieces.tokenizer.get_vocab().items() if closes[v]}
    assert begin >= {SPACE, "▁yes", "▁a", "▁日", "<0x20>"}
    assert not begin & {"a", "y", "es", "é", "<0xC3>"}


def test_the_space_in_front_is_the_tokenizers():
    """What is " yes" inside of a text is "yes" at its beginning, where the tokenizer leaves the space out."""
    llama, gemma = sentencepiece("llama"), sentencepiece("gemma")
    ids = llama.tokenizer.get_vocab()
    yes, space = ids["▁yes"], ids[SPACE]
    assert Regex("yes").compile(llama).accepts([(yes,), (space, ids["y"], ids["es"]), (1,)]).tolist() == [
        True,
        True,
        False,
    ]
    assert Regex(" yes").compile(llama).accepts([(yes,), (space, yes)]).tolist() == [False, True]
    assert Regex(" yes").compile(gemma).accepts([(yes,), (space, yes)]).tolist() == [True, False]
    assert Spelling.of(llama).text([1, yes, yes]) == llama.decode([1, yes, yes]) == "yes yes"


@pytest.mark.parametrize(
    "make", [lambda lm: Prompted(lm, [5]), lambda lm: Mixture([lm, lm])], ids=["prompted", "mixture"]
)
def test_who_is_made_of_another_spells_as_it_does(make):
    inner = sentencepiece("llama")
    yes = inner.tokenizer.get_vocab()["▁yes"]
    assert Spelling.of(make(inner)) is Spelling.of(inner)
    assert Contains(" yes").compile(make(inner)).accepts([(yes,), (yes, yes)]).tolist() == [False, True]


def test_a_tokenizer_that_spells_nothing_token_by_token():
    """One line, and a way out."""
    lm = sentencepiece("llama")
    lm.tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("ay", "b")])
    for constraint in (Contains("yes"), Regex("yes"), LengthLimit(max_words=2)):
        with pytest.raises(InputError, match=r"constrain its ids \(AcceptedBy, LengthLimit\(max_tokens=\)\)") as caught:
            constraint.compile(lm)
        assert "\n" not in str(caught.value)


# -- letters of a toy --------------------------------------------------------------------------------------------


def toy(tokens):
    return MarkovLM(torch.zeros(len(tokens), len(tokens)), tokens=tokens, name="toy")


@pytest.mark.parametrize("text", ["aé", "é", "日本日", "éaé"])
def test_a_toy_is_read_in_bytes_as_well(text):
    lm = toy(["a", "é", "日", "本", "日本", "éa", ""])
    contains, ends = Automaton.contains_text(text, lm), Automaton.ends_with_text(text, lm)
    for n in range(1, 5):
        tokens = torch.tensor(list(itertools.product(range(7), repeat=n)))
        texts = [lm.decode(row) for row in tokens.tolist()]
        assert contains.accepting[contains.run(tokens)].tolist() == [text in one for one in texts]
        assert ends.accepting[ends.run(tokens)].tolist() == [one.endswith(text) for one in texts]


def test_words_end_at_every_white_space_of_unicode():
    spaces = [chr(code) for code in range(2**16) if chr(code).isspace()]
    lm = toy(["a", *spaces, "\u3001", "\u200b"])  # the last two look like spaces, or nearly
    text = [(0, v, 0) for v in range(1, lm.vocab_size)]
    assert LengthLimit(min_words=2).compile(lm).accepts(text).tolist() == [
        len(lm.decode(ids).split()) == 2 for ids in text
    ]
    assert len(spaces) > 20


def test_half_a_surrogate_pair_is_no_text():
    with pytest.raises(InputError, match="half a surrogate pair"):
        Contains("\ud800").compile(toy(["a"]))


# -- SmolLM2: 256 bytes and what was merged of them ---------------------------------------------------------------


@pytest.fixture(scope="module")
def subwords():
    try:
        return Words(AutoTokenizer.from_pretrained(smollm2_folder()), eos_id=0)
    except WeightsNotFound as error:
        pytest.skip(str(error))


WANTED = ["日", "😀", "łódź", "Привет", "é", "a", " é", "日本", "\u3000", "aab"]


def noise(lm: Words, count: int) -> list[tuple[int, ...]]:
    """Random tokens of few bytes, with the tokens of the words above, whole and in part, among them."""
    rng = random.Random(5)
    whole = [lm.encode(text) for text in [*WANTED, "e\u0301", "aa", " ", "\u00a0", "\u2003b"]]
    parts = [v for v, text in enumerate(lm.vocabulary) if BROKEN in text]
    found: list[tuple[int, ...]] = []
    for _ in range(count):
        ids: tuple[int, ...] = ()
        for _ in range(rng.randint(1, 5)):
            word = rng.choice(whole)
            cut = rng.randint(0, len(word))
            ids += rng.choice([word, word, word[:cut], word[cut:], (rng.choice(parts),)])
        found.append(ids)
    return found


@pytest.mark.lm
@pytest.mark.parametrize("text", WANTED)
def test_bytes_of_characters_are_read_as_they_are_decoded(text, subwords):
    """Parts of characters and what is no character included; and as llguidance reads them, where it is text."""
    sample = noise(subwords, 2000)
    texts = [subwords.decode(ids) for ids in sample]
    truth = [text in one for one in texts]
    assert 50 < sum(truth) < 1900
    assert sum(BROKEN in one for one in texts) > 500
    assert Contains(text).compile(subwords).accepts(sample).tolist() == truth
    assert EndsWith(text).compile(subwords).accepts(sample).tolist() == [one.endswith(text) for one in texts]
    whole = [ids for ids, one in zip(sample, texts, strict=True) if BROKEN not in one]
    expected = [good for good, one in zip(truth, texts, strict=True) if BROKEN not in one]
    assert Regex(f"(?s).*{text}.*").compile(subwords).accepts(whole).tolist() == expected


@pytest.mark.lm
def test_what_its_tokens_spell_is_what_llguidance_reads(subwords):
    from llguidance.hf import from_tokenizer

    theirs = from_tokenizer(subwords.tokenizer, n_vocab=subwords.vocab_size, eos_token=0)
    spelling = Spelling.of(subwords)
    for v, piece in enumerate(spelling.within):
        assert piece == (b"" if theirs.is_special_token(v) else theirs.decode_bytes([v]))
    assert spelling.first is spelling.within
    assert all(spelling.text(ids) == subwords.decode(ids) for ids in noise(subwords, 500))


@pytest.mark.lm
def test_words_of_many_bytes_are_counted_as_split_does(subwords):
    sample = noise(subwords, 1000)
    counts = [len(subwords.decode(ids).split()) for ids in sample]
    for n in range(5):
        matcher = LengthLimit(min_words=n, max_words=n).compile(subwords)
        assert matcher.accepts(sample).tolist() == [count == n for count in counts]
        for left in (1, 2):  # whatever may come next leads to what can still be met
            prefix = sample[n]
            allowed = matcher.allowed([prefix], left - 1)[0].nonzero()[:60, 0].tolist()
            after = [(*prefix, v) for v in allowed if v != subwords.eos_id]
            assert bool(matcher.viable(after, left - 1).all()) if after else True
