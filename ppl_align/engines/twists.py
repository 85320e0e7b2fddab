"""Twists: what an unfinished completion is expected to be worth.

A twist psi_t(x_<=t) stands in for the true potential while a completion is being written (Zhao et al. 2024,
arXiv:2404.17546). Any finite twist leaves E[Zhat] = Z; the best one, log psi_t = log E_p0[w | x_<=t], the *soft
value*, leaves no variance at all when it also proposes the tokens.

Where a program has a hard constraint c and rewards r, that is a sum of two terms,

    log E_p0[1[c] e^r | x_<=t] = log P_p0(c | x_<=t) + log E_p0[e^r | c, x_<=t],

so a twist may have two parts: what looks ahead to the constraint stands for the first, a judgement of the text so far
(or a function) for the second. Either may be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_align.core.errors import InputError, RunError
from ppl_align.engines.base import one_of
from ppl_align.engines.lookahead import LookAhead
from ppl_align.lm.base import Ids


class Prefixes(NamedTuple):
    """What a twist sees: m unfinished completions of one site.

    ``site``     the name of the completion
    ``tokens``   [m, t] ids so far ([m, plates..., t] inside a plate)
    ``prompts``  the prompt ids of each
    ``values``   upstream latents and completions by name, [m, ...]
    ``log_potential``  [m] what the factors before this site said, nats
    """

    site: str
    tokens: Tensor
    prompts: list[Ids]
    values: dict[str, Tensor]
    log_potential: Tensor


Twist = Callable[[Prefixes], Tensor]
"""``Prefixes -> log psi [m]``, nats: what the rest of the program is expected to add to ``log_potential``."""


class TwistParts(NamedTuple):
    """``soft``: ``"prefix"``, a function, or None. ``ahead``: ``"lookahead"``, a ``LookAhead`` made before, or None."""

    soft: str | Twist | None
    ahead: str | LookAhead | None


def parts_of_twist(twist: Any) -> TwistParts:
    """What ``SMC(twist=)`` was given, alone or as a pair. Raises ``InputError`` for anything that is no twist."""
    given = list(twist) if isinstance(twist, (tuple, list)) else [twist]
    for part in given:
        if isinstance(part, str) or (part is None and len(given) == 1):
            one_of("twist", part, [None, "prefix", "lookahead"])
        elif not callable(part) and not isinstance(part, LookAhead):
            raise InputError(
                f'twist must be None, "prefix", "lookahead", a function of Prefixes that returns [m] nats, or a pair '
                f'such as ("prefix", "lookahead"), got {type(part).__name__}'
            )
    ahead = [part for part in given if part == "lookahead" or isinstance(part, LookAhead)]
    soft = [part for part in given if part not in ahead and part is not None]
    if len(soft) > 1 or len(ahead) > 1:
        raise InputError(
            'a pair of twists is one judgement of the text so far ("prefix" or a function) and one that looks ahead '
            '("lookahead" or a LookAhead)'
        )
    return TwistParts(next(iter(soft), None), next(iter(ahead), None))


def evaluate_twist(twist: Twist, prefixes: Prefixes) -> Tensor:
    """``log psi [m]``, float64 on the CPU; raises ``RunError`` for a wrong shape, NaN or +inf."""
    size = len(prefixes.log_potential)
    log_psi = torch.as_tensor(twist(prefixes)).detach().to("cpu", torch.float64)
    if log_psi.shape != (size,):
        raise RunError(f"the twist returned shape {list(log_psi.shape)} for {size} prefixes: it must be [{size}]")
    if bool((log_psi.isnan() | (log_psi == torch.inf)).any()):
        raise RunError(f"the twist returned NaN or +inf for a prefix of {prefixes.site!r}: it must be below +inf")
    return log_psi
