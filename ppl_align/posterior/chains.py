"""What Markov chains tell of themselves: ordered draws, judged by how chains differ and how states repeat each other.

By ArviZ, over whole chains in their order (Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, arXiv:1903.08008), of
each reward, each latent, log p0 and the length. Their rule, and the one of the verdict: at least four chains, R-hat of
at most 1.01, and at least 400 effective draws of bulk and tails, all chains together; of fewer neither R-hat nor the
effective sample size itself can be told. All of it sees only what chains have visited: those that began alike may all
be in one mode, with an R-hat of 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from ppl_align.core.arviz_adapter import ChainStats, chain_stats
from ppl_align.core.estimate import Estimate
from ppl_align.posterior.estimates import functionals, mean_of, numbers_of_sites
from ppl_align.posterior.once import once
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.table import identity

MIXED_RHAT = 1.01
ENOUGH_EFFECTIVE = 400.0
MOST_ELEMENTS = 16
"""Of a latent that is a vector: each of them is a number of its own, and of longer ones none is."""
SURPRISING = 1e-3


class ChainNumber(NamedTuple):
    """One number along chains: ``values`` [chains, states], their mean and its Monte Carlo error, what ArviZ says."""

    values: Tensor
    mean: Estimate
    stats: ChainStats

    @property
    def effective(self) -> float:
        """The fewer of bulk and tail; NaN where neither can be told."""
        return min(self.stats.bulk, self.stats.tail) if not math.isnan(self.stats.bulk) else math.nan


@once
def chain_numbers(run: Posterior) -> dict[str, ChainNumber]:
    """By name: rewards and latents (elements of a short vector are ``z[0]``, ``z[1]``...), log p0, and lengths that
    vary. Empty for what is no run of Markov chains."""
    if not run.kind.is_ordered:
        return {}
    found = {}
    for name, values in _watched(run).items():
        finite = bool(values.isfinite().all())
        nan = ChainStats(*[math.nan] * len(ChainStats._fields))
        found[name] = ChainNumber(values, mean_of(run, values), chain_stats(values.numpy()) if finite else nan)
    return found


def _watched(run: Posterior) -> dict[str, Tensor]:
    sites = numbers_of_sites(run)
    for name, value in run.latents.items():
        each = value.reshape(*run.log_weight.shape, -1).double()
        if name not in sites and each.shape[-1] <= MOST_ELEMENTS:
            sites |= {f"{name}[{i}]": each[..., i] for i in range(each.shape[-1])}
    ours = {name: value for name, value in functionals(run).items() if name.startswith(("log_prior", "length"))}
    ours = {name: value for name, value in ours.items() if name not in run.columns.values()}
    return sites | {name: v for name, v in ours.items() if name == "log_prior" or bool((v != v[0, 0]).any())}


@once
def effective_draws(run: Posterior) -> float:
    """What the states of Markov chains are worth: fewer draws than there are states, since they resemble each other.

    Bulk ESS, all chains together, of the number that moves slowest; one a chain where none can be told."""
    known = [number.stats.bulk for number in chain_numbers(run).values() if not math.isnan(number.stats.bulk)]
    return min(known, default=float(len(run.log_weight)))


def slowest(run: Posterior) -> tuple[str, float] | None:
    """The number with the fewest effective draws of bulk or tails; None where none can be told."""
    known = {name: n.effective for name, n in chain_numbers(run).items() if not math.isnan(n.effective)}
    return min(known.items(), key=lambda item: item[1], default=None)


def furthest_apart(run: Posterior) -> tuple[str, float] | None:
    """The number with the largest R-hat; None where none can be told."""
    known = {name: n.stats.rhat for name, n in chain_numbers(run).items() if not math.isnan(n.stats.rhat)}
    return max(known.items(), key=lambda item: item[1], default=None)


@once
def changes(run: Posterior) -> Tensor:
    """bool [chains, states - 1]: does a state differ from the one before it, in its texts or latents?"""
    ids = torch.as_tensor(identity(run)).reshape(run.log_weight.shape)
    return ids[:, 1:] != ids[:, :-1]


@once
def stuck_chains(run: Posterior) -> int:
    """Chains that have never moved, where that is no chance; 0 for what is no run of Markov chains.

    A chain of N states whose steps change a share a of them stays where it is with probability (1 - a)^(N - 1). More
    than that, once in a thousand runs, is no chance; nor is it if none has moved at all."""
    if not run.kind.is_ordered or run.log_weight.shape[1] < 2:
        return 0
    moved = changes(run)
    still = int((~moved.any(-1)).sum())
    stays = (1 - float(moved.double().mean())) ** moved.shape[1]
    chance = float(stats.binom.sf(still - 1, len(moved), stays))
    return still if still == len(moved) or chance < SURPRISING else 0


def accepted_after_warmup(run: Posterior) -> Tensor | None:
    """bool [moves, chains] of moves from the first that counts on; None where none were recorded."""
    return after_warmup(run, "accepted")


def after_warmup(run: Posterior, name: str) -> Tensor | None:
    """``history[name]`` [moves, chains] without the moves of the warm-up; None where there is none."""
    moves = run.history.get(name)
    return None if moves is None else torch.as_tensor(moves)[num_warmup_moves(run) :]


def num_warmup_moves(run: Posterior) -> int:
    """Moves before the first state that counts: each step makes equally many."""
    moves, warmup = len(run.history["accepted"]), int(run.history.get("num_warmup", 0))
    steps = warmup + run.log_weight.shape[1] * int(run.config.get("thinning", 1))
    return warmup * moves // steps


@once
def acceptance(run: Posterior) -> float | None:
    """Share of moves that were accepted after the warm-up, those that had nothing to move left out; of a run that
    recorded none, None."""
    accepted, cut = accepted_after_warmup(run), after_warmup(run, "cut")
    if not run.kind.is_ordered or accepted is None:
        return None
    tried = torch.ones_like(accepted, dtype=torch.bool) if cut is None else cut >= 0
    return float(accepted[tried].double().mean()) if bool(tried.any()) else None


def acceptance_by_state(run: Posterior) -> Tensor | None:
    """Share [chains, states] of the moves from one state to the next that were accepted, NaN where nothing could be
    moved; None for a run that recorded none."""
    accepted, cut = accepted_after_warmup(run), after_warmup(run, "cut")
    states = run.log_weight.shape[1]
    if not run.kind.is_ordered or accepted is None or len(accepted) % states:
        return None
    tried = torch.ones_like(accepted, dtype=torch.bool) if cut is None else cut >= 0
    each = [part.double().reshape(states, -1, accepted.shape[1]).sum(1) for part in (accepted & tried, tried)]
    return (each[0] / each[1]).T


def chain_settings(run: Posterior) -> tuple[str, str]:
    """What its engine calls the number of chains, and that of the states of each."""
    return (
        "num_chains" if "num_chains" in run.config else "num_replicates",
        "num_samples" if "num_samples" in run.config else "num_particles",
    )
