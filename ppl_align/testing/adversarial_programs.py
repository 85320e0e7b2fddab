"""Adversarial programs: each makes some diagnostic look better, or mean something else, than one would think.

Ordinary programs over toy language models, small enough for ``Enumeration``: a diagnostic can be shown what it missed.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_align.lm import MarkovLM
from ppl_align.lm.completions import Completion
from ppl_align.program import completion, reward

DIGITS = MarkovLM(torch.zeros(10, 10, dtype=torch.float64), torch.zeros(10, dtype=torch.float64), name="digits")
"""Four uniform digits: ten thousand equally probable completions."""
PLACES = torch.tensor([1000, 100, 10, 1])
MODE = 7777  # the number that hidden_mode hides
SLOPE = 0.5  # nats from 0000 to 9999 in hidden_mode: weights that vary a little, as they do in practice
SHAPE = 0.9  # of the tail of the weights in heavy_tail

CHOICE = MarkovLM(
    torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), tokens=["safe", "risky"], name="choice"
)

_MAYBE, _END = [0.4, 0.0, 0.0, 0.6], [0.0, 0.0, 0.0, 1.0]
SPELLINGS = MarkovLM(
    torch.tensor([[_MAYBE, _END, _END, _END], [_MAYBE, _END, _END, _END], 4 * [_END]], dtype=torch.float64).log(),
    torch.tensor([0.4, 0.25, 0.35, 0.0], dtype=torch.float64).log(),
    eos_id=3,
    tokens=["a", "aa", "b", ""],
    name="spellings",
)
"""After a first "a" another one follows with probability .4; after anything else, the end."""


def numbers(tokens: Tensor) -> Tensor:
    """Digits ``[..., t]`` as the number they spell; of a prefix, the smallest that begins like this."""
    return (tokens * PLACES[: tokens.shape[-1]]).sum(-1)


def fraction(tokens: Tensor) -> Tensor:
    """The same number as a point of the unit interval, never 0 or 1."""
    return (numbers(tokens).double() + 0.5) / 10_000


def _hidden_log_weight() -> float:
    """log(E_p0[w; elsewhere] / 1e-4): with this weight, the hidden mode holds half of the posterior."""
    log_weight = SLOPE * (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    log_weight[MODE] = -torch.inf
    return float(torch.logsumexp(log_weight, 0))


_HIDDEN = _hidden_log_weight()


def hidden_mode() -> Completion:
    """One completion of prior mass 1e-4 holds half of the posterior mass; the rest is smooth.

    The trap: 1000 prior draws miss it with probability (1 - 1e-4)^1000 = .905. ESS (98% of the draws), k-hat (below .5)
    and the spread of log Zhat (below .01) are then perfect, while log Zhat is log 2 = .693 nats too low and every
    expectation is that of the other half. Only draws of the posterior itself would show it.
    """
    x = completion("x", DIGITS, [], max_new_tokens=4)
    reward("r", lambda t: torch.where(numbers(t) == MODE, _HIDDEN, SLOPE * fraction(t)), x.tokens, upper=_HIDDEN)
    return x


def heavy_tail() -> Completion:
    """Weights u^-0.9 of a uniform number u: a Pareto tail of shape .9, cut off at u = 5e-5.

    The trap: the effective sample size. The relative variance of the weights is 161.6 by enumeration, so that 1000
    prior draws are worth 1000 / 162.6 = 6.2; the weights that a run of 1000 has seen say several times as much (40 in
    the median), and the variance that goes with it is too small by as much. k-hat is the one diagnostic that tells:
    about .8, above the .7 up to which importance weights can be used (Vehtari et al., arXiv:1507.02646).
    """
    x = completion("x", DIGITS, [], max_new_tokens=4)
    reward("r", lambda t: -SHAPE * fraction(t).log(), x.tokens, upper=-SHAPE * math.log(5e-5))
    return x


def optimistic_environment() -> Completion:
    """One choice, prior 1/2: safe pays 1; risky pays 4 with probability .1, else 0. beta = 1.

    The trap: conditioning on the pay-off also conditions the coin. It picks risky with .700567; by the posterior
    it then wins with .858486, where the truth is .1; an agent that may choose its action but not its luck (variational
    inference with the environment held fixed) picks risky with .354344 (Levine 2018, arXiv:1805.00909, section 3.2).
    """
    x = completion("x", CHOICE, [], max_new_tokens=1)
    win = pyro.sample("win", dist.Bernoulli(torch.tensor(0.1, dtype=torch.float64)))

    def pay(happened: Tensor) -> Tensor:
        risky, won = happened.unbind(-1)
        return torch.where(risky == 1, 4 * won, 1.0)

    reward("pay", pay, torch.stack([x.tokens[..., 0].double(), win], -1), upper=4.0)
    return x


def duplicate_strings() -> Completion:
    """Different token ids that spell the same text: "aa" is one token, or "a" twice.

    The trap: the most probable ids are those of "b" (.35), the most probable *text* is "aa" (.25 as one token and .16
    as two, .41 together). Whoever counts ids sees four distinct completions, whoever counts texts sees three.
    """
    x = completion("x", SPELLINGS, [], max_new_tokens=3)
    reward("r", lambda texts: [0.0 for _ in texts], x, upper=0.0)
    return x


def all_dead() -> Completion:
    """Every weight is zero: nothing that the prior can write is acceptable, and Z = 0.

    No diagnostic can be computed; an engine must say so (``AllDeadError``) instead of returning what it drew.
    """
    x = completion("x", DIGITS, [], max_new_tokens=1)
    reward("impossible", lambda texts: [-math.inf for _ in texts], x, upper=0.0)
    return x
