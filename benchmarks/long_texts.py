"""How long SMC takes on long texts and after long prompts, beside raw ``generate`` on a network of its own.

    python benchmarks/long_texts.py [--repetitions 3] [--particles 32] [--device cuda]

The target of decoding.py, after the first 10 or 1,000 tokens of this project's license; at most 32 or 256 tokens. Each
line has processes of its own, so that *beyond* is its own: memory at the peak beyond what the loaded network takes.
After 1,000 tokens, which ``generate`` reads N times, there is one repetition for three of the others.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from decoding import progress, ratio, show_table, target_settings
from processes import ENTRIES, Machine, Process
from transformers import AutoTokenizer

LENGTHS = [(32, 10), (256, 10), (32, 1000), (256, 1000)]  # tokens that are written, and of the prompt
REQUIRED = {(256, 10): 0.35}  # of the time of generate, on the CPU

HEADINGS = ["contender", "T", "prompt", "N", "seconds", "min-max", "tokens/s", "positions", "beyond, MB", "of generate"]


def prompt_of(settings: dict[str, Any], tokens: int) -> list[int]:
    """The first tokens of a text that everybody has."""
    text = (Path(__file__).resolve().parents[1] / "LICENSE").read_text(encoding="utf-8")
    return AutoTokenizer.from_pretrained(settings["folder"]).encode(text, add_special_tokens=False)[:tokens]


def measure(settings: dict[str, Any], particles: int, tokens: int, repetitions: int) -> dict[str, list[dict[str, Any]]]:
    """Interleaved repetitions of both, after one of a few tokens that is not timed."""
    processes = [Process(entry, settings) for entry in ENTRIES if entry.key in ("smc", "generate")]
    results: dict[str, list[dict[str, Any]]] = {process.entry.title: [] for process in processes}
    try:
        for process in processes:
            process.repeat(0, particles, 2)
        for i in range(repetitions):
            for process in processes:
                result = process.repeat(1 + i, particles, tokens)
                results[process.entry.title].append(result)
                progress(f"{i + 1}/{repetitions} {process.entry.key} T={tokens}: {result['seconds']:.2f} s")
    finally:
        for process in processes:
            process.close()
    return results


def row(title: str, lengths: tuple[int, int], particles: int, results: list[dict[str, Any]], share: float) -> list[str]:
    """One line of the table."""
    seconds = [r["seconds"] for r in results]
    beyond = [r["beyond_mb"] for r in results if r["beyond_mb"] is not None]
    return [
        title,
        *map(str, (*lengths, particles)),
        f"{statistics.median(seconds):.2f}",
        f"{min(seconds):.2f}-{max(seconds):.2f}",
        f"{statistics.median(r['generated'] / r['seconds'] for r in results):.0f}",
        f"{statistics.median(r['positions'] for r in results):.0f}",
        f"{max(beyond):.0f}" if beyond else "-",
        f"{share:.2f}",
    ]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    return parser.parse_args()


def main() -> int:
    chosen = options()
    if chosen.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # inherited by the contenders
    machine = Machine()
    settings = target_settings(chosen.device, chosen.dtype)
    rows: list[list[str]] = []
    missed: list[str] = []
    for tokens, prompt in LENGTHS:
        asked = {**settings, "prompt_ids": prompt_of(settings, prompt)}
        repetitions = chosen.repetitions if prompt < 1000 else max(1, chosen.repetitions // 3)
        results = measure(asked, chosen.particles, tokens, repetitions)
        ours, generate = results
        share, low, high = ratio(results, ours, generate)
        rows += [row(title, (tokens, prompt), chosen.particles, r, share) for title, r in results.items()]
        rows[-1][-1] = ""
        required = REQUIRED.get((tokens, prompt), float("inf")) if chosen.device == "cpu" else float("inf")
        if share > required:
            missed.append(
                f"T={tokens}, prompt {prompt}: {share:.2f} (rounds {low:.2f}-{high:.2f}), required {required}"
            )
    others = machine.others()
    print(f"\nSmolLM2-135M, {chosen.dtype}, torch {torch.__version__}, load before the start {machine.load:.1f}")
    if others is not None and others > 0.05:
        print(f"others used {others:.0%} of the cores meanwhile: these times mean little")
    show_table([HEADINGS, *rows])
    for line in missed:
        print(f"FAIL  {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
