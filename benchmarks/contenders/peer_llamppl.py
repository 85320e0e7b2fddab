"""llamppl 0.2: the same target as a ``Model.step``. Runs in .venv-peers, with its default back-end settings."""

from __future__ import annotations

import asyncio
import math
import sys
from typing import Any

import numpy as np
import torch
from llamppl import CachedCausalLM, LMContext, Model
from llamppl.inference import smc_standard
from worker import Outcome, ResamplingCount, serve


class Target(Model):
    """p(x) exp(number of tokens that hold an "e"), at most ``tokens`` tokens."""

    def __init__(self, lm: CachedCausalLM, settings: dict[str, Any], tokens: int) -> None:
        super().__init__()
        self.context = LMContext(lm, settings["prompt"])
        assert self.context.tokens == settings["prompt_ids"]
        self.e_ids = settings["e_ids"]
        self.eos = settings["eos_id"]
        self.tokens = tokens

    def immutable_properties(self) -> set[str]:
        return {"e_ids", "eos", "tokens"}

    async def step(self) -> None:
        token = await self.sample(self.context.next_token())
        if token.token_id in self.e_ids:
            self.score(1.0)
        if token.token_id == self.eos or self.context.token_count == self.tokens:
            self.finish()


class Llamppl:
    """Loads the model; a fresh ``Target`` for each repetition."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = {**settings, "e_ids": frozenset(settings["e_ids"])}
        self.lm = CachedCausalLM.from_pretrained(settings["folder"], backend="hf")
        self.network = self.lm.model.model
        assert self.network.dtype == torch.float32
        self.resamplings = ResamplingCount(sys.modules["llamppl.inference.smc_standard"])

    def reset(self) -> None:
        self.lm.clear_cache()
        self.resamplings.calls = 0

    def run(self, seed: int, particles: int, tokens: int) -> Outcome:
        np.random.seed(seed)  # noqa: NPY002  (it draws from the global stream)
        model = Target(self.lm, self.settings, tokens)
        found = asyncio.run(smc_standard(model, particles, ess_threshold=0.5, resampling_method="systematic"))
        weights = np.array([particle.weight for particle in found])
        skip = len(self.settings["prompt_ids"])
        return Outcome(
            [particle.context.tokens[skip:] for particle in found],
            log_z=float(np.logaddexp.reduce(weights) - math.log(particles)),
            resamplings=self.resamplings.calls,
        )


if __name__ == "__main__":
    serve(Llamppl)
