"""A learned reward, frozen or refreshed on new labels.

Ten pairs of reviews teach the first reward; then a simulated reader compares what the tilted model writes.
"""

from functools import lru_cache

import torch

from ppl_align import CausalLM, Completion, completion, reward
from ppl_align.errors import InputError
from ppl_align.preferences import Embedding, Remembered, RewardPosterior, film_pairs, refresh

lm = CausalLM("smollm2-135m")


@lru_cache(maxsize=8)
def _rounds(prompt: str, max_new_tokens: int, arm: str, num_draws: int = 256, seed: int = 0):
    """The loop, on draws of the prior; the reader knows 200 pairs. Runs at the model's first call."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        source = lm.completion(prompt, max_new_tokens).expand([num_draws])
        pool = Completion(source.sample(), source).texts()  # a text drawn twice counts twice
    features = Remembered(Embedding())
    reader = RewardPosterior.learn(film_pairs(200), features).mean()
    return refresh(pool, reader, film_pairs(10, seed=1), features, arm=arm, kls=(0.5, 1, 2, 3), seed=seed)


def frozen_or_refreshed(arm: str = "refreshed", round: int = 3, prompt: str = "This film is", max_new_tokens: int = 20):
    """p(review | prompt) exp(r / beta), with the reward of that round (0 to 3), 0.5, 1, 2 or 3 nats from the prior.

    arm="frozen": ten pairs of critics, and nothing else; "refreshed": and 20 labels after each round, on texts of its
    posterior; "prior": as many, on texts of the language model as it was. docs/frozen_or_refreshed.py compares them.
    """
    if round not in (0, 1, 2, 3):
        raise InputError(f"round must be 0, 1, 2 or 3, got {round!r}")
    now = _rounds(prompt, max_new_tokens, arm)[round]
    review = completion("review", lm, prompt, max_new_tokens=max_new_tokens)
    reward("learned", now.posterior.mean(), review, beta=now.beta)
    return review
