"""Texts whose rest is drawn anew: what stays of them is not read again, and what is said of them is true."""

from __future__ import annotations

import pyro
import pytest
import torch
from conftest import SEED
from toys.lms import ABCD
from toys.tiny import tiny_llama, tiny_tokenizer

from ppl_align import CausalLM, Mixture, completion, reward
from ppl_align.core.cost import measure
from ppl_align.core.seeds import isolated
from ppl_align.kernels import InfillMH, SuffixMH
from ppl_align.kernels.known import keys
from ppl_align.lm.completions import sequence_lengths
from ppl_align.lm.text_cache import TextCache
from ppl_align.program.compiled import Program
from ppl_align.runner.runner import Runner

LENGTH, SIZE = 10, 24


@pytest.fixture(scope="module")
def llama() -> CausalLM:
    return CausalLM(tiny_llama(), tiny_tokenizer())


def programs(lm):
    def one() -> None:
        x = completion("x", lm, "the film was", max_new_tokens=LENGTH)
        reward("r", lambda tokens: (tokens % 3 == 0).double().sum(-1), x.tokens)

    def plates() -> None:
        with pyro.plate("two", 2):
            x = completion("x", lm, ["the film", "was the film good"], max_new_tokens=LENGTH, stop="bad")
            reward("r", lambda tokens: (tokens == 2).double().sum(-1), x.tokens)

    return {"one": one, "plates": plates}


def scored(program, particles):
    """log p0 of the values, read whole."""
    again = Program(program).run(particles.before([]), draw=False, score=tuple(particles.values))
    return again.log_prior["x"]


@pytest.mark.parametrize("name", ["one", "plates"])
@pytest.mark.parametrize("kernel", [SuffixMH(), InfillMH(size=2), SuffixMH(cuts="entropy")], ids=repr)
def test_scores_are_those_of_a_reading_of_the_whole(llama, name, kernel):
    program = programs(llama)[name]
    runner = Runner(Program(program))
    mover = kernel.bind(runner)
    with isolated(SEED):
        particles = runner.finish(runner.start(SIZE))
        for _ in range(6):
            particles, _ = mover.step(particles)
            torch.testing.assert_close(particles.log_prior["x"], scored(program, particles), atol=1e-4, rtol=0)
            by_token = particles.token_log_proposal["x"].sum((-1, -2))
            torch.testing.assert_close(by_token, particles.log_proposal["x"], atol=1e-9, rtol=0)
        if mover.known.remembers:
            seen = mover.known.entropy_of(mover.known.of(particles), "x")
            fresh = kernel.bind(Runner(Program(program)))
            fresh.known.of(particles)
            torch.testing.assert_close(seen, fresh.known.entropy_of(particles, "x"), atol=1e-4, rtol=0)


def test_only_what_is_new_is_read(llama):
    """Of T tokens of which c stay, T - c are drawn, and the last of them is not read."""
    runner = Runner(Program(programs(llama)["one"]))
    runner.remember_texts()
    with isolated(SEED):
        particles = runner.finish(runner.start(SIZE))
        whole = particles.values["x"]
        lengths = torch.tensor([len(text) for text in _texts(particles)])
        full = (lengths == LENGTH).nonzero()[:, 0]
        assert len(full) > 3
        long = particles.take(full)
        assert len(set(keys(long))) == len(full)
        first = torch.randint(1, LENGTH, (len(full),))
        with measure() as cost:
            new = runner.redraw(long, "x", first).particles
    kept = torch.arange(LENGTH) < first[:, None]
    assert torch.equal(torch.where(kept, new.values["x"], 0), torch.where(kept, whole[full], 0))
    drawn = torch.tensor([len(text) for text in _texts(new)]) - first
    assert cost.lm_tokens <= int(drawn.sum())  # texts that agree share a row
    assert cost.lm_tokens >= int(drawn.sum()) - len(full) * 2
    assert cost.scored_tokens == 0


def _texts(particles):
    source = particles.sources["x"]
    lengths = sequence_lengths(particles.values["x"], source.terminal).tolist()
    return [tuple(row[:n]) for row, n in zip(particles.values["x"].tolist(), lengths, strict=True)]


def test_an_infill_that_draws_what_was_there_reads_nothing_of_the_rest(llama):
    runner = Runner(Program(programs(llama)["one"]))
    runner.remember_texts()
    with isolated(SEED):
        particles = runner.finish(runner.start(SIZE))
        nothing = torch.zeros(SIZE, 1, LENGTH, dtype=torch.bool)
        with measure() as cost:
            same = runner.infill(particles, "x", nothing)
    assert cost.lm_tokens == 0
    assert torch.equal(same.values["x"], particles.values["x"])
    torch.testing.assert_close(same.log_prior["x"], particles.log_prior["x"], atol=0, rtol=0)


def test_texts_that_are_gone_are_forgotten(llama):
    runner = Runner(Program(programs(llama)["one"]))
    mover = SuffixMH().bind(runner)
    with isolated(SEED):
        particles = runner.finish(runner.start(SIZE))
        for _ in range(12):
            particles, _ = mover.step(particles)
    cache = runner.texts["x"]
    assert isinstance(cache, TextCache)
    assert len(cache.known) <= 3 * SIZE
    rows = sum(len(batch.lengths) for batch in cache._batches())
    assert rows <= 3 * SIZE + 2 * len(cache.known)


def test_lms_whose_rows_cannot_be_taken_up_read_all_anew():
    lm = Mixture([ABCD, ABCD], [0.5, 0.5])

    def program() -> None:
        reward("r", lambda tokens: (tokens == 1).double().sum(-1), completion("x", lm, [0], max_new_tokens=4).tokens)

    runner = Runner(Program(program))
    mover = SuffixMH().bind(runner)
    with isolated(SEED):
        particles = runner.finish(runner.start(SIZE))
        for _ in range(3):
            particles, _ = mover.step(particles)
    torch.testing.assert_close(particles.log_prior["x"], scored(program, particles), atol=1e-6, rtol=0)
    assert not runner.texts["x"].known
