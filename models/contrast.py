"""What a child says of the moon, an encyclopedia would not.

Contrast: a text is worth more the more probable it is after one prompt than after another.
"""

from ppl_align import CausalLM, completion, expert, power

lm = CausalLM("smollm2-135m")


def contrast(
    subject: str = "The moon is",
    this: str = "A little child explains: ",
    that: str = "The encyclopedia explains: ",
    strength: float = 1.0,
    max_new_tokens: int = 12,
):
    """p(text | this) (p(text | this) / p(text | that))^strength: typical of the first voice, not of both.

    A power of the prior against an expert: the texts are weighed as wholes. Product([...], [1 + strength, -strength])
    would do it token by token.
    """
    text = completion("text", lm, this + subject, max_new_tokens=max_new_tokens, stop=["\n", "."])
    power("this", text, alpha=1 + strength)
    expert("that", lm, text, weight=-strength, prompt=that + subject)
    return text
