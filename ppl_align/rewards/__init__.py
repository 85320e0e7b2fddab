"""Rewards: functions of a text that become likelihoods, in TRL's calling convention or as plain ``f(texts)``."""

from ppl_align.core.deprecation import renamed
from ppl_align.rewards.accepts import Accepts
from ppl_align.rewards.adapters import chat, columns, each
from ppl_align.rewards.calling import evaluate
from ppl_align.rewards.classifier import ClassifierReward, load_classifier
from ppl_align.rewards.embedding import Embedder
from ppl_align.rewards.journal import logged
from ppl_align.rewards.judge import Judge, PairwiseJudge
from ppl_align.rewards.keywords import Keywords
from ppl_align.rewards.length import LengthReward
from ppl_align.rewards.readability import Readability
from ppl_align.rewards.similarity import Similarity
from ppl_align.rewards.tokens import LastToken, TokenSum
from ppl_align.rewards.toxicity import Toxicity
from ppl_align.rewards.vader import Vader
from ppl_align.tokens.automaton import Automaton

__all__ = [
    "Accepts",
    "Automaton",
    "ClassifierReward",
    "Embedder",
    "Judge",
    "Keywords",
    "LastToken",
    "LengthReward",
    "PairwiseJudge",
    "Readability",
    "Similarity",
    "TokenSum",
    "Toxicity",
    "Vader",
    "chat",
    "columns",
    "each",
    "evaluate",
    "load_classifier",
    "logged",
]

__getattr__ = renamed(globals(), {"Length": "LengthReward"})
