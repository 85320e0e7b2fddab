"""Try the wheel as a new user would: in an empty environment, for each extra and each Python.

    python tools/try_wheel.py dist --python python3.11 --python python3.13

The first Python gets the wheel alone and with each of its extras, every other one the wheel alone. A trial installs
with the pinned versions, then, in an empty folder: imports the library, prints the version by the command line, runs a
model on a toy language model by several engines, and uses what the extra is for. Exit code 1 if one fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOY = '''
import torch
from ppl_align import MarkovLM, completion, reward

LM = MarkovLM(torch.zeros(4, 4), torch.zeros(4), eos_id=0, tokens=["", "good ", "bad ", "so "])


def toy():
    """Four words, praise wanted."""
    text = completion("text", LM, [], max_new_tokens=6)
    reward("praise", lambda texts: [float(t.count("good")) for t in texts], text)
'''
_TINY = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from ppl_align import *
lm = CausalLM(LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
              num_attention_heads=2, eos_token_id=0, bos_token_id=None, pad_token_id=0)))
def program():
    x = completion("x", lm, [1], max_new_tokens=3)
    reward("r", lambda t: (t == 2).sum(-1).double(), x.tokens)
"""
USES = {  # by extra, what it is for
    "lora": _TINY
    + """
guide = SVI(num_steps=2, num_particles=4, guide="lora").run(program).guide
guide.save("adapter")
print(CausalLM(lm.model, adapter="adapter"))
""",
    "toxicity": "from ppl_align.rewards import Toxicity\nprint(Toxicity()(['a lovely day']))",
    "oracles": "from ppl_align.rewards import Automaton\nfrom toy import LM\nprint(Automaton.regex('(good )*', LM))",
    "constraints": """
from ppl_align import *
from toy import LM
def program():
    x = completion("x", LM, [], max_new_tokens=4)
    constrain("form", Regex("(good )+"), x)
print(ImportanceSampling(16, 4).run(program).table())
""",
    "trl": "import trl\nfrom ppl_align import reward_funcs\nprint(trl.__version__, reward_funcs)",
    "ray": "import ray\nfrom ppl_align.jobs.executors.ray import OnRay\nprint(ray.__version__, OnRay)",
    "dev": "import pytest, ruff, mypy",
}


def main() -> int:
    """Build nothing, try everything; a line for each trial."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dist", type=Path, help="the folder that holds the wheel")
    parser.add_argument("--python", action="append", help="an interpreter; may be repeated [this one]")
    parser.add_argument("--torch-index", default="", help="another package index for torch")
    parser.add_argument("--extra", action="append", help="only these extras ('' for none)")
    asked = parser.parse_args()
    (wheel,) = asked.dist.resolve().glob("*.whl")
    pythons = asked.python or [sys.executable]
    trials = [(pythons[0], extra) for extra in asked.extra or ["", *extras_of(wheel)]]
    trials += [(python, "") for python in pythons[1:]]
    failed = 0
    for python, extra in trials:
        started = time.monotonic()
        what = f"{version_of(python)} [{extra}]" if extra else version_of(python)
        failure = trial(wheel, python, extra, asked.torch_index)
        print(f"{'FAILED' if failure else 'ok':7}{what:24}{time.monotonic() - started:5.0f} s", flush=True)
        if failure:
            failed += 1
            print(failure, flush=True)
    print(f"{len(trials)} trials of {wheel.name}, {failed} failed")
    return int(failed > 0)


def extras_of(wheel: Path) -> list[str]:
    """What the wheel itself offers."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return re.findall(r"^Provides-Extra: (\S+)", archive.read(name).decode(), re.MULTILINE)


def version_of(python: str) -> str:
    """``Python 3.12.1``"""
    return subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def trial(wheel: Path, python: str, extra: str, torch_index: str) -> str:
    """Empty where all went well, else what was done and the end of what it said."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    with tempfile.TemporaryDirectory(prefix="try-wheel-") as scratch:
        home, folder = Path(scratch) / "venv", Path(scratch) / "empty"
        folder.mkdir()
        inside = str(home / "bin" / "python")
        install = [inside, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
        torch = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
        index = ["--index-url", torch_index] if torch_index else []
        wanted = f"{wheel}[{extra}]" if extra else str(wheel)
        run = [str(home / "bin" / "ppl-align"), "run", "toy.py"]
        (folder / "toy.py").write_text(TOY)
        steps = [
            [python, "-m", "venv", str(home)],
            [*install, *index, *torch],
            [*install, "--constraint", str(ROOT / "constraints.txt"), wanted],
            [inside, "-c", "import ppl_align; print(ppl_align.__file__); from ppl_align import *"],
            [str(home / "bin" / "ppl-align"), "--version"],
            [*run, "--engine", "exact", "--engine", "importance", "--engine", "smc", "--engine", "svi", "--out", "out"],
            [str(home / "bin" / "ppl-align"), "compare", "out"],
        ]
        if extra:
            steps.append([inside, "-c", USES[extra]])
        for step in steps:
            done = subprocess.run(step, cwd=folder, env=clean, capture_output=True, text=True, check=False)
            if done.returncode:
                end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
                return f"  {' '.join(step)[:300]}\n{end}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
