"""A date, and nothing else, by regular expression.

A hard constraint by regular expression: what the language model believes, given that it answers in this form.
"""

from ppl_align import CausalLM, completion, constrain
from ppl_align.constraints import Regex

lm = CausalLM("smollm2-135m")

MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"


def date(prompt: str = "Neil Armstrong walked on the Moon on", max_new_tokens: int = 14):
    """p(date | prompt, it is one): no reward. log Z says how likely the language model is to write a date at all."""
    answer = completion("answer", lm, prompt, max_new_tokens=max_new_tokens, stop=".")
    constrain("date", Regex(rf" ({MONTHS}) [1-3]?[0-9], (19|20)[0-9]{{2}}\."), answer)
    return answer
