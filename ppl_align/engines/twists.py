"""Twists: what an unfinished completion is expected to be worth.

A twist psi_t(x_<=t) stands in for the true potential while a completion is being written (Zhao et al. 2024,
arXiv:2404.17546). Any finite twist leaves E[Zhat] = Z; the best one, log psi_t = log E_p0[w | x_<=t], the *soft
value*, leaves no variance at all when it also proposes the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_align.engines.base import one_of
from ppl_align.engines.lookahead import LookAhead
from ppl_align.errors import InputError, RunError
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


def check_twist(twist: Any) -> None:
    """Raises ``InputError`` unless it is None, ``"prefix"``, ``"lookahead"`` or a function."""
    if isinstance(twist, str) or twist is None:
        one_of("twist", twist, [None, "prefix", "lookahead"])
    elif not callable(twist) and not isinstance(twist, LookAhead):
        raise InputError(
            f'twist must be None, "prefix", "lookahead" or a function of Prefixes that returns [m] nats, '
            f"got {type(twist).__name__}"
        )


def evaluate_twist(twist: Twist, prefixes: Prefixes) -> Tensor:
    """``log psi [m]``, float64 on the CPU; raises ``RunError`` for a wrong shape, NaN or +inf."""
    size = len(prefixes.log_potential)
    log_psi = torch.as_tensor(twist(prefixes)).detach().to("cpu", torch.float64)
    if log_psi.shape != (size,):
        raise RunError(f"the twist returned shape {list(log_psi.shape)} for {size} prefixes: it must be [{size}]")
    if bool((log_psi.isnan() | (log_psi == torch.inf)).any()):
        raise RunError(f"the twist returned NaN or +inf for a prefix of {prefixes.site!r}: it must be below +inf")
    return log_psi
