"""Raw ``generate`` of transformers: the model as anybody loads it, sampling from the prior. No target, no weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from worker import Outcome, serve


class Generate:
    """As many continuations of the prompt as there are particles, in one call."""

    def __init__(self, settings: dict[str, Any]) -> None:
        dtype = getattr(torch, settings["dtype"])
        model = AutoModelForCausalLM.from_pretrained(settings["folder"], dtype=dtype)
        self.network: Any = model.to(settings["device"]).eval()
        self.prompt = torch.tensor([settings["prompt_ids"]], device=settings["device"])
        self.eos = settings["eos_id"]

    def reset(self) -> None:
        """Nothing outlives a call."""

    def run(self, seed: int, particles: int, tokens: int) -> Outcome:
        torch.manual_seed(seed)
        ids = self.network.generate(
            self.prompt,
            attention_mask=torch.ones_like(self.prompt),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=tokens,
            num_return_sequences=particles,
            eos_token_id=self.eos,
            pad_token_id=self.eos,
        )
        return Outcome(ids[:, self.prompt.shape[1] :].tolist())


if __name__ == "__main__":
    serve(Generate)
