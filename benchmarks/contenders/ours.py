"""ppl_align: SMC, SMC without prepacked layers, and importance sampling from the prior."""

from __future__ import annotations

from typing import Any

import torch
from worker import Outcome, serve

from ppl_align import SMC, CausalLM, ImportanceSampling, completion, reward


class Ours:
    """The target as a Pyro program, and an engine."""

    def __init__(self, settings: dict[str, Any]) -> None:
        dtype = getattr(torch, settings["dtype"])
        self.lm = CausalLM(settings["folder"], device=settings["device"], dtype=dtype, prepack=settings["prepack"])
        self.network = self.lm.model
        self.engine = settings["engine"]
        self.prompt = settings["prompt_ids"]
        self.holds_e = torch.zeros(self.lm.vocab_size, device=self.lm.device)
        self.holds_e[settings["e_ids"]] = 1.0

    def reset(self) -> None:
        """Nothing outlives a run."""

    def count_e(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.holds_e[tokens].sum(-1)  # padding is EOS, whose text is empty

    def target(self, tokens: int) -> None:
        x = completion("x", self.lm, self.prompt, max_new_tokens=tokens)
        reward("e", self.count_e, x.tokens, beta=1.0)

    def run(self, seed: int, particles: int, tokens: int) -> Outcome:
        if self.engine == "smc":
            smc = SMC(num_particles=particles, num_replicates=1, ess_threshold=0.5, twist="prefix", every=1)
            posterior = smc.run(self.target, tokens, seed=seed)
            resamplings = int(posterior.history["resampled"].sum())
        else:
            importance = ImportanceSampling(num_particles=particles, num_replicates=1)
            posterior, resamplings = importance.run(self.target, tokens, seed=seed), None
        return Outcome(
            sequences=posterior.completions["x"].tokens[0].tolist(),
            log_z=float(posterior.log_evidence[0]),
            resamplings=resamplings,
            forward_seconds=posterior.cost.lm_seconds if self.lm.device.type == "cpu" else None,
        )


if __name__ == "__main__":
    serve(Ours)
