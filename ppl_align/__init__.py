"""ppl-align: language-model alignment as Bayesian inference."""

from ppl_align.completion import Completion
from ppl_align.lm import CallableLM, CausalLM, MarkovLM
from ppl_align.posterior import Posterior
from ppl_align.program import choose, completion, reward

__version__ = "0.1.0"
__all__ = [
    "CallableLM",
    "CausalLM",
    "Completion",
    "MarkovLM",
    "Posterior",
    "choose",
    "completion",
    "reward",
]
