"""What tests of the command line run on: a folder of their own, with a model in it."""

from __future__ import annotations

from pathlib import Path

import pytest

MODEL = '''
import torch
from ppl_align import CallableLM, completion, reward

_lm = CallableLM(4, lambda prefix: torch.zeros(len(prefix), 4), eos_id=3)


def toy(prompt: str = "0", bias: float = 1.0):
    """A toy that likes ones."""
    x = completion("x", _lm, prompt, max_new_tokens=3)
    reward("ones", lambda tokens: bias * (tokens == 1).double().sum(-1), x.tokens)
    return x
'''


def go_to(folder: Path, monkeypatch: pytest.MonkeyPatch, **sources: str) -> Path:
    """Work in that folder, 80 columns wide; ``sources``: Python files by name."""
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    return folder
