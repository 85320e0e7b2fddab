"""The missing middle of a story whose end is known: the end is observed, the middle is inferred."""

from ppl_align import CausalLM, completion

lm = CausalLM("smollm2-135m")


def infill(
    beginning: str = "A fox was hungry. She",
    ending: str = ", and then the fox was not hungry any more.",
    max_new_tokens: int = 12,
):
    """The missing middle of a story whose end is known.

    No reward: how well the ending follows, according to the language model itself, is the likelihood.
    """
    middle = completion("middle", lm, beginning, max_new_tokens=max_new_tokens)
    completion("ending", lm, (beginning, middle), starts_with=ending)
    return middle
