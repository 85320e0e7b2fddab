"""A review to the taste of critics, learned from pairs.

A Bayesian reward from preferences; what is not known about it can be averaged, feared or hoped for.
"""

from functools import lru_cache

from ppl_align import CausalLM, completion
from ppl_align.preferences import Embedding, RewardPosterior, film_pairs

lm = CausalLM("smollm2-135m")


@lru_cache(maxsize=1)
def _critics() -> RewardPosterior:
    """Fresh above rotten snippets of one film, by a linear reward on sentence embeddings; learned at the first call."""
    return RewardPosterior.learn(film_pairs(200), Embedding())


def learned_taste(prompt: str = "This film is", use: str = "mean", beta: float = 0.8, max_new_tokens: int = 20):
    """p(review | prompt) exp(r / beta), r what critics prefer: one unit is one nat of log-odds.

    use="mean" averages what r may be before the exponential, "pessimistic" takes a standard deviation off, and
    "marginalised" averages after it, which pays a bonus for being unlike any review (and warns of its size).
    """
    review = completion("review", lm, prompt, max_new_tokens=max_new_tokens)
    _critics().reward("critics", review, beta, use)
    return review
