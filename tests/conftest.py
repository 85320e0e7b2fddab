"""Every test starts from a known state and leaves the global one alone."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pyro
import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from ppl_align import CausalLM
from ppl_align.core.seeds import seed_all

gc.disable()  # while tests are collected nothing becomes garbage; see small_heap
SEED = int(os.environ.get("SEED", "0"))
"""``SEED=7 make test`` runs every statistical test with other random numbers."""


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> None:
    """What is imported by now stays: the garbage collector, a tenth of all time, need not go through it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    seed_all(20221122 + SEED)
    pyro.clear_param_store()
    yield
    assert dict(pyro.get_param_store().items()) == {}, "a test left parameters in Pyro's global store"


@pytest.fixture
def quiet_transformers() -> Iterator[None]:
    """Not a word about the fast kernels that are not installed."""
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity(level)


@pytest.fixture(scope="session")
def tiny_llama() -> CausalLM:
    """A random transformer small enough to enumerate: V=7, EOS=6, float32, rather peaked so that prefixes matter."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=7,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            eos_token_id=6,
            bos_token_id=None,
            pad_token_id=6,
            tie_word_embeddings=False,
            initializer_range=0.6,
        )
        model = LlamaForCausalLM(config)
    return CausalLM(model.requires_grad_(False))


@pytest.fixture(scope="session")
def smollm2() -> CausalLM:
    return CausalLM("smollm2-135m")
