"""Powers of the prior, p0(x)^alpha, approached step by step: the exponent grows while the text does.

The target of :func:`ppl_align.power` is p0(x)^alpha over whole texts. Between the prior and it lie

    psi_t(x_<=t) = p0(x_<=t)^(alpha_t - 1),      alpha_t = 1 + (alpha - 1) min(1, t / tokens)

With alpha_t = alpha from the first token on (``tokens=0``) that is what ``twist="prefix"`` says of a program whose only
factor is a power. A full power says much of a short beginning: what begins badly is given up after a token or two. The
ramp gives a text ``tokens`` tokens to recover (Power-SMC, arXiv:2602.10273). Any ramp leaves E[Zhat] = Z.

A text that has ended counts with alpha_t as well, until the ramp is climbed. With its full power it would stand beside
unfinished texts that have yet to pay for theirs, look improbable, and be lost.

Draw with ``SMC(proposal=at_temperature(1 / alpha))``: once the ramp is climbed, the weight of a token is the normaliser
of p0^alpha, whatever the token is. That is best for the next token, not always for the text: where what is probable as
a whole begins with an improbable token, a temperature between 1/alpha and 1 covers more (``claims/power_sampling.py``).
"""

from __future__ import annotations

import math

from torch import Tensor

from ppl_align.core.errors import InputError, RunError
from ppl_align.core.validation import at_least
from ppl_align.twists.twist import Prefixes, Scene, Twist


class PowerRamp(Twist):
    """``SMC(twist=PowerRamp(alpha))``: log psi_t = (alpha_t - 1) log p0(x_<=t), nats.

    ``alpha``   of the ``power`` in the program
    ``tokens``  after so many tokens alpha_t = alpha; 0: from the first on
    ``site``    the completion it is about; None: every one

    log p0 is that which the text was drawn with: no network is asked. Inside a plate, of all texts of a particle.
    Raises ``InputError`` for an alpha that is negative or not finite."""

    def __init__(self, alpha: float, tokens: int = 16, site: str | None = None) -> None:
        if not (alpha >= 0 and math.isfinite(alpha)):
            raise InputError(f"PowerRamp(alpha): alpha is a finite number, not negative, got {alpha}")
        at_least(0, tokens=tokens)
        self.alpha, self.tokens, self.site = alpha, tokens, site

    by_ids = True  # it reads no prompts and no hidden states
    certain = True  # log psi is -inf only where p0 is 0

    def __repr__(self) -> str:
        site = "" if self.site is None else f", site={self.site!r}"
        return f"PowerRamp({self.alpha:g}, tokens={self.tokens}{site})"

    def at(self, scene: Scene) -> Twist | None:
        return self if self.site is None or self.site == scene.site.name else None

    def exponent(self, t: int) -> float:
        """alpha_t, after t tokens."""
        return 1.0 + (self.alpha - 1.0) * (min(1.0, t / self.tokens) if self.tokens else 1.0)

    def prefix(self, prefixes: Prefixes) -> Tensor:
        return (self.exponent(prefixes.tokens.shape[-1]) - 1.0) * _log_prior(prefixes)

    def ended(self, prefixes: Prefixes) -> Tensor | None:
        """(alpha_t - alpha) log p0(x): of the power that the program counts, what the ramp has not reached."""
        missing = self.exponent(prefixes.tokens.shape[-1]) - self.alpha
        return missing * _log_prior(prefixes) if missing else None


def _log_prior(prefixes: Prefixes) -> Tensor:
    if prefixes.log_prior is None:
        raise RunError("PowerRamp: these prefixes do not know log p0 of what was drawn")
    return prefixes.log_prior


__all__ = ["PowerRamp"]
