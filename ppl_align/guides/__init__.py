"""Trainable proposals: tables, a head on the last hidden state, LoRA adapters, or a program of the user's own."""

from ppl_align.guides.auto import AutoGuide
from ppl_align.guides.program import ProgramGuide
from ppl_align.guides.saving import load_guide
from ppl_align.guides.tokens import TokenGuide

__all__ = ["AutoGuide", "ProgramGuide", "TokenGuide", "load_guide"]
