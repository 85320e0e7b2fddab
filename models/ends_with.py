"""An answer whose last words are given.

The ending is seen, and that nothing comes after it; what comes before is inferred.
"""

from ppl_align import CausalLM, completion, goes_on

lm = CausalLM("smollm2-135m")


def ends_with(
    prompt: str = "My neighbour called the police because",
    ending: str = " in the middle of the night.",
    max_new_tokens: int = 6,
):
    """p(beginning | the answer is max_new_tokens tokens, then the ending, then over).

    The likelihood is the language model's own: of the ending, token by token, and of EOS after it. A beginning that
    had already ended contradicts what was seen: goes_on rules it out, and engines do not draw it. The ending is
    tokenised on its own: begin it with its space.
    """
    beginning = completion("beginning", lm, prompt, max_new_tokens=max_new_tokens)
    goes_on("more follows", beginning)
    completion("ending", lm, (prompt, beginning), obs=ending)
    return beginning
