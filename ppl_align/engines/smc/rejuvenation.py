"""Rejuvenation: unfinished texts are moved by a kernel, so that copies become different again.

Where t tokens are written, weighted particles stand for

    pi_t(x_1:t) in proportion to p0(x_1:t) exp(psi_t(x_1:t)),

and a move that leaves pi_t as it is leaves E[Zhat] = Z (resample-move: Gilks & Berzuini 2001), if it is made whatever
the particles are. Made where a population has just been resampled, it would not: particles of those populations alone
do not stand for pi_t, and Zhat would be biased by several per cent at N = 4. So all move, at given lengths t; and only
unfinished texts, to unfinished texts: where all have ended nothing more happens, and nothing should. With q what SMC
draws from, W_t = psi_t + log p0 - log q, and r(x) what q gives to the tokens that are kept::

    rate = min(1, exp(W_t(x') - W_t(x)) r(x') / r(x) c(x') / c(x))

as for whole programs (:mod:`ppl_align.kernels`). New tokens are drawn by a second decoding of the same completion, and
the rows of the network at which it stands take the place of those that are left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_align.kernels.kernel import Kernel, PrefixMove, accept
from ppl_align.kernels.place import Place, cut_weights
from ppl_align.lm.completions import Completion
from ppl_align.lm.leaning import Lean
from ppl_align.lm.restriction import Restriction
from ppl_align.particles.particles import Site
from ppl_align.runner.decode import Decode
from ppl_align.runner.runner import Observer

if TYPE_CHECKING:
    from ppl_align.engines.smc.twisted import TwistedSMC


class _LeaningAs(Observer):
    """Draws as SMC does in this completion."""

    def __init__(self, smc: TwistedSMC) -> None:
        self.smc = smc

    def lean(self, site: Site, restriction: Restriction | None) -> Lean | None:
        twist = self.smc.twist
        return twist if twist is not None and twist.proposes else None


def rejuvenate(kernel: Kernel, smc: TwistedSMC, decode: Decode) -> Tensor:
    """Move all particles of a decoding by each move of the kernel; the state of ``smc`` follows.

    Returns the share of the moves that each has accepted, [P]."""
    return torch.stack([_move(move, smc, decode) for move in kernel.on_prefix(decode.t)]).double().mean(0)


def _move(move: PrefixMove, smc: TwistedSMC, decode: Decode) -> Tensor:
    """One move; bool [P]: who has accepted it."""
    place = Place.drawn(cut_weights(move.cuts, _texts(decode), move.window, None))
    running = torch.from_numpy(decode.running_texts)[torch.arange(len(place.text)), place.text]
    possible = place.possible & running
    which = move.which(place) & possible[:, None, None]
    new = _redrawn(smc, decode, ~which)
    everybody = torch.arange(decode.particles.size)
    psi = smc.potential(new, everybody, torch.from_numpy(new.alive))
    total = psi + new.particles.log_ratio + new.log_ratio
    kept = _log_q_of(new, ~which)
    correction = kept - _log_q_of(decode, ~which) - place.log_chosen()
    correction = correction + place.log_chosen(cut_weights(move.cuts, _texts(new), move.window, None))
    fits = possible & kept.isfinite() & _ended_alike(decode, new)
    accepted, _ = accept(smc.state.absorbed, torch.where(fits, total, -torch.inf), correction, 1.0)
    if bool(accepted.any()):
        _replace(smc, decode, accepted, new)
        state = smc.state
        smc.state = replace(
            state,
            psi=torch.where(accepted, psi, state.psi),
            absorbed=torch.where(accepted, total, state.absorbed),
        )
    return accepted


def _redrawn(smc: TwistedSMC, decode: Decode, kept: Tensor) -> Decode:
    """Another decoding of the particles, up to where they are; their tokens ``kept``, bool [P, K, t], are held."""
    new = smc.runner.begin(decode.particles, _LeaningAs(smc))
    tokens = decode.prefix(decode.site.fn.max_new_tokens)
    held = torch.zeros(*kept.shape[:2], tokens.shape[-1], dtype=torch.bool)
    held[..., : kept.shape[-1]] = kept
    new.hold(torch.arange(decode.particles.size), tokens, held)
    new.write_until(decode.t)
    return new


def _replace(smc: TwistedSMC, decode: Decode, accepted: Tensor, new: Decode) -> None:
    """The accepted ones take the places of those that they were made of."""
    where = accepted.nonzero()[:, 0]
    if decode.replace(where, new):
        return
    tokens = decode.prefix(decode.site.fn.max_new_tokens).clone()  # an LM whose rows cannot be joined reads all anew
    there = where.to(tokens.device)
    tokens[there] = new.prefix(tokens.shape[-1])[there]
    again = smc.runner.begin(decode.particles, _LeaningAs(smc))
    again.hold(torch.arange(decode.particles.size), tokens, decode.t)
    again.write_until(decode.t)
    again.population.held, again.population.t = None, decode.t
    decode.population = again.population


def _texts(decode: Decode) -> Completion:
    """What is written, [P, K]."""
    shape = (decode.particles.size, decode.texts)
    return Completion(decode.prefix(decode.t), decode.site.fn).reshape(*shape)


def _log_q_of(decode: Decode, which: Tensor) -> Tensor:
    """log q of these tokens of what is written, bool [P, K, t]: [P] nats."""
    by_token = decode.population.token_log_q[:, : which.shape[-1]].reshape(which.shape).cpu()
    return torch.where(which, by_token, 0.0).sum((-1, -2))


def _ended_alike(one: Decode, other: Decode) -> Tensor:
    """Have the texts as many tokens, and are the same ones still running? bool [P]."""
    same = (one.population.lengths == other.population.lengths) & (one.population.alive == other.population.alive)
    return torch.from_numpy(same.reshape(one.particles.size, -1).all(-1))


__all__ = ["rejuvenate"]
