"""What a job costs besides the network, and what a second worker gives: 50 short prompts, SmolLM2-135M.

    python benchmarks/job_costs.py [--rows 50] [--particles 16]

Each line is the command ``ppl-align run`` in a folder of its own, with one thread a worker; of the whole time of the
command, *start* passes before the first group begins (Python, imports, the model in each worker), *network* and
*rewards* are what the ledger says, summed over workers, and *rest* is what remains of the workers' time, a row. At the
end: do all lines with the same ``--keep`` write the same ``completions.parquet``?
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs import NOUNS

MODEL = """
from ppl_align import CausalLM, completion, reward

_lm = CausalLM("smollm2-135m")


def film(prompt):
    x = completion("x", _lm, prompt, max_new_tokens=16)
    reward("e", lambda texts: [text.count("e") for text in texts], x, beta=4.0)
"""
ENGINE = 'from ppl_align import SMC\n\nengine = SMC({}, 4, twist="prefix")\n'
LINES = [
    ("serial", "none", 1, ()),
    ("serial", "all", 1, ()),
    ("process", "none", 1, ("--executor", "process", "--workers", "1")),
    ("process", "none", 2, ("--executor", "process", "--workers", "2")),
]


def main() -> None:
    """A line for each way to run the job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=len(NOUNS))
    parser.add_argument("--particles", type=int, default=16)
    asked = parser.parse_args()
    digests: dict[str, set[str]] = {}
    print("executor  workers  keep  rows  whole s  start s  network s  rewards s  rest, s a row")
    for executor, keep, workers, more in LINES:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "film.py").write_text(MODEL)
            (folder / "few.py").write_text(ENGINE.format(asked.particles))
            rows = [json.dumps({"prompt": f"The {noun} was"}) + "\n" for noun in NOUNS[: asked.rows]]
            (folder / "data.jsonl").write_text("".join(rows))
            job = ["run", "film.py", "--data", "data.jsonl", "--engine", "few.py", "--out", "out", "--keep", keep]
            began = time.time()
            command = [str(Path(sys.executable).with_name("ppl-align")), *job, "--threads", "1", *more]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            whole = time.time() - began
            events = [json.loads(line) for line in (folder / "out/ledger.jsonl").read_text().splitlines()]
            groups = [event for event in events if event["event"] == "group"]
            done, network, rewards = (
                sum(group[name] for group in groups) for name in ("seconds", "lm_seconds", "reward_seconds")
            )
            rest = (done - network - rewards) / len(rows)
            start = whole - done / workers
            print(
                f"{executor:8}  {workers:7}  {keep:4}  {len(rows):4}  {whole:7.1f}  {start:7.1f}  {network:9.1f}  "
                f"{rewards:9.1f}  {rest:13.2f}",
                flush=True,
            )
            written = (folder / "out/completions.parquet").read_bytes()
            digests.setdefault(keep, set()).add(hashlib.sha256(written).hexdigest())
    print("the same bytes:", all(len(found) == 1 for found in digests.values()))


if __name__ == "__main__":
    main()
