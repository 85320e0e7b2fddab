"""Any reward, named on the command line.

`ppl-align rewards` lists those that ship with the library.
"""

from ppl_align import CausalLM, completion
from ppl_align import reward as likelihood

lm = CausalLM("smollm2-135m")


def any_reward(
    prompt: str = "The weather today is", reward: str = "vader", beta: float = 0.2, max_new_tokens: int = 24
):
    """p(text | prompt) exp(r / beta): choose beta in the units of the reward."""
    text = completion("text", lm, prompt, max_new_tokens=max_new_tokens)
    likelihood("reward", reward, text, beta=beta)
    return text
