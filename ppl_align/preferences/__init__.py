"""Rewards learned from preferences: pairs, features, the posterior of a linear reward, and its uses in a program."""

from ppl_align.preferences.belief import Belief, comparisons
from ppl_align.preferences.features import Embedding, LMFeatures, Remembered
from ppl_align.preferences.films import film_pairs
from ppl_align.preferences.loop import Round, refresh
from ppl_align.preferences.pairs import Pairs, read_pairs
from ppl_align.preferences.posterior import RewardPosterior
from ppl_align.preferences.report import Report
from ppl_align.preferences.uses import LearnedReward, OptimismWarning, optimism_bonus

__all__ = [
    "Belief",
    "Embedding",
    "LMFeatures",
    "LearnedReward",
    "OptimismWarning",
    "Pairs",
    "Remembered",
    "Report",
    "RewardPosterior",
    "Round",
    "comparisons",
    "film_pairs",
    "optimism_bonus",
    "read_pairs",
    "refresh",
]
