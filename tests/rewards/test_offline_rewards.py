"""Readability, length, keywords, similarity: what they are worth, their bounds, and the contract of a reward."""

from __future__ import annotations

import pickle
import re

import pytest
import torch

from ppl_align import CallableLM, Enumeration, completion, reward
from ppl_align.core.errors import InputError
from ppl_align.core.runs import run_memory
from ppl_align.core.text import Texts
from ppl_align.data.packages import MINILM
from ppl_align.rewards import Embedder, Keywords, LengthReward, Readability, Similarity, evaluate
from ppl_align.rewards.cache import identity
from ppl_align.rewards.readability import syllables
from ppl_align.testing import check_reward
from ppl_align.testing.texts import TEXTS

needs_minilm = pytest.mark.skipif(MINILM.installed is None, reason="ppl-align fetch minilm")
CHAT = [[{"role": "assistant", "content": "The cat sat on the mat."}]]


# -- readability ---------------------------------------------------------------------------------------------

# "The quick brown fox ..." counted by hand: words, sentences, syllables
COUNTED = {
    "The cat sat on the mat.": (6, 1, 6),
    "The quick brown fox jumps over the lazy dog.": (9, 1, 11),
    "I came. I saw. I conquered.": (6, 3, 7),
    "Reading is a complicated activity": (5, 1, 12),
    "It's 10 o'clock -- really? Yes!": (4, 2, 6),
}


@pytest.mark.parametrize(("text", "counts"), COUNTED.items())
def test_readability_is_flesch_and_kincaid(text, counts):
    words, sentences, spoken = counts
    ease = 206.835 - 1.015 * words / sentences - 84.6 * spoken / words
    grade = 0.39 * words / sentences + 11.8 * spoken / words - 15.59
    assert Readability()([text]) == [pytest.approx(ease, abs=1e-5)]
    assert Readability("grade")([text]) == [pytest.approx(grade, abs=1e-5)]


# Ordinary prose, the first lines of "Alice's Adventures in Wonderland", with the syllables of each word as spoken.
PROSE = """
alice 2 was 1 beginning 3 to 1 get 1 very 2 tired 1 of 1 sitting 2 by 1 her 1 sister 2 on 1 the 1 bank 1 and 1
having 2 nothing 2 do 1 once 1 or 1 twice 1 she 1 had 1 peeped 1 into 2 book 1 reading 2 but 1 it 1 no 1
pictures 2 conversations 4 in 1 what 1 is 1 use 1 a 1 thought 1 without 2 so 1 considering 4 own 1 mind 1 as 1
well 1 could 1 for 1 hot 1 day 1 made 1 feel 1 sleepy 2 stupid 2 whether 2 pleasure 2 making 2 daisy 2 chain 1
would 1 be 1 worth 1 trouble 2 getting 2 up 1 picking 2 daisies 2 when 1 suddenly 3 white 1 rabbit 2 with 1
pink 1 eyes 1 ran 1 close 1 there 1 remarkable 4 that 1 nor 1 did 1 think 1 much 1 out 1 way 1 hear 1 say 1
itself 2 oh 1 dear 1 shall 1 late 1 over 2 afterwards 3 occurred 2 ought 1 have 1 wondered 2 at 1 this 1 time
1 all 1 seemed 1 quite 1 natural 3 actually 4 took 1 watch 1 waistcoat 2 pocket 2 looked 1 then 1 hurried 2
started 2 feet 1 flashed 1 across 2 never 2 before 2 seen 1 either 2 take 1 burning 2 curiosity 5 field 1
after 2 fortunately 4 just 1 see 1 pop 1 down 1 large 1 hole 1 under 2 hedge 1
"""


def test_nine_words_in_ten_have_their_syllables():
    counted = {word: int(number) for word, number in re.findall(r"(\w+) (\d)", PROSE)}
    wrong = {word: syllables(word) for word, number in counted.items() if syllables(word) != number}
    assert len(counted) > 120
    assert len(wrong) <= len(counted) / 10, wrong
    assert (syllables(""), syllables("shh")) == (1, 1)


def test_readability_of_no_words_and_its_bounds():
    assert Readability()(["", "!!! 123", "Go"]) == [None, None, pytest.approx(121.22)]
    assert Readability("grade")(["Go"]) == [pytest.approx(-3.4)]
    assert (Readability().upper, Readability().lower) == (pytest.approx(121.22), None)
    assert (Readability("grade").upper, Readability("grade").lower) == (None, pytest.approx(-3.4))
    with pytest.raises(InputError, match="is 'ease' or 'grade', got 'fog'"):
        Readability("fog")


# -- length --------------------------------------------------------------------------------------------------


def test_length():
    texts = ["", "one", "one two  three\nfour"]
    assert LengthReward()(texts) == [0, 1, 4]
    assert LengthReward(2)(texts) == [-2, -1, -2]
    assert LengthReward((1, 3))(texts) == [-1, 0, -1]
    assert LengthReward((1, 3), "characters")(texts) == [-1, 0, 3 - len(texts[2])]
    assert LengthReward(unit="tokens")(texts, completion_ids=[[9], [1, 9], [1, 2, 3]]) == [1, 2, 3]
    assert (LengthReward().lower, LengthReward().upper, LengthReward(3).lower, LengthReward(3).upper) == (
        0,
        None,
        None,
        0,
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LengthReward(unit="lines"), "one of tokens, words, characters, got 'lines'"),
        (lambda: LengthReward(-1), r"a number or \(least, most\), got -1"),
        (lambda: LengthReward((3, 1)), r"got \(3, 1\)"),
        (lambda: LengthReward((1, 2, 3)), "got"),
        (lambda: LengthReward(2.5), "got 2.5"),
        (lambda: LengthReward(True), "got True"),
        (lambda: evaluate("r", LengthReward(unit="tokens"), "text"), "give it the completion itself"),
        (lambda: Keywords([]), "at least one word"),
        (lambda: Keywords(["a", " "]), "none of them empty"),
        (lambda: Keywords("a", "some"), "is 'any', 'all' or 'count', got 'some'"),
        (lambda: Similarity(""), "at least one text, none of them empty"),
        (lambda: Similarity([]), "at least one text"),
        (lambda: Embedder()("a text"), r"write \[text\]"),
    ],
)
def test_arguments_that_make_no_sense(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_tokens_are_counted_as_trl_counts_them():
    lm = CallableLM(3, lambda prefix: torch.zeros(len(prefix), 3), eos_id=2, tokens=["a", "b", "$"])

    def program():
        reward("short", LengthReward((1, 2), "tokens"), completion("x", lm, "a", max_new_tokens=3), beta=0.5)

    # the end counts: 1 token with 1/3, 2 with 2/9, 3 (cut off or ended) with 4/9 and one too many
    z = 1 / 3 + 2 / 9 + 4 / 9 * torch.tensor(-2.0).double().exp()
    assert float(Enumeration().run(program).log_evidence) == pytest.approx(float(z.log()), abs=1e-6)


# -- keywords ------------------------------------------------------------------------------------------------


def test_keywords():
    texts = ["", "Art by the SEA", "a party at the seaside", "the open sea, the open sea", "(sea)"]
    assert Keywords("sea")(texts) == [0, 1, 0, 1, 1]
    assert Keywords(["sea", "art"], "all")(texts) == [0, 1, 0, 0, 0]
    assert Keywords(["sea", "art", "open sea"], "count")(texts) == [0, 2, 0, 2, 1]
    assert Keywords(["sea", "art"], whole=False)(texts) == [0, 1, 1, 1, 1]
    assert Keywords("sea", case=True)(texts) == [0, 0, 0, 1, 1]
    assert Keywords(["Straße", "STRASSE", "c++"], "count")(["in der strasse", "C++!"]) == [1, 1]
    assert (Keywords("a").lower, Keywords("a").upper, Keywords(["a", "b", "A"], "count").upper) == (0, 1, 2)


# -- similarity ----------------------------------------------------------------------------------------------


@needs_minilm
def test_similarity_is_the_cosine_of_unit_vectors():
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = Embedder()(texts)
    assert (vectors.shape, vectors.dtype, vectors.requires_grad) == ((3, 384), torch.float32, False)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    assert Embedder().size == 384
    # what sentence-transformers' own documentation prints for this model and these sentences
    printed = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    torch.testing.assert_close(vectors @ vectors.T, printed, atol=1e-4, rtol=0)
    for text, cosines in zip(texts, printed.tolist(), strict=True):
        assert Similarity(text)(texts) == pytest.approx(cosines, abs=1e-4)
    assert Similarity([texts[2], texts[0]])(texts) == pytest.approx([1, 0.6660, 1], abs=1e-4), "the nearest counts"


@needs_minilm
def test_padding_and_truncation_of_the_embedder():
    texts = ["short", "a somewhat longer sentence about the weather in spring", "word " * 400, "word " * 300]
    together, alone = Embedder()(texts), torch.cat([Embedder()([text]) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(Embedder(batch_size=1)(texts), together, atol=1e-5, rtol=0)
    torch.testing.assert_close(together[2], together[3], atol=1e-5, rtol=0)  # 256 tokens are read
    assert Embedder()([]).shape == (0, 384)


def test_an_embedder_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="holds no sentence-transformers model"):
        Embedder(str(tmp_path))(["a"])
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false}')
    with pytest.raises(InputError, match="does not pool by the mean"):
        Embedder(str(tmp_path))(["a"])


# -- all of them ---------------------------------------------------------------------------------------------

ALL = [
    Readability(),
    Readability("grade"),
    LengthReward(),
    LengthReward((3, 20)),
    LengthReward(100, "characters"),
    Keywords(["the", "a", "good"], "count"),
    Keywords(["the", "a"], "all", whole=False, case=True),
    pytest.param(Similarity(["A good film.", "A bad film."]), marks=needs_minilm),
]


@pytest.mark.parametrize("fn", ALL, ids=repr)
def test_the_contract_of_a_reward(fn):
    texts = [*TEXTS[:8], max(TEXTS, key=len)[:400]] if isinstance(fn, Similarity) else None  # networks take their time
    check_reward(fn, texts).raise_if_failed()


@pytest.mark.parametrize("fn", ALL, ids=repr)
def test_written_in_a_body_it_is_the_same_reward_every_time(fn):
    again = pickle.loads(pickle.dumps(fn))
    assert again == fn
    assert identity(again) == identity(fn)
    assert hash(again) == hash(fn)
    assert fn(CHAT) == fn(["The cat sat on the mat."])
    with run_memory():
        first = evaluate("r", fn, Texts(["some good words", "x y z"]))
        torch.testing.assert_close(evaluate("r", again, Texts(["some good words", "x y z"])), first, equal_nan=True)


def test_tokens_pass_the_contract_too():
    texts = ["", "a", "a b", "a b c"]
    check_reward(LengthReward(2, "tokens"), texts, completion_ids=[[9], [1, 9], [1, 2, 9], [1, 2, 3]]).raise_if_failed()
