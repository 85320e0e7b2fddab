"""Token proposals made of the prior itself."""

from __future__ import annotations

from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.lm.decoding import Rows


class at_temperature:
    """``proposal=at_temperature(0.25)``: q(v | x_<t) in proportion to p0(v | x_<t)^(1 / T).

    For a target p0(x)^alpha the temperature 1/alpha is the one at which the next token of a text varies least in weight
    (Power-SMC, arXiv:2602.10273). Tokens that the prior cannot write stay out of it."""

    def __init__(self, temperature: float) -> None:
        if not temperature > 0:
            raise InputError(f"at_temperature(T): T must be above zero, got {temperature}")
        self.temperature = temperature

    def __repr__(self) -> str:
        return f"at_temperature({self.temperature:g})"

    def __call__(self, rows: Rows) -> Tensor:
        return (rows.log_probs / self.temperature).log_softmax(-1)
