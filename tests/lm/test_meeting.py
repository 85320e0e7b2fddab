"""Runs that share the forwards of a network draw what they draw alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import SEED
from toys.networks import network

from ppl_align import (
    LM,
    SMC,
    SVI,
    CausalLM,
    Engine,
    ImportanceSampling,
    LengthLimit,
    Mixture,
    Posterior,
    Product,
    Prompted,
    Rejection,
    completion,
    constrain,
    reward,
)
from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError
from ppl_align.core.turns import Outcome, Turns
from ppl_align.lm import meeting

PROMPTS = [[1, 2, 3], [0, 5], [3, 3, 3, 2, 1], [2], [4, 4]]


def story(lm: LM, prompt: list[int]) -> None:
    x = completion("x", lm, prompt, max_new_tokens=6)
    y = completion("y", lm, (prompt, x, [4, 1]), max_new_tokens=4)
    reward("ones", lambda t: (t == 1).double().sum(-1), y.tokens, beta=2.0, upper=4.0)
    reward("twos", lambda t: (t == 2).double().sum(-1), x.tokens, beta=2.0, upper=6.0)


def together(engine: Engine, lm: LM, program: Callable[..., None] = story) -> list[Outcome[Posterior]]:
    works = [
        lambda seed=seed, prompt=prompt: engine.run(program, lm, prompt, seed=seed)
        for seed, prompt in enumerate(PROMPTS, SEED)
    ]
    return Turns(meeting.serve).run(works)


def alone(engine: Engine, lm: LM, program: Callable[..., None] = story) -> list[Posterior]:
    return [engine.run(program, lm, prompt, seed=seed) for seed, prompt in enumerate(PROMPTS, SEED)]


def same(one: Posterior, other: Posterior) -> None:
    for site, found in one.completions.items():
        assert torch.equal(found.tokens, other.completions[site].tokens), site
        assert torch.allclose(one.log_prior[site], other.log_prior[site], atol=2e-5), site
    assert torch.allclose(one.log_weight, other.log_weight, atol=1e-4)
    assert one.seed == other.seed


ENGINES: dict[str, Engine] = {
    "importance": ImportanceSampling(12, 2),
    "smc": SMC(12, 2, twist="prefix", ess_threshold=1.0),
    "rejection": Rejection(2, 2),
}
VOICES: dict[str, Callable[[CausalLM], LM]] = {
    "plain": lambda lm: lm,
    "prompted": lambda lm: Prompted(lm, before=[3]),
    "mixture": lambda lm: Mixture([lm, Prompted(lm, before=[2, 2])]),
    "product": lambda lm: Product([lm, Prompted(lm, after=[2])], [0.7, 0.3]),
}


@pytest.mark.parametrize(
    ("name", "voice"),
    [(name, voice) for name in ENGINES if name != "rejection" for voice in VOICES] + [("rejection", "plain")],
)
def test_each_run_is_what_it_is_alone(tiny_llama: CausalLM, name: str, voice: str) -> None:
    lm = VOICES[voice](tiny_llama)
    with measure() as cost:
        by_themselves = alone(ENGINES[name], lm)
    with measure() as shared:
        found = [outcome.get() for outcome in together(ENGINES[name], lm)]
    for one, other in zip(by_themselves, found, strict=True):
        same(one, other)
        assert one.cost.lm_tokens == other.cost.lm_tokens
        assert one.cost.reward_calls == other.cost.reward_calls
    assert shared.lm_forwards < 0.5 * cost.lm_forwards
    assert shared.lm_tokens == cost.lm_tokens


def test_guides_are_trained_together(tiny_llama: CausalLM) -> None:
    """Equal up to the first step: Adam's steps are as long as ever where a gradient is next to nothing."""
    engine = SVI(num_steps=3, num_particles=4, num_replicates=2, guide="markov")
    with measure() as cost:
        by_themselves = alone(engine, tiny_llama)
    with measure() as shared:
        found = [outcome.get() for outcome in together(engine, tiny_llama)]
    for one, other in zip(by_themselves, found, strict=True):
        assert float(one.losses[0]) == pytest.approx(float(other.losses[0]), abs=1e-4)
        assert one.seed == other.seed
    assert shared.lm_forwards < 0.5 * cost.lm_forwards


@pytest.mark.parametrize("kind", ["gpt2", "mistral"])
def test_however_a_network_is_read(kind: str) -> None:
    lm = CausalLM(network(kind))
    for one, other in zip(alone(ENGINES["smc"], lm), together(ENGINES["smc"], lm), strict=True):
        same(one, other.get())


def test_a_proposal_that_is_another_network(tiny_llama: CausalLM) -> None:
    engine = SMC(8, 2, proposal=CausalLM(tiny_llama.model))
    for one, other in zip(alone(engine, tiny_llama), together(engine, tiny_llama), strict=True):
        same(one, other.get())


def uneven(lm: LM, prompt: list[int]) -> None:
    """As many completions as the prompt has tokens: runs end, and begin, at different times."""
    for number in range(len(prompt)):
        text = completion(f"x{number}", lm, [*prompt, number], max_new_tokens=2 + number)
        reward(f"r{number}", lambda t: (t == 1).double().sum(-1), text.tokens)


def test_runs_of_different_lengths(tiny_llama: CausalLM) -> None:
    for one, other in zip(
        alone(ENGINES["smc"], tiny_llama, uneven), together(ENGINES["smc"], tiny_llama, uneven), strict=True
    ):
        same(one, other.get())


@pytest.mark.parametrize("twist", ["prefix", ("prefix", "lookahead")], ids=str)
def test_each_has_its_own_constraints_and_twist(tiny_llama: CausalLM, twist: Any) -> None:
    def row(lm: LM, prompt: list[int]) -> None:
        x = completion("x", lm, prompt, max_new_tokens=4)
        if len(prompt) > 1:
            constrain("length", LengthLimit(min_tokens=len(prompt) - 1), x)
        reward("ones", lambda t: (t == 1).double().sum(-1), x.tokens, beta=1 / len(prompt))

    engine = SMC(12, 2, twist=twist, ess_threshold=1.0, num_pool=8)
    for one, other in zip(alone(engine, tiny_llama, row), together(engine, tiny_llama, row), strict=True):
        same(one, other.get())


def test_a_run_that_fails_leaves_the_others_alone(tiny_llama: CausalLM) -> None:
    def picky(lm: LM, prompt: list[int]) -> None:
        text = completion("x", lm, prompt, max_new_tokens=4)

        def score(tokens: Any) -> Any:
            if prompt == [2]:
                raise ValueError("not today")
            return (tokens == 1).double().sum(-1)

        reward("r", score, text.tokens)

    found = together(ENGINES["smc"], tiny_llama, picky)
    assert [outcome.error is None for outcome in found] == [True, True, True, False, True]
    assert "not today" in str(found[3].error)
    for i in (0, 1, 2, 4):
        same(ENGINES["smc"].run(picky, tiny_llama, PROMPTS[i], seed=SEED + i), found[i].get())


def test_an_error_of_the_network_is_everybody_s(tiny_llama: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise InputError("no room")

    monkeypatch.setattr(CausalLM, "forward", refuse)
    assert all("no room" in str(outcome.error) for outcome in together(ENGINES["importance"], tiny_llama))


def test_who_left_its_rows_reads_them_again(tiny_llama: CausalLM) -> None:
    """One run decodes another text while it holds rows of a cohort; the others, who wait for it, go on without."""
    ids = torch.tensor([1]), torch.tensor([3])
    nowhere = torch.tensor([0])

    def steady() -> torch.Tensor:
        decoder = tiny_llama.start([(1, 2)])
        for _ in range(4):
            decoder = decoder.extend(nowhere, ids[0])
        return decoder.log_probs

    def wandering() -> torch.Tensor:
        decoder = tiny_llama.start([(4, 3, 2)]).extend(nowhere, ids[1])
        aside = tiny_llama.start([(5,)])
        for _ in range(3):
            aside = aside.extend(nowhere, ids[0])
        return decoder.extend(nowhere, ids[0]).log_probs

    found = Turns(meeting.serve).run([steady, wandering, steady])
    assert torch.allclose(found[0].get(), steady(), atol=1e-5)
    assert torch.allclose(found[1].get(), wandering(), atol=1e-5)
    assert torch.equal(found[2].get(), found[0].get())
