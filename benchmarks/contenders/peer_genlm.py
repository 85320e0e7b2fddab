"""genlm-control 0.4: the same target as a language model and a critic. Runs in .venv-peers.

``terminate_when`` closes a sequence at T tokens without a weight; at ``max_tokens`` EOS would be forced with one,
and the target would be another. Systematic resampling, as in every SMC here (its default is multinomial).
The cache is emptied between repetitions; with ``cache_prompt`` the prompt's keys and values are computed in the
timed part, once, and reused (safe with a single prompt).
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import torch
from genlm.control import SMC, Potential, PromptedLLM
from genlm.control.constant import EOS
from genlm.control.sampler import smc as smc_module
from genlm.control.sampler.token import DirectTokenSampler
from worker import Outcome, ResamplingCount, serve


class HoldsE(Potential):
    """exp(number of tokens that hold an "e"), of a prefix as of a whole sequence."""

    def __init__(self, llm: PromptedLLM, e_ids: list[int]) -> None:
        super().__init__(llm.vocab, tables=llm.token_maps.tables)
        self.e_ids = frozenset(e_ids)

    async def prefix(self, context: list[Any]) -> float:
        return float(sum(token.token_id in self.e_ids for token in context))

    async def complete(self, context: list[Any]) -> float:
        return await self.prefix(context)


class Genlm:
    """``options`` go to the back end: batch size and timer."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.llm = PromptedLLM.from_name(
            settings["folder"], backend="hf", prompt_ids=settings["prompt_ids"], **settings["options"]
        )
        self.network = self.llm.model.model
        assert self.network.dtype == torch.float32
        self.eos = settings["eos_id"]
        assert self.llm.token_maps.eos_idxs == [self.eos]
        self.cache_prompt = settings["cache_prompt"]
        self.smc = SMC(DirectTokenSampler(self.llm), critic=HoldsE(self.llm, settings["e_ids"]))
        self.resamplings = ResamplingCount(smc_module)

    def reset(self) -> None:
        self.llm.model.clear_cache()
        self.resamplings.calls = 0

    def run(self, seed: int, particles: int, tokens: int) -> Outcome:
        np.random.seed(seed)  # noqa: NPY002  (it draws from the global stream)
        torch.manual_seed(seed)
        if self.cache_prompt:
            self.llm.model.cache_kv(self.llm.prompt_ids)
        found = asyncio.run(
            self.smc(
                n_particles=particles,
                ess_threshold=0.5,
                max_tokens=tokens + 1,
                terminate_when=lambda context: len(context) >= tokens,
                resampling_method="systematic",
            )
        )
        rows = [[self.eos if token is EOS else token.token_id for token in context] for context in found.contexts]
        return Outcome([row[:tokens] for row in rows], log_z=float(found.log_ml), resamplings=self.resamplings.calls)


if __name__ == "__main__":
    serve(Genlm)
