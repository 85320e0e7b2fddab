"""An answer that the language model itself judges happy.

The judge reads a few examples and the answer; its log-odds of "happy" over "sad" are the reward. Nothing is sampled.
"""

from ppl_align import CausalLM, completion, reward
from ppl_align.rewards import Judge

lm = CausalLM("smollm2-135m")

QUESTION = """I love this city. Mood: happy
My car broke down. Mood: sad
We had a great party. Mood: happy
Nobody called me. Mood: sad
{completion} Mood:"""


def judged(prompt: str = "How was your day?", beta: float = 2.0, max_new_tokens: int = 16):
    """p(answer | prompt) odds(happy)^(1 / beta): the prior and its judge are the same model."""
    answer = completion("answer", lm, [{"role": "user", "content": prompt}], max_new_tokens=max_new_tokens)
    reward("mood", Judge(lm, QUESTION, yes=" happy", no=" sad"), answer, beta=beta)
    return answer
