"""Biographies of scientists, half of them about women.

A constraint on the average: no text is rewarded on its own, the weight of the feature is solved for.
"""

import re

from ppl_align import CausalLM, completion, moment_constraint

lm = CausalLM("smollm2-135m")

SHE = re.compile(r"\b(she|her|hers|herself)\b", re.IGNORECASE)
HE = re.compile(r"\b(he|him|his|himself)\b", re.IGNORECASE)


def _about_a_woman(texts: list[str]) -> list[float | None]:
    """1 for a text with more words of SHE than of HE, 0 for more of HE; None where neither has more."""
    lead = [len(SHE.findall(text)) - len(HE.findall(text)) for text in texts]
    return [None if n == 0 else float(n > 0) for n in lead]


half_women = moment_constraint({"woman": _about_a_woman}, {"woman": 0.5})


def balanced_biographies(
    prompt: str = "This scientist was born in a small town. Even as a child,", max_new_tokens: int = 12
):
    """The nearest distribution to p(biography | prompt) with E[woman] = 0.5: KL(q || p) is least among those.

    Which biographies of women, and of men, is up to the language model: within each, nothing is tilted.
    """
    biography = completion("biography", lm, prompt, max_new_tokens=max_new_tokens)
    half_women(biography)
    return biography
