"""A review that mentions a word it hardly ever would.

A hard constraint that says nothing on the way: run it with the engine smc_lookahead.
"""

from ppl_align import CausalLM, Contains, completion, constrain

lm = CausalLM("smollm2-135m")


def mentions(prompt: str = "The movie was", word: str = "popcorn", max_new_tokens: int = 20):
    """p(review | prompt, it contains the word): conditioning on an event of small probability.

    What comes back is what the model would write in the few cases in which it does write the word.
    """
    review = completion("review", lm, prompt, max_new_tokens=max_new_tokens)
    constrain("mentions", Contains(word), review)
    return review
