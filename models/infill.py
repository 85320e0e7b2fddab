"""The missing middle of a story whose end is known.

The ending is observed, the middle is inferred.
"""

from ppl_align import CausalLM, completion

lm = CausalLM("smollm2-135m")


def infill(
    beginning: str = "A fox was hungry. She",
    ending: str = " and was not hungry any more.",
    max_new_tokens: int = 6,
):
    """p(middle | beginning, ending): what happened in between.

    No reward: how well the ending follows, according to the language model itself, is the likelihood.
    Few middles fit, so give it many particles. The ending is tokenised on its own: begin it with its space.
    """
    middle = completion("middle", lm, beginning, max_new_tokens=max_new_tokens)
    completion("ending", lm, (beginning, middle), starts_with=ending)
    return middle
