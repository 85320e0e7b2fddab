"""Programs in which the world answers, small enough to enumerate."""

from __future__ import annotations

import pyro.distributions as dist
import torch

from ppl_align import CallableLM, completion, environment, reward
from ppl_align.claims import interaction, optimism

WORDS = [" yes", " no", " hm"]


def speaker(*log_p, name="speaker"):
    """One word after any prompt, whatever was said before."""
    table = torch.tensor(log_p, dtype=torch.float64).log()
    return CallableLM(3, lambda prefix: table.expand(len(prefix), -1), tokens=WORDS, name=name)


HOST, GUEST = speaker(0.5, 0.3, 0.2, name="host"), speaker(0.2, 0.7, 0.1, name="guest")


def game(beta=1.0):
    """The choice of the claim "optimism", its outcome declared as the world's."""
    action = completion("action", optimism.COIN, [], max_new_tokens=1)
    luck = optimism.LUCK[action.tokens[..., 0]]
    outcome = environment("outcome", dist.Categorical(logits=luck))
    reward("pay", lambda tokens: optimism.PAY[tokens[..., 0], outcome], action.tokens, beta=beta, upper=4.0)


ASSISTANT, WORLD = interaction.hand_made()


def dialogue(beta=1.0):
    """The dialogue of the claim "interaction", the user declared as the world."""
    first = completion("first", ASSISTANT, [], max_new_tokens=1)
    mood = environment("mood", dist.Categorical(logits=WORLD["mood"][first.tokens[..., 0]]))
    second = completion("second", ASSISTANT, (first, mood[..., None]), max_new_tokens=1)
    opinion = WORLD["verdict"][first.tokens[..., 0], mood, second.tokens[..., 0]]
    verdict = environment("verdict", dist.Categorical(logits=opinion))
    reward("pay", lambda tokens: interaction.PAY[verdict], second.tokens, beta=beta, upper=4.0)


def talk(beta=0.5):
    """The guest is a language model."""
    said = completion("said", HOST, " hm", max_new_tokens=2)
    heard = environment("heard", GUEST, (" hm", said), max_new_tokens=2)
    reward("mood", lambda texts: [text.count("yes") for text in texts], heard, beta=beta, upper=2.0)


def risky(particles):
    return (particles["action"].tokens[..., 0] == 1).double()
