"""Particles of several programs in one decode: each keeps its own law, and the forwards are shared."""

from __future__ import annotations

import pytest
import torch
from conftest import SEED
from toys.blocks import BlockLM
from toys.lms import ABCD

from ppl_align import SMC, Enumeration, completion, constrain, reward
from ppl_align.constraints import Contains
from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError
from ppl_align.core.seeds import isolated
from ppl_align.engines.smc.twisted import TwistedSMC
from ppl_align.particles.particles import Particles
from ppl_align.program.compiled import Program
from ppl_align.runner.known_constraints import known_constraints
from ppl_align.runner.runner import Observer, Runner, finish_together
from ppl_align.testing.statistics import mean_z

ROWS = [([0], None, 0.7), ([1], "ba", 0.7), ([0], "c", 1.3), ([2], None, -0.9)]
"""Prompt, what the text must contain, and beta: two of them with one prompt, and without its constraint alike."""


def row(prompt, word, beta, lm=ABCD):
    x = completion("x", lm, prompt, max_new_tokens=4)
    if word is not None:
        constrain("word", Contains(word), x)
    reward("r", lambda t: (t == 1).double().sum(-1), x.tokens, beta=abs(beta), weight=1.0 if beta > 0 else -1.0)
    if beta > 1:
        y = completion("y", lm, (x, [3]), max_new_tokens=2)
        reward("s", lambda t: (t == 0).double().sum(-1), y.tokens, beta=0.5)


def runners(size=0, lm=ABCD):
    for arguments in ROWS:
        program = Program(row, (*arguments, lm))
        yield Runner(program, constraints=known_constraints(program))


EXACT = [float(Enumeration().run(row, *arguments).log_evidence) for arguments in ROWS]


def test_weights_of_each_are_unbiased_and_forwards_are_shared():
    size = 4000
    with isolated(SEED), measure() as together:
        ended = finish_together(list(runners()), [Particles(size) for _ in ROWS])
    with isolated(SEED), measure() as apart:
        for runner in runners():
            runner.finish(Particles(size))
    for particles, exact in zip(ended, EXACT, strict=True):
        assert abs(float(mean_z((particles.log_weight - exact).exp(), 1.0))) < 4.5
    assert together.lm_forwards < 0.5 * apart.lm_forwards


@pytest.mark.parametrize("twist", ["prefix", ("prefix", "lookahead")], ids=str)
def test_each_has_its_own_smc(twist):
    config = SMC(12, 400, twist=twist, ess_threshold=1.0, num_pool=8)
    with isolated(SEED):
        drivers = list(runners())
        observers = [TwistedSMC(config, runner, config._twists()) for runner in drivers]
        finish_together(drivers, [Particles(12 * 400) for _ in ROWS], observers)
    for smc, exact in zip(observers, EXACT, strict=True):
        z = (smc.log_evidence + smc.log_weight.logsumexp(-1) - torch.tensor(12.0).log() - exact).exp()
        assert smc.resampled
        assert abs(float(mean_z(z, 1.0))) < 4.5


def test_blocks_are_shared_too():
    lm = BlockLM(ABCD)
    programs = [Program(row, (prompt, None, beta, lm)) for prompt, word, beta in ROWS if word is None]
    with isolated(SEED):
        ended = finish_together([Runner(one) for one in programs], [Particles(3000) for _ in programs])
    assert lm.blocks == [4], "one call for all of them"
    exact = [log_z for log_z, (_, word, _) in zip(EXACT, ROWS, strict=True) if word is None]
    for particles, log_z in zip(ended, exact, strict=True):
        assert abs(float(mean_z((particles.log_weight - log_z).exp(), 1.0))) < 4.5


def test_every_observer_sees_its_own_texts_only():
    class Looking(Observer):
        def __init__(self, prompt):
            self.prompt, self.seen = prompt, 0

        def drew(self, decode):
            assert decode.prefix(decode.t).shape == (decode.particles.size, decode.t)
            rows = decode.site.fn.prompt_rows(decode.site.fn.batch_shape)
            assert decode.site.name == "y" or {tuple(one) for one in rows} == {tuple(self.prompt)}
            self.seen += 1

    observers = [Looking(prompt) for prompt, _, _ in ROWS]
    with isolated(SEED):
        finish_together(list(runners()), [Particles(size) for size in (3, 5, 2, 7)], observers)
    assert all(one.seen for one in observers)


def test_progress_is_of_all_and_texts_are_not_changed_behind_it():
    told = []
    both = [Runner(Program(row, ROWS[0]), progress=lambda *what: told.append(what)), Runner(Program(row, ROWS[3]))]
    finish_together(both, [Particles(3), Particles(2)])
    assert {note for _, _, note in told} == {"2 of 2 programs"}
    assert all(0 < done <= total for done, total, _ in told)
    with pytest.raises(InputError, match="finish it by itself"):
        finish_together([Runner(Program(row, ROWS[0]), post_decode=lambda site, texts: None)], [Particles(2)])
