"""How far each engine is from the distribution that was written down."""

from ppl_align.diagnostics.acceptance import acceptance_by_cut
from ppl_align.diagnostics.advisor import Advice, advise
from ppl_align.diagnostics.comparison import Comparison, compare
from ppl_align.posterior.estimates import Estimate

__all__ = ["Advice", "Comparison", "Estimate", "acceptance_by_cut", "advise", "compare"]
