"""A kind answer, and the persona that would give it.

Chat messages may hold what differs from particle to particle.
"""

import pyro
import torch
from pyro.distributions import Categorical

from ppl_align import CausalLM, choose, completion, reward
from ppl_align.rewards import Vader

lm = CausalLM("smollm2-135m")

PERSONAS = ("a pirate", "a strict teacher", "a loving grandmother", "a sports reporter", "a tired accountant")


def persona(message: str = "I failed my exam today.", beta: float = 0.3, max_new_tokens: int = 24):
    """p(persona) p(answer | persona, message) exp(mood / beta): who answers, and what.

    The posterior of "persona" says who tends to be kind; uniform before, no longer so after.
    """
    who = pyro.sample("persona", Categorical(torch.ones(len(PERSONAS))))
    messages = [
        {"role": "system", "content": "You are " + choose(who, PERSONAS) + ". Answer in one short sentence."},
        {"role": "user", "content": message},
    ]
    answer = completion("answer", lm, messages, max_new_tokens=max_new_tokens)
    reward("mood", Vader(), answer, beta=beta)
    return answer
