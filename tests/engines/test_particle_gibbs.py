"""Particle Gibbs from exact draws: conditional runs leave the posterior as it is, with new ancestors and without."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from conftest import SEED
from toys import constrained_programs, worlds

from ppl_align import SMC, Enumeration, ParticleGibbs
from ppl_align.core.errors import InputError
from ppl_align.engines.smc.ancestor_sampling import AncestorSampling
from ppl_align.testing import PROGRAMS
from ppl_align.testing.statistics import g_test, key_rows, probabilities

CHAINS = 3000
ALL = {**PROGRAMS, "contains": constrained_programs.contains, "regex_eos": constrained_programs.regex_eos}
SWEEP = {"twist": "prefix", "ess_threshold": 1.0}


def p_of(program, engine, steps=1, **settings):
    """Of the G-test of the last states of many chains that begin in exact draws."""
    exact = Enumeration().run(program)
    gibbs = ParticleGibbs(engine, CHAINS, 1, num_warmup=steps - 1, init=exact, **settings)
    run = gibbs.run(program, seed=SEED)
    return g_test(Counter(key_rows(run)[0]), probabilities(exact)).p_value, run


@pytest.mark.parametrize("name", ALL)
def test_with_new_ancestors(name):
    p, run = p_of(ALL[name], SMC(3, **SWEEP, resampling="multinomial"), 2)
    assert p > 1e-3
    assert bool(run.history["accepted"].any())
    assert not run.kind.has_evidence


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "residual", "multinomial", "chopthin"])
@pytest.mark.parametrize("name", ["with_eos", "two_completions", "plated"])
def test_without_them_under_every_scheme(name, scheme):
    p, run = p_of(ALL[name], SMC(3, **SWEEP, resampling=scheme), 2, ancestor_sampling=False)
    assert p > 1e-3
    assert bool(run.history["accepted"].any())


@pytest.mark.parametrize(
    "settings", [{"twist": None}, {"twist": "lookahead", "every": 2}, {"twist": "prefix"}], ids=str
)
def test_under_other_twists(settings):
    assert p_of(ALL["contains"], SMC(4, resampling="multinomial", **settings), 2)[0] > 1e-3


def test_worlds_are_retained_as_they_answered():
    assert p_of(worlds.dialogue, SMC(3, **SWEEP), 2, ancestor_sampling=False)[0] > 1e-3
    with pytest.raises(InputError, match="ancestor_sampling=False"):
        p_of(worlds.dialogue, SMC(3, **SWEEP, resampling="multinomial"))


def test_ancestors_hang_on_what_comes_after_them(monkeypatch):
    """By their weights alone they would be wrong."""
    engine = SMC(3, **SWEEP, resampling="multinomial")
    assert p_of(ALL["with_eos"], engine, 4)[0] > 1e-3

    def by_weight(self, particles, decode, state, log_weight):
        return torch.distributions.Categorical(logits=log_weight).sample()

    monkeypatch.setattr(AncestorSampling, "draw", by_weight)
    assert p_of(ALL["with_eos"], engine, 4)[0] < 1e-6


def test_what_it_refuses():
    with pytest.raises(InputError, match='resampling="multinomial"'):
        ParticleGibbs(SMC(8))
    with pytest.raises(InputError, match="two particles"):
        ParticleGibbs(SMC(1, resampling="multinomial"))
    with pytest.raises(InputError, match="takes an SMC"):
        ParticleGibbs(Enumeration())
