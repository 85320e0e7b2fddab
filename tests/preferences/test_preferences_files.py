"""Preferences: files, what is refused, and real pairs with real features."""

from __future__ import annotations

import json
import math
from functools import partial

import pandas as pd
import pytest
import torch
from toys.learned_toys import SAMPLED, TOY, TOY_PAIRS, counts, program

from ppl_align.core.errors import InputError, RewardError
from ppl_align.data.packages import MINILM, REVIEWS
from ppl_align.preferences import Embedding, LMFeatures, Pairs, Remembered, RewardPosterior, film_pairs, read_pairs
from ppl_align.testing import Oracle

# -- files -------------------------------------------------------------------------------------------------------------

ROWS = [
    {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    {"prompt": "capital of France?", "chosen": "Paris", "rejected": "Lyon"},
]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_preference_files(tmp_path, ending):
    path, frame = tmp_path / f"pairs.{ending}", pd.DataFrame(ROWS)
    {
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "json": lambda: frame.to_json(path, orient="records"),
        "csv": lambda: frame.to_csv(path, index=False),
        "parquet": lambda: frame.to_parquet(path),
    }[ending]()
    assert read_pairs(path) == Pairs(["4", "Paris"], ["5", "Lyon"], ["2+2?", "capital of France?"])


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_chat_messages_and_trls_implicit_prompt(tmp_path, ending):
    user = {"role": "user", "content": "2+2?"}
    answer = lambda text: {"role": "assistant", "content": text}  # noqa: E731
    explicit = [{"prompt": [user], "chosen": [answer("4")], "rejected": [answer("5")]}]
    implicit = [{"chosen": [user, answer("4")], "rejected": [user, answer("5")]}]
    for rows in (explicit, implicit):
        path = tmp_path / f"pairs.{ending}"
        if ending == "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        else:
            pd.DataFrame(rows).to_parquet(path)
        assert read_pairs(path) == Pairs(["4"], ["5"], ["2+2?"])
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"chosen": "a b", "rejected": "a c"}))
    assert read_pairs(texts) == Pairs(["a b"], ["a c"])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("pairs.jsonl", "", "it is empty"),
        ("pairs.csv", "", "it is empty"),
        ("pairs.jsonl", "{not json", "cannot be read as preference pairs"),
        ("pairs.jsonl", '{"chosen": "a", "rejected": "b"}\n{not json', "line 2: Expecting property name"),
        ("pairs.parquet", "no parquet", "cannot be read as preference pairs"),
        ("pairs.json", '{"chosen": "a"}', "is not a list of objects"),
        ("pairs.txt", "a", "preference pairs are read from .jsonl, .json, .csv, .parquet"),
        ("pairs.csv", "prompt,better\na,b\n", "row 0 has no 'chosen' (its columns: prompt, better)"),
        ("pairs.jsonl", '{"chosen": "a", "rejected": "a"}', "pair 0 compares a text with itself"),
        ("pairs.jsonl", '{"chosen": 3, "rejected": "a"}', "neither a text nor a list of chat messages"),
        ("pairs.jsonl", '{"chosen": [{"role": "user"}], "rejected": "a"}', "neither a text nor a list of chat"),
        ("missing.jsonl", None, "there is no such file"),
    ],
)
def test_a_bad_preference_file_gives_one_line(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        read_pairs(tmp_path / name)
    assert says in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("posterior", [TOY, SAMPLED], ids=["gaussian", "draws"])
@pytest.mark.filterwarnings("ignore::ppl_align.preferences.OptimismWarning")
def test_save_and_load(tmp_path, posterior):
    path = posterior.save(tmp_path / "folder" / "reward.npz")
    back = RewardPosterior.load(path, counts)
    texts = ["1 0", "0 0"]
    for fn in (RewardPosterior.mean, RewardPosterior.pessimistic, partial(RewardPosterior.marginalised, beta=0.5)):
        assert fn(back)(texts) == fn(posterior)(texts)
    assert repr(back) == repr(posterior)
    with pytest.raises(InputError, match=r"was learned with counts: give these features"):
        RewardPosterior.load(path)
    assert [p.name for p in path.parent.iterdir()] == ["reward.npz"]


def test_features_of_the_library_are_found_again(tmp_path):
    """By name, and without the memory that was wrapped around them."""
    for features in (Embedding(), Remembered(Embedding())):
        posterior = RewardPosterior(features, TOY.scale, TOY.belief, "laplace", 1.5, 6)
        assert RewardPosterior.load(posterior.save(tmp_path / "reward.npz")).features == Embedding()


def test_a_text_may_hold_any_line_separator(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"chosen": "a\u2028b", "rejected": "c"}\n', encoding="utf-8")
    assert read_pairs(path).better == ("a\u2028b",)


def test_remembered_features_are_asked_once():
    asked = []

    def features(texts):
        asked.extend(texts)
        return counts(texts)

    known = Remembered(features)
    assert torch.equal(known(["1", "0", "1"]), counts(["1", "0", "1"]).double())
    known(["0", "1 1"])
    assert asked == ["1", "0", "1 1"]


def test_a_file_that_is_no_reward(tmp_path):
    import numpy as np

    (tmp_path / "broken.npz").write_bytes(b"PK not a zip")
    np.savez(tmp_path / "pickled.npz", about=np.array({"a": 1}, dtype=object))
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    for name in ("broken.npz", "pickled.npz", "other.npz"):
        with pytest.raises(InputError, match="cannot be read as a learned reward"):
            RewardPosterior.load(tmp_path / name)
    with pytest.raises(InputError, match="no learned reward at"):
        RewardPosterior.load(tmp_path / "missing.npz")
    with pytest.raises(InputError, match=r"is an \.npz file"):
        TOY.save(tmp_path / "reward.pkl")


# -- what is refused ---------------------------------------------------------------------------------------------------


def nan_features(texts):
    return torch.tensor([[math.nan if "1" in text else 1.0] for text in texts])


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Pairs(["a"], ["a"]), InputError, "pair 0 compares a text with itself"),
        (lambda: Pairs(["a", "b"], ["c"]), InputError, "2 better, 1 worse: there must be as many of each"),
        (lambda: Pairs("a", "b"), InputError, "better is a list of texts, got one text"),
        (lambda: Pairs(["a", None], ["b", "c"]), InputError, "better[1] is no text but None"),
        (lambda: RewardPosterior.learn(TOY_PAIRS[:1], counts), InputError, "at least 2 preference pairs, got 1"),
        (lambda: RewardPosterior.learn([("a", "b")], counts), InputError, "takes Pairs("),
        (lambda: RewardPosterior.learn(TOY_PAIRS, Embedding), InputError, "features are a function"),
        (lambda: RewardPosterior.learn(TOY_PAIRS, lambda t: torch.zeros(3)), InputError, "got shape [3] for n=9"),
        (lambda: RewardPosterior.learn(TOY_PAIRS, lambda t: [1.0]), InputError, "got list for n=9 texts"),
        (lambda: RewardPosterior.learn(TOY_PAIRS, lambda t: torch.ones(len(t), 2)), InputError, "are the same for all"),
        (lambda: RewardPosterior.learn(TOY_PAIRS, nan_features), RewardError, "NaN or infinite for the text '1'"),
        (lambda: RewardPosterior.learn(TOY_PAIRS, counts, "map"), InputError, "method must be one of"),
        (lambda: RewardPosterior.learn(TOY_PAIRS, counts, prior_scale=0), InputError, "prior_scale must be positive"),
        (lambda: RewardPosterior.learn(TOY_PAIRS, counts, components=0), InputError, "components must be a whole"),
        (lambda: TOY.pessimistic(-1), InputError, "0 or more, got -1"),
        (lambda: TOY.marginalised(0), InputError, "positive and finite"),
        (lambda: Oracle(program, TOY, "median"), InputError, "use must be one of"),
        (lambda: TOY.report(TOY_PAIRS[:0]), InputError, "at least one pair"),
        (lambda: film_pairs(10**6), InputError, "fewer than num_pairs=1000000"),
    ],
)
def test_bad_input_gives_one_line(make, error, says):
    if "film" in says or "num_pairs" in says:
        needs(REVIEWS)
    with pytest.raises(error) as caught:
        make()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_features_of_another_size_are_refused():
    other = RewardPosterior(lambda t: torch.zeros(len(t), 2), TOY.scale, TOY.belief, "laplace", 1.5, 6)
    with pytest.raises(InputError, match="learned with 3 features, these are 2"):
        other.mean()(["a"])


# -- real pairs and real features --------------------------------------------------------------------------------------


def needs(package):
    if package.installed is None:
        pytest.skip(f"{package.pin} is not installed")


def test_film_pairs_are_fresh_above_rotten_of_one_film():
    needs(REVIEWS)
    frame = pd.read_csv(REVIEWS.place)
    frame["text"] = frame["text"].str.strip()
    kind, film = (
        dict(zip(frame.text, frame.category, strict=True)),
        dict(zip(frame.text, frame.movie_name, strict=True)),
    )
    train, held_out = film_pairs(300, seed=1), film_pairs(100, seed=1, held_out=True)
    for pairs in (train, held_out):
        assert {kind[text] for text in pairs.better} == {"fresh"}
        assert {kind[text] for text in pairs.worse} == {"rotten"}
        assert [film[text] for text in pairs.better] == [film[text] for text in pairs.worse]
        assert len({*pairs.better, *pairs.worse}) == 2 * len(pairs)
    assert not {film[text] for text in train.better} & {film[text] for text in held_out.better}
    assert film_pairs(50, seed=1) == train[:50]
    assert film_pairs(50, seed=2) != train[:50]


def test_embeddings_tell_fresh_from_rotten_of_films_never_seen():
    needs(REVIEWS)
    needs(MINILM)
    posterior = RewardPosterior.learn(film_pairs(100), Embedding())
    report = posterior.report(film_pairs(80, held_out=True))
    assert report.accuracy > 0.5 + 2 * report.standard_error
    assert report.log_likelihood > math.log(0.5)
    good, bad = posterior.mean()(["A wonderful, moving film.", "A dull, stupid mess."])
    assert good > bad + 0.5


@pytest.mark.lm
def test_lm_features_are_the_mean_last_hidden_state(smollm2):
    features = LMFeatures(smollm2, batch_size=2)
    texts = ["A fine film.", "", "Dull", "A much longer text about a film that nobody wants to see again."]
    found = features(texts)
    assert found.shape == (4, smollm2.hidden_size)
    assert not found[1].any()
    ids = torch.tensor([smollm2.encode(texts[3])])
    with torch.no_grad():
        hidden = smollm2.model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(found[3], hidden[0].mean(0).float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(features(texts[:1])[0], found[0], rtol=1e-3, atol=1e-3)
    assert features == LMFeatures(smollm2, batch_size=2)
