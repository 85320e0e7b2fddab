"""The model's own most probable beginnings: a power prior.

A power prior weighs whole texts; temperature sharpens each token, wherever it leads.
"""

from ppl_align import CausalLM, completion, power

lm = CausalLM("smollm2-135m")


def sharpened(
    prompt: str = "Water is important because",
    alpha: float = 2.0,
    temperature: float = 1.0,
    max_new_tokens: int = 8,
):
    """p(text | prompt)^alpha: what the model would say if it thought twice.

    Steer it (smc_tempered), for draws of the prior seldom meet what is most probable as a whole. All texts are of one
    length: beside unfinished text, whose tokens are still to be paid for, finished text looks improbable and is lost by
    "prefix". Where texts may end take smc_power, which weighs both by the same power.
    Try `--set alpha=1 --set temperature=0.5` for the local kin: its first words are sharper, its texts less probable.
    """
    text = completion("text", lm, prompt, max_new_tokens=max_new_tokens, temperature=temperature)
    power("sharp", text, alpha=alpha)
    return text
