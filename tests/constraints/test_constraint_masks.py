"""How masks and psi get to the device: as little as says what is in them, and without waiting for the device.

There need be no GPU for this. On torch's ``meta`` device tensors have a shape and no values, so whatever would bring
one back to the host (``.item()``, ``.cpu()``, ``nonzero``, a truth value), or mix the two, is an error there.
"""

from __future__ import annotations

import pytest
import torch

import ppl_align.constraints.automata
import ppl_align.constraints.length
import ppl_align.constraints.llg
import ppl_align.lm.restriction
import ppl_align.lm.transfer
import ppl_align.twists.lookahead
from ppl_align import SMC, Contains, EndsWith, ImportanceSampling, MarkovLM, Regex, completion, constrain, look_ahead
from ppl_align.constraints import LengthLimit
from ppl_align.constraints.unfinished import Unfinished
from ppl_align.lm.decoding import Rows
from ppl_align.lm.restriction import Restriction
from ppl_align.program.constrain import compiled
from ppl_align.twists.hard_constraint import HardConstraint
from ppl_align.twists.site_lookahead import AtSite
from ppl_align.twists.twist import Sum

META = torch.device("meta")
LIMIT = 24
READING = (
    ppl_align.constraints.automata,
    ppl_align.constraints.length,
    ppl_align.constraints.llg,
    ppl_align.twists.lookahead,
    ppl_align.lm.restriction,
)
LETTERS = "abcdefghijklmnopq"
TOKENS = [*LETTERS, " ", *(x + y for x in LETTERS for y in LETTERS), "</s>"]


@pytest.fixture
def lm():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(TOKENS), len(TOKENS), generator=generator)
    return MarkovLM(logits, logits[0], eos_id=len(TOKENS) - 1, tokens=TOKENS)


CONSTRAINTS = {
    "automata": (Contains("cab"), EndsWith("b")),
    "grammar": (Regex("[a-q ]*"),),
    "words": (LengthLimit(min_words=1, max_words=9),),
    "piece": (Unfinished(LIMIT),),
    "grammar and word": (Regex("[a-q ]*"), Contains("cab")),
}


def copied(monkeypatch):
    """Bytes of every copy to the device, in order."""
    sizes = []
    inner = ppl_align.lm.transfer.upload

    def upload(values, device):
        made = inner(values, device)
        sizes.append(made.numel() * made.element_size())
        return made

    for module in (*READING, ppl_align.lm.transfer):
        monkeypatch.setattr(module, "upload", upload)
    return sizes


def prefixes(t):
    return [tuple((7 * i + 3 * k) % 40 for k in range(t)) for i in range(16)]


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("stops", [(), (5, 9)])
def test_a_token_costs_no_row_of_the_vocabulary_and_no_wait(name, stops, lm, monkeypatch):
    """After the first token the copies are a quarter of a mask together, far from the limit and near it."""
    matchers = [compiled(constraint, lm) for constraint in CONSTRAINTS[name]]
    restriction = Restriction(matchers, lm.completion([0], LIMIT, stop=stops))
    restriction.device = META
    looks = [
        look_ahead(lm, c, [0], LIMIT, num_pool=8) for c in CONSTRAINTS[name] if isinstance(c, (Contains, EndsWith))
    ]
    twist = Sum([HardConstraint(restriction=restriction), *(AtSite(look, LIMIT) for look in looks)])
    sizes = copied(monkeypatch)
    for t in range(LIMIT):
        first = len(sizes)
        log_p = torch.zeros(16, len(TOKENS), device=META)
        leaning = twist.leaning(Rows(log_p, None, [], torch.empty(0), prefixes(t)))
        allowed, log_q = leaning.allowed, leaning.support(log_p)
        assert allowed.device == log_q.device == META
        assert allowed.dtype == torch.bool
        assert allowed.shape == log_q.shape == (16, len(TOKENS))
        if t:  # what stays on the device goes there before the first token
            assert sum(sizes[first:]) < 16 * len(TOKENS) / 4, "a mask has a byte for each of [16, V]"


def test_masks_of_a_state_are_made_once(lm):
    """Far from the limit the table of an automaton is one tensor, and rows are copies of its rows."""
    matcher = compiled(Contains("cab"), lm)
    far = matcher.permits(20, torch.device("cpu"))
    assert matcher.permits(10, torch.device("cpu")) is far
    assert matcher.permits(matcher.reach, torch.device("cpu")) is far
    near = matcher.permits(0, torch.device("cpu"))
    assert not torch.equal(near, far)
    mask = matcher.allowed([(0,), (2, 0), ()], 20)
    mask[:] = False
    assert torch.equal(matcher.permits(20, torch.device("cpu")), far), "a mask may be written to"


@pytest.mark.parametrize("size", [5, 32, 63, 64, 299])
def test_bits_are_unpacked_as_they_were_packed(size):
    lm = MarkovLM(torch.zeros(size, size), eos_id=size - 1, tokens=[*TOKENS[: size - 1], "</s>"])
    vocabulary = ppl_align.constraints.llg.Vocabulary.of(lm)
    mask = torch.rand(9, size, generator=torch.Generator().manual_seed(size)) < 0.4
    bits = vocabulary.packed(mask.numpy())
    assert torch.equal(vocabulary.mask(bits, torch.device("cpu")), mask)
    assert torch.equal(torch.from_numpy(vocabulary.unpacked(bits)), mask)


def test_a_run_copies_no_mask(lm, monkeypatch):
    def model():
        x = completion("x", lm, [0], max_new_tokens=LIMIT)
        constrain("letters", Regex("[a-q ]*"), x)
        constrain("word", Contains("cab"), x)

    for engine in (ImportanceSampling(32, 2), SMC(32, 2, twist="lookahead", num_pool=8)):
        lm.__dict__.pop("_caches", None)
        sizes = copied(monkeypatch)
        engine.run(model, seed=0)
        large = [size for size in sizes if size >= 16 * len(TOKENS)]  # [S, V] of an automaton among them
        assert len(sizes) > 2 * LIMIT
        assert len(large) <= 4, "what does not change is copied once, not for every token"
