"""The model's own most probable sentences: a power prior.

A power prior weighs whole texts; temperature sharpens each token, wherever it leads.
"""

from ppl_align import CausalLM, completion, power

lm = CausalLM("smollm2-135m")


def sharpened(
    prompt: str = "Water is important because",
    alpha: float = 2.0,
    temperature: float = 1.0,
    max_new_tokens: int = 12,
):
    """p(text | prompt)^alpha, ended by a full stop: what the model would say if it thought twice.

    Try `--set alpha=1 --set temperature=0.5` for the local kin: its first words are sharper, its sentences are less
    probable. Steer it (smc), for draws of the prior seldom meet what is most probable as a whole.
    """
    text = completion("text", lm, prompt, max_new_tokens=max_new_tokens, temperature=temperature, stop=[".", "\n"])
    power("sharp", text, alpha=alpha)
    return text
