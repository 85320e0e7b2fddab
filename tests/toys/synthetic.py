"""Posteriors made by hand: draws of a toy LM, weighed by a reward whose exact answers are known by enumeration."""

from __future__ import annotations

import itertools
import math
from functools import cache

import torch
from torch import Tensor

from ppl_align.core.cost import Cost
from ppl_align.lm import CallableLM
from ppl_align.lm.completions import Completion
from ppl_align.posterior import Posterior

WORDS = ["<eos>", " good", " bad", " dull", " film"]
LENGTH = 4
SCALE = 0.8  # nats per unit of reward: beta = 1.25
TABLE = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [0.5, 0.2, 0.1, 0.6, 1.0],
        [0.1, -0.4, 0.9, 0.2, 0.3],
        [0.7, 0.3, 0.2, -0.5, 0.0],
        [0.2, 0.4, 0.8, 0.1, -1.0],
    ]
)


def make_lm() -> CallableLM:
    return CallableLM(5, lambda prefix: TABLE[prefix[:, -1]], eos_id=0, tokens=WORDS, name="toy")


def praise(tokens: Tensor) -> Tensor:
    """+1 per "good", -0.5 per "bad": [..., T] -> [...]."""
    return (tokens == 1).sum(-1).double() - 0.5 * (tokens == 2).sum(-1).double()


def support() -> Tensor:
    """Every sequence of the toy: ended by EOS and padded with it, or of full length."""
    rows = set()
    for row in itertools.product(range(5), repeat=LENGTH):
        end = row.index(0) if 0 in row else LENGTH
        rows.add(row[:end] + (0,) * (LENGTH - end))
    return torch.tensor(sorted(rows))


@cache
def law(*lean: float) -> tuple[Tensor, Tensor]:
    """Every sequence [S, T] and its log-probability [S] under the toy with ``lean`` added to its logits (default: p0).

    Sampling from this list is sampling from the LM, and a thousand times faster."""
    shift = torch.tensor(lean or (0.0,) * 5)
    lm = CallableLM(5, lambda prefix: TABLE[prefix[:, -1]] + shift, eos_id=0, tokens=WORDS, name="toy")
    sequences = support()
    log_prob = lm.completion(" film", LENGTH).log_prob(sequences).double()
    return sequences, log_prob - log_prob.logsumexp(0)  # normalised in float64; it is 1 to float32 already


def sample(seed: int, shape: tuple[int, int], *lean: float) -> tuple[Tensor, Tensor]:
    """Indices into ``support()`` [R, N], and their log q."""
    log_q = law(*lean)[1]
    generator = torch.Generator().manual_seed(seed)
    index = torch.multinomial(log_q.exp(), shape[0] * shape[1], True, generator=generator).reshape(shape)
    return index, log_q[index]


def weigh(engine: str, index: Tensor, log_q: Tensor | None, scale: float, **options: object) -> Posterior:
    """A posterior of draws [R, N] (indices into ``support()``) from q; without q, give ``log_weight=``."""
    sequences, log_p0 = law()
    tokens, log_prior = sequences[index], log_p0[index]
    r = praise(tokens)
    log_weight = options.pop("log_weight", None)
    if log_weight is None:
        assert log_q is not None
        log_weight = log_prior + scale * r - log_q
    defaults = {
        "config": {"num_particles": index.shape[1], "num_replicates": index.shape[0]},
        "model": "praise",
        "lm": "toy",
        "cost": Cost(lm_tokens=2000, lm_forwards=LENGTH, reward_calls=index.numel(), seconds=0.25),
        "log_proposal": log_q,
    }
    return Posterior(
        engine,
        log_weight,
        {"review": Completion(tokens, make_lm().completion(" film", LENGTH).expand(index.shape))},
        rewards={"praise": r},
        scales={"praise": scale},
        factors={"praise": scale * r},
        log_prior={"review": log_prior},
        **(defaults | options),  # type: ignore[arg-type]
    )


def exact(scale: float = SCALE) -> Posterior:
    sequences, log_p0 = law()
    joint = log_p0 + scale * praise(sequences) + math.log(len(sequences))
    return weigh("exact", torch.arange(len(sequences))[None], None, scale, log_weight=joint[None], kind="enumeration")


def importance(seed: int = 0, replicates: int = 4, particles: int = 64, scale: float = SCALE) -> Posterior:
    index, log_q = sample(seed, (replicates, particles))
    return weigh("importance", index, log_q, scale, seed=seed)


def smc(seed: int = 0, replicates: int = 6, particles: int = 64, scale: float = SCALE) -> Posterior:
    """Importance sampling, resampled once at its end: the smallest run whose particles are not independent."""
    index, _ = sample(seed + 1000, (replicates, particles))
    log_weight = scale * praise(law()[0][index])
    generator = torch.Generator().manual_seed(seed)
    ancestors = torch.multinomial(log_weight.softmax(-1), particles, True, generator=generator)
    log_evidence = log_weight.logsumexp(-1) - math.log(particles)
    history = {
        "step": torch.tensor([LENGTH]),
        "ess": (1 / (log_weight.softmax(-1) ** 2).sum(-1))[None],
        "resampled": torch.ones(1, replicates, dtype=torch.bool),
        "log_evidence_increment": log_evidence[None],
        "ancestors": ancestors[None],
        "lineage": ancestors,
    }
    even = log_evidence[:, None].expand(-1, particles).clone()
    options = {"log_weight": even, "kind": "resampled", "history": history, "seed": seed}
    return weigh("smc", index.gather(1, ancestors), None, scale, **options)


LEAN = (0.0, 1.0, -0.5, 0.0, 0.0)


def svi(seed: int = 0, replicates: int = 4, particles: int = 64, scale: float = SCALE) -> Posterior:
    """A guide that leans towards "good"."""
    index, log_q = sample(seed, (replicates, particles), *LEAN)
    return weigh("svi", index, log_q, scale, history={"loss": torch.linspace(0.5, -1.0, 30)}, seed=seed, steered=True)
