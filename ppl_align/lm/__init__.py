"""Priors: language models, and completions of a prompt as a Pyro distribution."""

from ppl_align.lm.base import LM
from ppl_align.lm.causal import CausalLM
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.mixture import Mixture
from ppl_align.lm.product import Product
from ppl_align.lm.prompted import Prompted
from ppl_align.lm.toys import CallableLM, MarkovLM

__all__ = ["LM", "CallableLM", "CausalLM", "CompletionDistribution", "MarkovLM", "Mixture", "Product", "Prompted"]
