"""Several answers that differ from one another.

A plate of completions under one joint reward: the set is aligned, not each answer on its own.
"""

import pyro

from ppl_align import CausalLM, completion, reward

lm = CausalLM("smollm2-135m")


def _overlap(texts: list[str]) -> list[float]:
    """The share of words that were said before, in the same answer or in another one."""
    words = [[word.strip(".,;:!?").lower() for word in text.split()] for text in texts]
    return [1 - len(set(said)) / max(1, len(said)) for said in words]


def k_different(
    prompt: str = "The best way to spend a rainy day is to", k: int = 3, beta: float = 0.05, max_new_tokens: int = 10
):
    """p(answer_1) ... p(answer_k) exp(-overlap / beta), overlap between 0 (no word occurs twice) and 1.

    The answers are independent under the prior and no longer so afterwards.
    """
    with pyro.plate("answers", k):
        answer = completion("answer", lm, prompt, max_new_tokens=max_new_tokens, stop="\n")
    together = answer.text[..., :1]
    for i in range(1, k):
        together = together + " " + answer.text[..., i : i + 1]
    reward("overlap", _overlap, together, beta=beta, weight=-1.0, lower=0.0, upper=1.0)
    return answer
