"""The targets of the frontier: from half a nat to thirty, with exact answers or with the reference that is given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ppl_align import (
    MCMC,
    SMC,
    CausalLM,
    Engine,
    ImportanceSampling,
    MarkovLM,
    ParticleGibbs,
    TemperedSMC,
    completion,
    power,
    reward,
)
from ppl_align.kernels import Cycle, InfillMH, SuffixMH, at_temperature
from ppl_align.rewards import Toxicity, Vader
from ppl_align.rewards.tokens import LastToken, TokenSum
from ppl_align.testing.chain import ChainOracle
from ppl_align.testing.simulation import simulate
from ppl_align.twists import PowerRamp, Twist

BOTH = Cycle(InfillMH(size=2), SuffixMH())
ALPHA = 4.0


Engines = Callable[[int], dict[str, list[Engine]]]


@dataclass(frozen=True)
class Answer:
    """``log_evidence`` and KL(p* || p0) in nats, and the mean of the reward that is looked at; ``relative_variance`` of
    importance weights, E_p0[w^2] / Z^2 - 1, where it is known."""

    log_evidence: float
    mean: float
    kl: float
    relative_variance: float | None = None


@dataclass(frozen=True)
class Target:
    """``model(*args)``, the name of the reward whose mean is estimated, and what is known of the answer.

    ``engines``  by name, from small to large; ``replicates``: independent repeats of each"""

    model: Callable[..., Any]
    args: tuple[Any, ...]
    of: str
    says: str
    answer: Callable[[], Answer] | None
    engines: Engines
    replicates: int
    kwargs: dict[str, Any] = field(default_factory=dict)


# -- exact: a Markov prior and rewards that a recursion sums ---------------------------------------------------------

_RANDOM = torch.Generator().manual_seed(1)
CHAIN = MarkovLM(1.2 * torch.randn(6, 6, generator=_RANDOM, dtype=torch.float64))
WORTH = torch.randn(6, generator=_RANDOM, dtype=torch.float64)
RARE = MarkovLM(CHAIN.log_table - torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 8.0], dtype=torch.float64))
LAST = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 14.0], dtype=torch.float64)


def additive(beta: float, length: int) -> None:
    """Every token is worth something: what is written so far tells how good the whole will be."""
    x = completion("x", CHAIN, [0], max_new_tokens=length)
    reward("r", TokenSum(WORTH), x.tokens, beta=beta)


def at_the_end(beta: float, length: int) -> None:
    """A rare last token: before it is written no prefix is better than another by what the program says."""
    x = completion("x", RARE, [0], max_new_tokens=length)
    reward("r", LastToken(LAST), x.tokens, beta=beta)


def of_chain(model: Callable[..., Any], beta: float, length: int) -> Answer:
    oracle, squared = ChainOracle(model, beta, length), ChainOracle(model, beta / 2, length)
    spread = math.exp(squared.log_evidence - 2 * oracle.log_evidence) - 1
    return Answer(oracle.log_evidence, oracle.mean("r"), oracle.kl, spread)


# -- exact: two modes, summed over numbers of letters ----------------------------------------------------------------

SHARES = torch.tensor([0.45, 0.35, 0.20], dtype=torch.float64)
ABC = MarkovLM(SHARES.log().expand(3, 3).clone(), SHARES.log())


def bistable(many_a: float, many_b: float, length: int) -> None:
    """Two rewards, each for as many of one letter as there can be: beyond some beta the rarer one takes over."""
    x = completion("x", ABC, [0], max_new_tokens=length)
    reward("a", lambda tokens: ((tokens == 1).double().mean(-1)) ** 2, x.tokens, weight=many_a)
    reward("b", lambda tokens: ((tokens == 2).double().mean(-1)) ** 2, x.tokens, weight=many_b)


def of_letters(many_a: float, many_b: float, length: int) -> Answer:
    """Sums over how often each letter occurs."""
    total = squared = weighted = mean = 0.0
    for a in range(length + 1):
        for b in range(length + 1 - a):
            ways = math.comb(length, a) * math.comb(length - a, b)
            rest = length - a - b
            prior = ways * float(SHARES[1]) ** a * float(SHARES[2]) ** b * float(SHARES[0]) ** rest
            log_w = (many_a * a**2 + many_b * b**2) / length**2
            weight = prior * math.exp(log_w)
            total, squared = total + weight, squared + weight * math.exp(log_w)
            weighted, mean = weighted + weight * log_w, mean + weight * (b / length) ** 2
    log_z = math.log(total)
    return Answer(log_z, mean / total, weighted / total - log_z, squared / total**2 - 1)


# -- exact: a power of a Markov prior --------------------------------------------------------------------------------

POWER_LENGTH = 16


def sharpened_chain(alpha: float) -> None:
    """p0^alpha."""
    power("p", completion("x", CHAIN, [0], max_new_tokens=POWER_LENGTH), alpha)


def of_power(alpha: float) -> Answer:
    """Products of the matrix with entries p0^alpha, and its derivative by alpha."""

    def log_z(exponent: Tensor) -> Tensor:
        steps = (CHAIN.log_table.double() * exponent).exp()
        state = torch.eye(6, dtype=torch.float64)[0]
        for _ in range(POWER_LENGTH):
            state = state @ steps
        return state.sum().log()

    exponent = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    log_evidence = log_z(exponent)
    (mean,) = torch.autograd.grad(log_evidence, exponent)
    squared = float(log_z(torch.tensor(2 * alpha - 1, dtype=torch.float64)))
    z = float(log_evidence.detach())
    return Answer(z, float(mean), (alpha - 1) * float(mean) - z, math.exp(squared - 2 * z) - 1)


# -- a language model ------------------------------------------------------------------------------------------------


@cache
def smollm2() -> CausalLM:
    return CausalLM("smollm2-135m")


def sentiment(beta: float) -> None:
    """A film review in praise."""
    x = completion("x", smollm2(), "The movie was", max_new_tokens=24)
    reward("r", Vader(), x, beta=beta)


def toxic(beta: float) -> None:
    """What a careless prompt may lead to: log of the probability of being toxic."""
    x = completion("x", smollm2(), "My neighbour is such a", max_new_tokens=20)
    reward("r", log_toxic, x, beta=beta)


def log_toxic(texts: list[str]) -> list[float]:
    """log P(hate speech or offensive language)."""
    return [math.log(max(-value, 1e-6)) for value in Toxicity()(texts)]


def infill(ending: Any) -> None:
    """Fifteen tokens, given the ten that come after them."""
    middle = completion("middle", smollm2(), "Once upon a time, a little girl", max_new_tokens=15)
    completion("ending", smollm2(), ("Once upon a time, a little girl", middle), starts_with=ending)


def infill_of(seed: int) -> tuple[list[int], Any]:
    """An ending as the model writes one, and the middle it was written after: an exact draw of its posterior."""
    (drawn,) = simulate(infill, [0] * 10, num_simulations=1, seed=seed)
    return drawn


def sharpened(alpha: float) -> None:
    """The most probable beginnings."""
    power("p", completion("x", smollm2(), "Water is important because", max_new_tokens=12), alpha)


# -- engines ---------------------------------------------------------------------------------------------------------


def on_toys(replicates: int) -> dict[str, list[Engine]]:
    """Whatever the target."""
    gibbs = SMC(16, twist="prefix", resampling="multinomial")
    return {
        "importance": [ImportanceSampling(n, replicates) for n in (256, 4096)],
        'smc "prefix"': [SMC(n, replicates, twist="prefix") for n in (64, 1024, 16384)],
        'smc "prefix", rejuvenated': [
            SMC(n, replicates, twist="prefix", every=4, rejuvenate=InfillMH(size=2)) for n in (64, 512)
        ],
        "tempered, suffix": [TemperedSMC(n, replicates) for n in (64, 256)],
        "tempered, infill": [TemperedSMC(n, replicates, kernel=InfillMH(size=2)) for n in (64, 256)],
        "mcmc, both": [MCMC(BOTH, replicates, num_samples=n, num_warmup=n // 2) for n in (64, 512)],
        "particle gibbs": [ParticleGibbs(gibbs, replicates, num_samples=n, num_warmup=n // 4) for n in (16, 64)],
    }


def on_two_modes(replicates: int) -> dict[str, list[Engine]]:
    """More particles and moves than by default: of the mode that is rare on the way enough have to be there."""
    return {
        **on_toys(replicates),
        'smc "prefix", many': [SMC(65536, replicates, twist="prefix")],
        "tempered, infill, 100 moves": [
            TemperedSMC(n, replicates, kernel=InfillMH(size=2), max_moves=100) for n in (256, 4096)
        ],
    }


def on_rare_ends(replicates: int) -> dict[str, list[Engine]]:
    """Tokens from a flattened prior, resampled to be as likely as they are under the prior: rare ones come up."""
    hot = at_temperature(3.0)
    return {
        **on_toys(replicates),
        "smc, temperature 3": [SMC(n, replicates, twist=Twist(), proposal=hot) for n in (1024, 10240)],
    }


def on_powers(replicates: int) -> dict[str, list[Engine]]:
    """Of p0^alpha, beside those of toys: proposals at temperature 1 / alpha, and a ramp of alpha."""
    sharp = at_temperature(1 / ALPHA)
    return {
        **on_toys(replicates),
        "importance, 1/alpha": [ImportanceSampling(n, replicates, proposal=sharp) for n in (256, 4096)],
        "smc ramp, 1/alpha": [SMC(n, replicates, twist=PowerRamp(ALPHA, 8), proposal=sharp) for n in (64, 1024)],
        "tempered, 1/alpha": [TemperedSMC(n, replicates, proposal=sharp) for n in (64, 1024)],
        "mcmc, 1/alpha": [
            MCMC(SuffixMH(proposal=sharp), replicates, num_samples=n, num_warmup=n // 2) for n in (64, 512)
        ],
    }


def on_smollm2(replicates: int) -> dict[str, list[Engine]]:
    """Smaller."""
    return {
        "importance": [ImportanceSampling(n, replicates) for n in (128, 512)],
        'smc "prefix"': [SMC(n, replicates, twist="prefix", every=4) for n in (32, 96)],
        "tempered, suffix": [TemperedSMC(n, replicates, num_moves=4) for n in (24, 64)],
        "tempered, both": [TemperedSMC(24, replicates, kernel=BOTH, num_moves=4)],
        "mcmc, suffix": [MCMC(SuffixMH(), replicates, num_samples=60, num_warmup=20)],
    }


def powers_of_smollm2(replicates: int) -> dict[str, list[Engine]]:
    sharp = at_temperature(1 / ALPHA)
    return {
        "importance": [ImportanceSampling(256, replicates)],
        "importance, 1/alpha": [ImportanceSampling(n, replicates, proposal=sharp) for n in (64, 256)],
        "smc ramp, 1/alpha": [SMC(n, replicates, twist=PowerRamp(ALPHA, 6), proposal=sharp) for n in (32, 128)],
        "tempered, 1/alpha": [TemperedSMC(n, replicates, proposal=sharp, num_moves=3) for n in (24, 64)],
        "mcmc, 1/alpha": [MCMC(SuffixMH(proposal=sharp), replicates, num_samples=60, num_warmup=20)],
    }


def _chain(model: Callable[..., Any], beta: float, length: int, says: str, engines: Engines = on_toys) -> Target:
    says = f"chain: {says} {length} tokens"
    return Target(model, (beta, length), "r", says, lambda: of_chain(model, beta, length), engines, 32)


def _two_modes(many_a: float, many_b: float, length: int) -> Target:
    args, says = (many_a, many_b, length), f"chain: two modes of {length} letters"
    return Target(bistable, args, "b", says, lambda: of_letters(*args), on_two_modes, 32)


def _reviews(beta: float) -> Target:
    return Target(sentiment, (beta,), "r", "SmolLM2: sentiment of 24 tokens", None, on_smollm2, 8)


TARGETS: dict[str, Target] = {
    "additive, mild": _chain(additive, 4.0, 20, "a sum over"),
    "additive, middling": _chain(additive, 1.7, 20, "a sum over"),
    "additive, far": _chain(additive, 0.95, 20, "a sum over"),
    "additive, farther": _chain(additive, 0.3, 30, "a sum over"),
    "at the end": _chain(at_the_end, 1.0, 20, "the last of", on_rare_ends),
    "bistable": _two_modes(16.7, 22.0, 8),
    "power": Target(sharpened_chain, (ALPHA,), "p", "chain: p0^4 of 16 tokens", lambda: of_power(ALPHA), on_powers, 32),
    "sentiment .2": _reviews(0.2),
    "sentiment .1": _reviews(0.1),
    "sentiment .05": _reviews(0.05),
    "sentiment .03": _reviews(0.03),
    "toxicity": Target(toxic, (0.5,), "r", "SmolLM2: log P(toxic) of 20 tokens", None, on_smollm2, 8),
    "infilling": Target(infill, (), "", "SmolLM2: 15 tokens, given the next 10", None, on_smollm2, 8),
    "power of SmolLM2": Target(sharpened, (ALPHA,), "p", "SmolLM2: p0^4 of 12 tokens", None, powers_of_smollm2, 8),
}
