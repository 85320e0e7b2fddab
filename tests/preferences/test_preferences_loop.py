"""Frozen or refreshed: rounds against enumeration, and the arms against each other."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pyro
import pytest
import torch
from torch import Tensor

import ppl_align
from ppl_align import CallableLM, reward
from ppl_align.core.errors import InputError
from ppl_align.preferences import Pairs, refresh
from ppl_align.preferences.loop import compare
from ppl_align.testing import Oracle

# -- frozen or refreshed -----------------------------------------------------------------------------------------------

POOL = [" ".join("01"[int(b)] for b in f"{i:0{n}b}") for n in range(1, 8) for i in range(2**n)]
LOG_PRIOR = torch.tensor([-1.8 * len(text.split()) for text in POOL], dtype=torch.float64)


def words(texts) -> Tensor:
    """Ones, zeros, and ones beyond the third, which hardly any text of the prior has."""
    rows = [[t.count("1"), t.count("0"), max(0, t.count("1") - 3)] for t in texts]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)


def reader(texts) -> list[float]:
    """Likes ones, up to three."""
    return (words(texts) @ torch.tensor([1.0, 0.0, -2.5], dtype=torch.float64)).tolist()


FIRST = Pairs(["1", "1 1", "1 0", "1 1 0", "0 1"], ["0", "1 0", "0", "0 1 0", "0 0"])


def arm(name: str, seed: int = 0, **settings):
    settings = {"kls": (0.5, 1.0, 2.0, 3.0), "num_labels": 15, "log_prior": LOG_PRIOR, "prior_scale": 4.0, **settings}
    return refresh(POOL, reader, FIRST, words, arm=name, components=None, seed=seed, **settings)


def test_each_round_is_the_posterior_of_its_reward():
    """Pool, reward and beta of a round, said as a program and enumerated."""
    rounds = arm("refreshed")
    base = LOG_PRIOR.log_softmax(-1)
    for now in rounds:

        def written(now=now):
            which = pyro.sample("which", pyro.distributions.Categorical(logits=base))
            r = torch.tensor(now.posterior.mean()(POOL), dtype=torch.float64)[which]
            reward("r", lambda r: r, r, beta=now.beta)

        oracle = Oracle(written)
        torch.testing.assert_close(oracle.log_target, now.log_weight)
        kl = float((oracle.log_target.exp() * (oracle.log_target - oracle.log_prior)).sum())
        assert kl == pytest.approx(now.kl, abs=1e-6)
        gold = torch.tensor(reader(POOL), dtype=torch.float64)
        assert now.gold == pytest.approx(float(oracle.mean(gold)) - float((oracle.log_prior.exp() * gold).sum()))


def test_labels_are_bradley_terry_and_of_the_arm():
    gold = torch.tensor(reader(POOL), dtype=torch.float64)
    law = (LOG_PRIOR + gold).log_softmax(-1)
    pairs = compare(POOL, gold, law, 4000, torch.Generator().manual_seed(0))
    value = dict(zip(POOL, gold.tolist(), strict=True))
    gaps = [value[a] - value[b] for a, b in zip(pairs.better, pairs.worse, strict=True)]
    right = torch.tensor([0.5 if gap == 0 else float(gap > 0) for gap in gaps])
    p = torch.tensor(gaps).abs().sigmoid()
    assert abs(float((right - p).mean())) < 4.5 * float((right - p).std()) / 4000**0.5
    seen = torch.tensor([len(text.split()) for text in (*pairs.better, *pairs.worse)]).double().mean()
    lengths = torch.tensor([len(text.split()) for text in POOL]).double()
    assert seen > (LOG_PRIOR.softmax(-1) * lengths).sum() + 0.5, "they come from the law, not from the prior"


def test_a_text_that_was_drawn_often_is_compared_as_one():
    """Pairs of different texts, as from the law of the texts: two rare ones meet as rarely, however many copies."""
    often = ["0"] * 8 + ["1", "1 1"]
    level = torch.zeros(10, dtype=torch.float64)
    pairs = compare(often, level, level.log_softmax(-1), 2000, torch.Generator().manual_seed(0))
    rare = torch.tensor(["0" not in pair for pair in zip(pairs.better, pairs.worse, strict=True)]).double()
    want = 2 * 0.1 * 0.1 / 0.9
    assert abs(float(rare.mean()) - want) < 4 * (want * (1 - want) / 2000) ** 0.5
    rounds = refresh([*POOL, *POOL], reader, FIRST, words, kls=(0.5,), components=None)
    once = refresh(POOL, reader, FIRST, words, kls=(0.5,), components=None)
    assert rounds[0].gold == pytest.approx(once[0].gold), "weights are those of the draws"


def test_the_model_of_the_gallery_keeps_every_draw(monkeypatch):
    """Draws of the prior stand for it only as often as they were drawn."""
    few = CallableLM(3, lambda prefix: torch.zeros(len(prefix), 3), eos_id=2)
    monkeypatch.setattr(ppl_align, "CausalLM", lambda name: few)
    path = Path(__file__).parents[2] / "models/frozen_or_refreshed.py"
    spec = importlib.util.spec_from_file_location("frozen_or_refreshed", path)
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    learned = SimpleNamespace(learn=lambda *_: SimpleNamespace(mean=lambda: None))
    stubs = {"film_pairs": lambda *_, **__: None, "Embedding": lambda: words, "RewardPosterior": learned}
    for name, stub in stubs.items():
        monkeypatch.setattr(model, name, stub)
    monkeypatch.setattr(model, "refresh", lambda pool, *_, **__: pool)
    pool = model._rounds("0", 2, "frozen", num_draws=64)
    assert len(pool) == 64 > len(set(pool))


def test_arms_spend_their_labels_as_they_say():
    assert [len(now.pairs) for now in arm("frozen")] == [5, 5, 5, 5]
    for name in ("prior", "refreshed"):
        assert [len(now.pairs) for now in arm(name)] == [5, 20, 35, 50]
    first = {name: arm(name)[0] for name in ("frozen", "prior", "refreshed")}
    assert first["frozen"].gold == first["prior"].gold == first["refreshed"].gold
    again, other = arm("refreshed"), arm("refreshed", seed=1)
    assert [r.gold for r in again] == [r.gold for r in arm("refreshed")] != [r.gold for r in other]


def test_frozen_is_overoptimised_and_refreshed_is_not():
    """The same distance from the prior, three nats; averages over seeds, by paired differences."""
    frozen = arm("frozen")
    assert frozen[-1].proxy > frozen[1].proxy, "it believes that it gets better"
    assert frozen[-1].gold < frozen[1].gold, "and gets worse"
    runs = {
        name: torch.tensor([[r.gold for r in arm(name, seed)] for seed in range(30)]) for name in ("prior", "refreshed")
    }
    for better, worse in (
        (runs["refreshed"][:, -1], runs["prior"][:, -1]),
        (runs["refreshed"][:, -1], torch.full((30,), frozen[-1].gold)),
        (runs["refreshed"][:, -1], runs["refreshed"][:, 1]),
    ):
        gap = better - worse
        assert gap.mean() > 3 * gap.std() / 30**0.5


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: arm("thawed"), "arm must be one of"),
        (lambda: arm("frozen", num_labels=0), "num_labels must be a whole number"),
        (lambda: arm("frozen", kls=(50.0,)), "takes more draws"),
        (lambda: refresh(["1", "1"], reader, FIRST, words, kls=(0.0,)), "fewer than two different texts"),
    ],
)
def test_a_loop_that_cannot_run_gives_one_line(make, says):
    with pytest.raises(InputError, match=says):
        make()
