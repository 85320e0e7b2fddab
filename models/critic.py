"""A review by a language model that has read reviews.

A trained prior: a PEFT adapter on the network that other priors share.
"""

from functools import lru_cache
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, get_peft_model

from ppl_align import CausalLM, completion, reward
from ppl_align.preferences import film_pairs
from ppl_align.rewards import Vader


@lru_cache(maxsize=1)
@torch.enable_grad()
def _critic(num_steps: int = 12, batch: int = 8) -> CausalLM:
    """The language model after a few steps on snippets that critics wrote. Runs at the model's first call."""
    plain = CausalLM("smollm2-135m", prepack=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = get_peft_model(plain.model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    optimiser = torch.optim.Adam([w for w in network.parameters() if w.requires_grad], lr=3e-3)
    for texts in torch.utils.data.DataLoader(film_pairs(num_steps * batch).better, batch):
        rows = plain.tokenizer(list(texts), return_tensors="pt", padding=True).to(plain.device)
        network(**rows, labels=rows.input_ids.masked_fill(rows.attention_mask == 0, -100)).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    with TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        return CausalLM("smollm2-135m", adapter=folder)


def critic(prompt: str = "This film is", beta: float = 0.5, max_new_tokens: int = 20):
    """p(review | prompt) exp(sentiment / beta), p(.) the language model that was trained on 96 snippets of reviews."""
    review = completion("review", _critic(), prompt, max_new_tokens=max_new_tokens)
    reward("praise", Vader(), review, beta=beta)
    return review
