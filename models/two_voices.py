"""A text by one of two voices, and which of them it was.

A mixture of prompted language models is the prior; who wrote is summed out, and asked for afterwards.
"""

import pyro
from pyro.distributions import Categorical

from ppl_align import CausalLM, Mixture, Prompted, completion, reward
from ppl_align.rewards import Vader

lm = CausalLM("smollm2-135m")

VOICES = ("A tired pessimist wrote in the diary: ", "A newly wed optimist wrote in the diary: ")


def two_voices(prompt: str = "Today it was raining and", beta: float = 0.3, max_new_tokens: int = 16):
    """sum_k p(voice k) p(text | voice k) exp(mood / beta): 0 is the pessimist, 1 the optimist, both equal before.

    "voice" is drawn from its exact posterior given the text: no engine has to guess it beforehand.
    """
    voices = Mixture([Prompted(lm, before=voice) for voice in VOICES])
    text = completion("text", voices, prompt, max_new_tokens=max_new_tokens)
    reward("mood", Vader(), text, beta=beta)
    pyro.sample("voice", Categorical(logits=voices.log_responsibilities(text)))
    return text
