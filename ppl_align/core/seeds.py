"""Random streams: one for each purpose, so that equal seeds never mean equal draws.

The same seed on a local generator and on torch's global one gives the same numbers. Two engines run with ``seed=0``
would then look at the same completions, and what is retained from one would be no independent draw for the other.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch


def mix(seed: int, purpose: str) -> int:
    """A seed for one purpose: a fixed function of both, different for different purposes.

    >>> mix(0, "smc") == mix(0, "smc"), mix(0, "smc") == mix(0, "importance"), mix(0, "smc") == mix(1, "smc")
    (True, False, False)
    """
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """A local generator with a stream of its own."""
    return torch.Generator().manual_seed(mix(seed, purpose))


def seed_all(seed: int) -> None:
    """``torch.manual_seed``: the stream of the CPU, and of each accelerator where there is one.

    Where there is none, torch's own puts the seed on a list for three kinds of them, each time with a printed stack."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def cuda_devices() -> list[int]:
    """Every CUDA device, whose random numbers are to be given back as well: for ``torch.random.fork_rng``."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


def generators() -> tuple[Any, ...]:
    """The state of every global random generator that a function of the user's might draw from; compares equal while
    nobody does."""
    algorithm, keys, *rest = np.random.get_state()  # noqa: NPY002
    return random.getstate(), algorithm, np.asarray(keys).tobytes(), *rest, torch.get_rng_state().numpy().tobytes()


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """One random stream for the whole run, taken from ``seed`` and given back; a parameter store of its own."""
    with torch.random.fork_rng(devices=cuda_devices()), pyro.get_param_store().scope():
        seed_all(seed)
        yield
