"""How long SMC takes, beside raw ``generate`` and beside the peers, in one run on this machine.

    python benchmarks/decoding.py [--repetitions 5] [--particles 32] [--tokens 32] [--no-peers] [--json FILE]
    python benchmarks/decoding.py --device cuda --sweep          N = 32 ... 2048, bfloat16, no peers

Target: p(x | "The movie was") exp(number of generated tokens that hold an "e"), SmolLM2-135M, at most T tokens.

Equal work: everybody draws N sequences of at most T tokens, and a sequence may end early with EOS. What each
engine makes of that freedom is its own affair, and is counted: positions = rows x tokens pushed through the
network, prompt included. Our SMC drops finished particles and shares rows between equal prefixes; ``generate``
carries finished rows along as padding until the last one ends; genlm-control and llamppl share rows but run the
whole text again at every step. Forcing ``generate`` to full length (``min_new_tokens``) would only add to its time.
tokens/s counts the tokens of the N final sequences, EOS included, for everybody.

Each contender runs in a process of its own, which loads once; repetitions are interleaved (A B C A B C ...), so
that a slow spell of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from processes import ENTRIES, PEERS_PYTHON, Entry, Machine, Process
from transformers import AutoConfig, AutoTokenizer

from ppl_align.lm.names import smollm2_folder

PROMPT = "The movie was"
SWEEP = [32, 64, 128, 256, 512, 1024, 2048]
WARM_UP_TOKENS = 4
SMC_TO_GENERATE, PEER_TO_SMC, OUTSIDE = 0.8, 7.0, 0.10  # what we require of ourselves, on the CPU

Result = dict[str, Any]
Results = dict[str, list[Result]]


def target_settings(device: str, dtype: str) -> dict[str, Any]:
    """The target, in terms that need no ppl_align: every contender uses these ids and this table."""
    folder = smollm2_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = AutoConfig.from_pretrained(folder).vocab_size
    vocabulary = tokenizer.batch_decode([[v] for v in range(size)], skip_special_tokens=True)
    return {
        "folder": str(folder),
        "device": device,
        "dtype": dtype,
        "prompt": PROMPT,
        "prompt_ids": tokenizer.encode(PROMPT, add_special_tokens=False),
        "eos_id": tokenizer.eos_token_id,
        "e_ids": [v for v, text in enumerate(vocabulary) if "e" in text],
    }


def lineup(device: str, peers: bool) -> list[Entry]:
    """Who runs: on CUDA ours (nothing is prepacked there) and ``generate``."""
    if device != "cpu":
        return [entry for entry in ENTRIES if entry.key in ("smc", "importance", "generate")]
    return [entry for entry in ENTRIES if peers or not entry.peer]


def measure(processes: list[Process], particles: int, tokens: int, repetitions: int) -> Results:
    """Interleaved repetitions; on CUDA one more, synchronised and not timed, tells the share of the network."""
    results: Results = {process.entry.key: [] for process in processes}
    for process in processes:
        process.repeat(0, particles, min(WARM_UP_TOKENS, tokens))
    for i in range(repetitions):
        for process in processes:
            result = process.repeat(1 + i, particles, tokens)
            results[process.entry.key].append(result)
            progress(f"{i + 1}/{repetitions} {process.entry.key} N={particles}: {result['seconds']:.2f} s")
    for process in processes:
        timed = results[process.entry.key]
        profiled = [process.repeat(1, particles, tokens, profile=True)] if timed[0]["device_mb"] is not None else timed
        outside = statistics.median(1 - r["forward_seconds"] / r["seconds"] for r in profiled)
        for result in timed:
            result["outside"] = outside
    return results


def row(title: str, particles: int, results: list[Result]) -> list[str]:
    """One line of the table."""
    seconds = [r["seconds"] for r in results]
    middle = {key: statistics.median(r[key] for r in results) for key in ("generated", "forwards", "positions")}
    evidence = [r["log_z"] for r in results if r["log_z"] is not None]
    spread = statistics.stdev(evidence) if len(evidence) > 1 else float("nan")
    memory = max(r["peak_mb"] if r["device_mb"] is None else r["device_mb"] for r in results)
    resamplings = [r["resamplings"] for r in results if r["resamplings"] is not None]
    return [
        title,
        str(particles),
        f"{statistics.median(seconds):.2f}",
        f"{min(seconds):.2f}-{max(seconds):.2f}",
        f"{statistics.median(r['generated'] / r['seconds'] for r in results):.0f}",
        f"{middle['forwards']:.0f}",
        f"{middle['positions']:.0f}",
        f"{results[0]['outside']:.1%}",
        f"{statistics.mean(evidence):.2f} ({spread:.2f})" if evidence else "-",
        f"{statistics.median(r['unique'] for r in results):.0f}",
        f"{min(resamplings)}-{max(resamplings)}" if resamplings else "-",
        f"{memory:.0f}",
    ]


FIRST = ["contender", "N", "seconds", "min-max", "tokens/s", "forwards", "positions", "outside", "log Z", "unique"]
SECOND = ["", "", "median", "", "", "", "median", "network", "mean (sd)", ""]
HEADINGS = [[*FIRST, "resam-", "peak"], [*SECOND, "plings", "MB"]]


def show_table(table: list[list[str]]) -> None:
    """Headings and rows; the first column is text."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def ratio(results: Results, top: str, bottom: str) -> tuple[float, float, float]:
    """Ratio of the medians, and the smallest and largest ratio within one round."""
    above, below = ([r["seconds"] for r in results[key]] for key in (top, bottom))
    rounds = [a / b for a, b in zip(above, below, strict=True)]
    return statistics.median(above) / statistics.median(below), min(rounds), max(rounds)


def verdict(results: Results, strict: bool) -> bool:
    """Print the ratios that matter; False if a requirement fails. ``strict=False``: for information."""
    failed = False

    def judge(text: str, passed: bool) -> None:
        nonlocal failed
        failed = failed or not passed
        print(text + (f"  {'PASS' if passed else 'FAIL'}" if strict else ""))

    middle, low, high = ratio(results, "smc", "generate")
    required = f", required <= {SMC_TO_GENERATE}" if strict else ""
    judge(
        f"SMC / generate              {middle:.2f} (rounds {low:.2f}-{high:.2f}){required}", middle <= SMC_TO_GENERATE
    )
    if "genlm-tuned" in results:
        middle, low, high = ratio(results, "genlm-tuned", "smc")
        judge(
            f"genlm-control tuned / SMC   {middle:.1f} (rounds {low:.1f}-{high:.1f}), required >= {PEER_TO_SMC:.0f}",
            middle >= PEER_TO_SMC,
        )
    for key, name in (("genlm", "genlm-control as it comes"), ("llamppl", "llamppl")):
        if key in results:
            middle, low, high = ratio(results, key, "smc")
            print(f"{name + ' / SMC':<27} {middle:.1f} (rounds {low:.1f}-{high:.1f})")
    outside = results["smc"][0]["outside"]
    required = f", required < {OUTSIDE:.0%}" if strict else ""
    judge(f"SMC outside the network     {outside:.1%}{required}", outside < OUTSIDE)
    often = sum(r["resamplings"] >= 3 for r in results["smc"])
    print(f"SMC resampled three times or more in {often} of {len(results['smc'])} repetitions")
    return not failed or not strict


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--particles", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", help="float32 or bfloat16 (default: float32, bfloat16 with --sweep)")
    parser.add_argument("--sweep", action="store_true", help=f"N = {SWEEP[0]} ... {SWEEP[-1]} instead of --particles")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every repetition there")
    return parser.parse_args()


def main() -> int:
    chosen = options()
    if chosen.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # inherited by the contenders
    peers = chosen.peers and chosen.device == "cpu"
    if peers and not PEERS_PYTHON.exists():
        print("no .venv-peers here: the peers are left out (make bench-peers installs them)\n")
        peers = False
    machine = Machine()
    settings = target_settings(chosen.device, chosen.dtype or ("bfloat16" if chosen.sweep else "float32"))
    processes: list[Process] = []
    everything: dict[int, Results] = {}
    try:
        for entry in lineup(chosen.device, peers):
            progress(f"loading {entry.key}")
            processes.append(Process(entry, settings))
        for particles in SWEEP if chosen.sweep else [chosen.particles]:
            everything[particles] = measure(processes, particles, chosen.tokens, chosen.repetitions)
    finally:
        for process in processes:
            process.close()
    where = torch.cuda.get_device_name() if chosen.device == "cuda" else f"{os.cpu_count()} cores"
    threads = "/".join(str(n) for n in sorted({process.threads for process in processes}))
    others = machine.others()
    shared = "" if others is None else f", {others:.0%} of the cores were used by others meanwhile"
    print(f"{where}, {threads} threads, torch {torch.__version__}, {settings['dtype']}")
    print(f"SmolLM2-135M, T={chosen.tokens}, {chosen.repetitions} interleaved repetitions")
    print(f"load before the start {machine.load:.1f}{shared}")
    if others is not None and others > 0.05:
        print("the machine was not quiet: these times mean little")
    print()
    titles = {process.entry.key: process.entry.title for process in processes}
    show_table(
        [*HEADINGS, *(row(titles[key], n, r) for n, results in everything.items() for key, r in results.items())]
    )
    passed = True
    for particles, results in everything.items():
        print(f"\nN={particles}")
        passed = verdict(results, strict=chosen.device == "cpu") and passed
    if chosen.json:
        chosen.json.write_text(json.dumps({"settings": {**settings, "e_ids": None}, "results": everything}, indent=1))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
