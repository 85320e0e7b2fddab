"""A topic and a sentence on it, chosen for their good mood.

A latent variable upstream of the text: particles have different prompts.
"""

import pyro
import torch
from pyro.distributions import Categorical

from ppl_align import CausalLM, choose, completion, reward
from ppl_align.rewards import Vader

lm = CausalLM("smollm2-135m")

TOPICS = ("weather", "dentists", "birthdays", "war")


def topic(opening: str = "Here is a true story about", beta: float = 0.2, max_new_tokens: int = 20):
    """p(topic) p(story | topic) exp(mood / beta): the topic and the story are inferred together.

    The posterior of "topic" says which topics lend themselves to it: uniform before, no longer so after.
    """
    which = pyro.sample("topic", Categorical(torch.ones(len(TOPICS))))
    story = completion("story", lm, opening + " " + choose(which, TOPICS) + ".", max_new_tokens=max_new_tokens)
    reward("mood", Vader(), story, beta=beta)
    return story
