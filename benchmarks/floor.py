"""Where a decode step goes, and what each idea for making it faster gives. On the CPU, a minute or two.

    python benchmarks/floor.py [--rows 32] [--context 20] [--repeats 15] [--compile]

Medians and minima of interleaved repeats: one step of SmolLM2-135M in variants, its linear layers alone, and the
small operations around the network. bfloat16 changes the numbers that come out and is there for orientation only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

from ppl_align.lm.kv_cache import BlockLayer
from ppl_align.lm.names import smollm2_folder
from ppl_align.lm.prepack import prepack
from ppl_align.lm.sampling import TokenTree, room_for
from ppl_align.lm.warp import log_normalise

Trial = Callable[[], Any]


def load(dtype: torch.dtype = torch.float32, packed: bool = False) -> Any:
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=dtype).eval().requires_grad_(False)
    if packed and not prepack(model):
        print("this machine cannot prepack: those rows repeat the plain ones")
    return model


def growing(model: Any, rows: int, context: int) -> Trial:
    """One step with the cache that grows by concatenation; the new position is dropped again afterwards."""
    cache = DynamicCache(config=model.config)
    model(torch.randint(1000, (rows, context)), past_key_values=cache, use_cache=True, logits_to_keep=1)
    ids, positions = torch.randint(1000, (rows, 1)), torch.full((rows, 1), context)

    def step() -> None:
        model(ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.crop(-1)

    return step


def preallocated(model: Any, rows: int, context: int, call: Any = None) -> Trial:
    """One step with a cache of fixed length, written in place (always at the same position)."""
    cache = StaticCache(config=model.config, max_cache_len=context + 16)
    call = model if call is None else call
    model(torch.randint(1000, (rows, context)), past_key_values=cache, use_cache=True, logits_to_keep=1)
    ids, positions = torch.randint(1000, (rows, 1)), torch.full((rows, 1), context)
    written = [
        (layer, layer.cumulative_length.clone()) for layer in cache.layers if hasattr(layer, "cumulative_length")
    ]

    def step() -> None:
        for layer, at in written:
            layer.cumulative_length.copy_(at)
        call(ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)

    return step


def linears(model: Any, rows: int) -> Trial:
    """Every linear layer once, on an input of ``rows`` rows: the whole network but attention, norms and SiLU."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    inputs = [torch.randn(rows, 1, layer.in_features, dtype=layer.weight.dtype) for layer in layers]

    def step() -> None:
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)

    return step


def one_product(operations: int, width: int = 2048) -> Trial:
    """As many multiplications in one product of float32 matrices: what the processor can do at best."""
    left, right = torch.randn(operations // width**2, width), torch.randn(width, width)
    return lambda: left @ right


def caches(rows: int, context: int, layers: int = 30) -> dict[str, Trial]:
    """A token appended and attended to in every layer, whose heads are those of SmolLM2, from ``context`` tokens on."""
    query, new = torch.randn(rows, 9, 1, 64), torch.randn(rows, 1, 3, 64).transpose(1, 2)

    def steps(kind: type[DynamicLayer]) -> Trial:
        made = [kind() for _ in range(layers)]
        for layer in made:
            layer.update(torch.randn(rows, 3, context, 64), torch.randn(rows, 3, context, 64))

        def step() -> None:
            for layer in made:
                nn.functional.scaled_dot_product_attention(query, *layer.update(new, new), enable_gqa=True)

        return step

    return {"concatenated": steps(DynamicLayer), "in blocks, short ones concatenated": steps(BlockLayer)}


def small_operations(rows: int, vocab: int = 49152) -> dict[str, Trial]:
    """What a step does around the network, in the way chosen here and in the obvious way."""
    logits = torch.randn(rows, vocab) * 3
    probabilities, scratch = logits.softmax(-1), room_for(logits)
    u = torch.rand(rows, TokenTree(logits).depth, dtype=torch.float64)
    keys, order = torch.randn(rows, 3, 30, 64), torch.randperm(rows)

    def draw() -> Tensor:
        return TokenTree(logits, scratch).draw(np.arange(rows), u)

    return {
        "log_softmax": lambda: logits.log_softmax(-1),
        "logits - logsumexp": lambda: log_normalise(logits),
        "softmax, then multinomial": lambda: torch.multinomial(logits.softmax(-1), 1),
        "  multinomial alone": lambda: torch.multinomial(probabilities, 1),
        "exp and a tree of sums in scratch memory, then down": draw,
        "rows of a KV tensor by indexing": lambda: keys[order],
        "rows of a KV tensor by index_select": lambda: keys.index_select(0, order),
    }


def measure(trials: dict[str, Trial], repeats: int) -> dict[str, list[float]]:
    """Interleaved, in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in trials}
    for i in range(-2, repeats):
        for name, trial in trials.items():
            started = time.perf_counter()
            trial()
            if i >= 0:
                times[name].append(1e3 * (time.perf_counter() - started))
    return times


def show(title: str, times: dict[str, list[float]]) -> None:
    print(f"\n{title:<52}{'median ms':>10}{'min ms':>10}")
    for name, values in times.items():
        print(f"{name:<52}{statistics.median(values):>10.3f}{min(values):>10.3f}", flush=True)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--context", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="also try torch.compile (needs a C++ compiler; minutes)")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    chosen = options()
    rows, context = chosen.rows, chosen.context
    plain, packed, half = load(), load(packed=True), load(torch.bfloat16)
    weights = sum(m.weight.numel() for m in plain.modules() if isinstance(m, nn.Linear))
    print(f"{weights / 1e6:.0f} M weights in linear layers: {2 * weights * rows / 1e9:.1f} GFLOP and", end=" ")
    print(f"{4 * weights / 1e6:.0f} MB of float32 per step of {rows} rows; {torch.get_num_threads()} threads")
    layers = {"plain": plain, "prepacked": packed, "bfloat16": half}
    alone = {name: linears(m, rows) for name, m in layers.items()}
    alone["one product of large matrices, as many operations"] = one_product(weights * rows)
    show("linear layers alone", measure(alone, chosen.repeats))
    steps = {
        "plain": growing(plain, rows, context),
        "prepacked": growing(packed, rows, context),
        "plain, preallocated cache": preallocated(plain, rows, context),
        "prepacked, preallocated cache": preallocated(packed, rows, context),
        "bfloat16": growing(half, rows, context),
    }
    if chosen.compile:
        try:
            compiled = preallocated(plain, rows, context, call=torch.compile(plain))
            started = time.perf_counter()
            compiled()
            print(f"\ntorch.compile took {time.perf_counter() - started:.0f} s")
            steps["plain, preallocated cache, torch.compile"] = compiled
        except Exception as error:
            print(f"\ntorch.compile failed: {type(error).__name__}: {str(error).splitlines()[0]}")
    show(f"one step of {rows} rows, {context} positions cached", measure(steps, chosen.repeats))
    for length in (4, 64, 256):
        times = measure(caches(rows, length), chosen.repeats)
        show(f"caches: a token of {rows} rows after {length} tokens", times)
    show(f"around the network, {rows} x 49152", measure(small_operations(rows), 4 * chosen.repeats))


if __name__ == "__main__":
    main()
