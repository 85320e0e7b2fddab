"""Chains that begin in exact draws of the posterior are in such after a step of any kernel: G-tests against
enumeration, and what they say of kernels that are wrong."""

from __future__ import annotations

from collections import Counter

import pyro
import pytest
import torch
from conftest import SEED
from toys import constrained_programs, predicates, worlds
from toys.lms import ABCD, OTHER_ABCD
from toys.rewards import likes

from ppl_align import MCMC, Enumeration, completion, power, reward
from ppl_align.core.errors import InputError
from ppl_align.core.seeds import isolated
from ppl_align.engines.base import Task
from ppl_align.kernels import BlockSuffixMH, Cycle, IndependenceMH, InfillMH, SuffixMH, at_temperature
from ppl_align.kernels.suffix import Place
from ppl_align.lm.completions import sequence_lengths
from ppl_align.program.compiled import Program
from ppl_align.runner.runner import Runner
from ppl_align.testing import PROGRAMS
from ppl_align.testing.programs import EOS
from ppl_align.testing.statistics import g_test, key_rows, probabilities

CHAINS = 3000


def texts_of_a_plate_end_apart():
    with pyro.plate("two", 2):
        x = completion("x", ABCD, [[0], [1]], max_new_tokens=2)
        reward("r", likes, x.tokens, beta=0.6)
    y = completion("y", ABCD, [2], max_new_tokens=2)
    reward("s", likes, y.tokens, beta=0.8)


def sharpened():
    power("sharp", completion("x", ABCD, [0], max_new_tokens=3), 3.0)


ALL = {
    **PROGRAMS,
    "texts_of_a_plate_end_apart": texts_of_a_plate_end_apart,
    "sharpened": sharpened,
    "game": worlds.game,
    "dialogue": worlds.dialogue,
    "talk": worlds.talk,
    "regex_eos": constrained_programs.regex_eos,
    "contains": constrained_programs.contains,
    "two_constraints": constrained_programs.two_constraints,
    "predicate": predicates.with_dead_ends,
    "predicate_and_regex": predicates.and_regex,
}
KERNELS = {
    "suffix": SuffixMH(),
    "entropy": SuffixMH(cuts="entropy"),
    "word": SuffixMH(cuts="word"),
    "sentence": SuffixMH(cuts="sentence"),
    "temperature": SuffixMH(proposal=at_temperature(0.6)),
    "blocks": BlockSuffixMH(size=2),
    "independence": IndependenceMH(),
    "infill": InfillMH(size=2),
    "infill at entropy": InfillMH(cuts="entropy", size=1),
    "infill, temperature": InfillMH(cuts="word", proposal=at_temperature(0.6)),
    "both": Cycle(InfillMH(proposal=at_temperature(1.5)), SuffixMH(), InfillMH()),
    "cycle": Cycle(SuffixMH(cuts="entropy", proposal=at_temperature(1.5)), IndependenceMH(), SuffixMH()),
}


def p_of(program, kernel, steps=1, chains=CHAINS):
    """Of the G-test of the last states of many chains that begin in exact draws."""
    exact = Enumeration().run(program)
    run = MCMC(kernel, num_chains=chains, num_samples=1, num_warmup=steps - 1, init=exact).run(program, seed=SEED)
    counts = Counter(key_rows(run)[0])
    return g_test(counts, probabilities(exact)).p_value, run


@pytest.mark.parametrize("name", ALL)
def test_suffix_moves_leave_every_program_as_it_is(name):
    p, run = p_of(ALL[name], SuffixMH(), 2)
    assert p > 1e-3
    assert bool(run.history["accepted"].any())


FEW = [
    "with_eos",
    "upstream_latent",
    "two_completions",
    "texts_of_a_plate_end_apart",
    "sharpened",
    "talk",
    "contains",
    "predicate",
]


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "suffix"])
@pytest.mark.parametrize("name", FEW)
def test_and_so_do_the_others(name, kernel):
    if name == "talk" and kernel.startswith("infill"):
        with pytest.raises(InputError, match="has nothing to move in this program"):
            p_of(ALL[name], KERNELS[kernel])
        return
    p, run = p_of(ALL[name], KERNELS[kernel])
    assert p > 1e-3
    assert bool(run.history["accepted"].any())


@pytest.mark.parametrize("name", ["contains", "two_constraints"])
def test_what_looks_ahead_proposes(name):
    p, _ = p_of(ALL[name], SuffixMH(twist="lookahead"))
    assert p > 1e-3


def test_another_language_model_proposes():
    p, _ = p_of(sharpened, Cycle(SuffixMH(proposal=OTHER_ABCD), SuffixMH()))
    assert p > 1e-3


def test_tests_of_text_act_at_the_end(monkeypatch):
    """Asked as tokens are drawn they give an estimate of log q, and the chain is biased."""
    real = Task.runner
    assert p_of(predicates.and_regex, IndependenceMH(), 6, 6000)[0] > 1e-3
    monkeypatch.setattr(Task, "runner", lambda task: real(task, tests=True))
    assert p_of(predicates.and_regex, IndependenceMH(), 6, 6000)[0] < 1e-6


class ByToken:
    """Cuts that hang on the tokens behind them."""

    reads_entropy = False

    def weights(self, texts, entropy):
        return 0.1 + 2.0 * texts.tokens.double()


@pytest.mark.parametrize("kernel", [SuffixMH(), SuffixMH(cuts=ByToken()), BlockSuffixMH(size=2)])
def test_the_law_of_the_cut_counts(monkeypatch, kernel):
    assert p_of(ALL["with_eos"], kernel, steps=6)[0] > 1e-3
    monkeypatch.setattr(Place, "log_chosen", lambda self, weights=None: torch.zeros(len(self.text)).double())
    assert p_of(ALL["with_eos"], kernel, steps=6)[0] < 1e-6


def test_of_two_kernels_each_weighs_by_its_own_proposal(monkeypatch):
    """Were log q of the other one taken for its own, the chain would be biased."""
    both = Cycle(SuffixMH(proposal=at_temperature(0.5)), IndependenceMH())
    assert p_of(ALL["with_eos"], both, steps=3)[0] > 1e-3
    monkeypatch.setattr(Cycle, "follows_engine", True)
    assert p_of(ALL["with_eos"], both, steps=3)[0] < 1e-6


def test_the_entropy_is_that_of_the_prior_before_each_token():
    lm, runner = EOS, Runner(Program(ALL["with_eos"]))
    mover = SuffixMH(cuts="entropy").bind(runner)
    with isolated(SEED):
        particles = runner.finish(runner.start(40))
        for _ in range(3):
            particles, _ = mover.step(particles)
        found = mover.known.entropy_of(mover.known.of(particles), "x")[:, 0]
    x = particles.values["x"]
    p0, p = lm.log_initial.exp(), lm.log_table.exp()
    first, later = (-(q * q.log()).sum(-1) for q in (p0, p))
    want = torch.cat([first.expand(len(x), 1), later[x[:, :-1].clamp_max(2)]], -1)
    inside = torch.arange(x.shape[-1]) < sequence_lengths(x, (lm.eos_id,))[:, None]
    assert torch.allclose(found[inside], want[inside], atol=1e-9)
    assert bool((found[~inside] == 0).all())
