"""A film review, tilted towards praise.

One completion and one reward: the smallest model there is.
"""

from ppl_align import CausalLM, completion, reward
from ppl_align.rewards import Vader

lm = CausalLM("smollm2-135m")


def positive_review(prompt: str = "The movie was", beta: float = 0.2, max_new_tokens: int = 24):
    """p(review | prompt) exp(sentiment / beta): the smaller beta, the warmer the praise."""
    review = completion("review", lm, prompt, max_new_tokens=max_new_tokens)
    reward("sentiment", Vader(), review, beta=beta)
    return review
