"""Markov kernels over whole programs: moves that leave the posterior as it is."""

from ppl_align.kernels.cuts import Cuts, EntropyJumps, SentenceEnds, Uniform, WordStarts
from ppl_align.kernels.cycle import Cycle
from ppl_align.kernels.independence import IndependenceMH
from ppl_align.kernels.infill import InfillMH
from ppl_align.kernels.kernel import Kernel, Move
from ppl_align.kernels.proposals import at_temperature
from ppl_align.kernels.suffix import BlockSuffixMH, SuffixMH

__all__ = [
    "BlockSuffixMH",
    "Cuts",
    "Cycle",
    "EntropyJumps",
    "IndependenceMH",
    "InfillMH",
    "Kernel",
    "Move",
    "SentenceEnds",
    "SuffixMH",
    "Uniform",
    "WordStarts",
    "at_temperature",
]
