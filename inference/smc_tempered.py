"""SMC that draws from a sharper model than it weighs: a proposal of your own.

A proposal is a function of the prefixes, `Rows -> log_q [rows, V]`; here each token from p^2, renormalised. For a
power prior, p(text)^2, the weight of a token is then the normaliser alone. Weights put right whatever a proposal does,
as long as it can write all that the model can.
"""

from torch import Tensor

from ppl_align import SMC
from ppl_align.lm.decoding import Rows


def tempered(rows: Rows) -> Tensor:
    """log q [rows, V]: each token at half the temperature of the declared prior."""
    return (2 * rows.log_probs).log_softmax(-1)


engine = SMC(num_particles=128, num_replicates=4, twist="prefix", every=1, proposal=tempered)
