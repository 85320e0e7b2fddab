"""A dialogue of two turns; the guest is the world.

Engines that condition also pick a guest who cheers up easily, and say by how much; `svi` and `nested` decide.
"""

from random import Random

from ppl_align import CausalLM, completion, environment, reward
from ppl_align.rewards import Vader

lm = CausalLM("smollm2-135m")
_tone = Vader()
_PLEASED = (" Thank you, that is very kind.", " Great, I am happy to hear that!", " Wonderful, thanks a lot.")
_CROSS = (" That is no help at all.", " What a terrible hotel.", " I am tired and angry.")


def _guest(said: str, rng: Random) -> str:
    """Friendly words please most guests, others now and then."""
    pleased = rng.random() < 0.5 + 0.4 * _tone([said])[0]
    return rng.choice(_PLEASED if pleased else _CROSS)


def dialogue(opening: str = "My train was cancelled.", beta: float = 0.4, max_new_tokens: int = 10):
    """p0(host) p(guest) exp(mood / beta): what to say to a guest whose last words should sound happy."""
    talk = f"Guest: {opening}\nHost:"
    first = completion("first", lm, talk, max_new_tokens, stop="\n")
    reply = environment("reply", _guest, first)
    talk = talk + first.text + "\nGuest:" + reply + "\nHost:"
    second = completion("second", lm, talk, max_new_tokens, stop="\n")
    parting = environment("parting", _guest, second)
    reward("mood", _tone, parting, beta=beta)
    return second
