"""Rewards: functions of a text that become likelihoods, in TRL's calling convention or as plain ``f(texts)``."""

from ppl_align.rewards.adapters import chat, columns, each
from ppl_align.rewards.automaton import Accepts, Automaton
from ppl_align.rewards.cache import reward_cache
from ppl_align.rewards.calling import evaluate
from ppl_align.rewards.classifier import ClassifierReward
from ppl_align.rewards.tokens import LastToken, TokenSum
from ppl_align.rewards.toxicity import Toxicity
from ppl_align.rewards.vader import Vader

__all__ = [
    "Accepts",
    "Automaton",
    "ClassifierReward",
    "LastToken",
    "TokenSum",
    "Toxicity",
    "Vader",
    "chat",
    "columns",
    "each",
    "evaluate",
    "reward_cache",
]
