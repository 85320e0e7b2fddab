"""The checks of :func:`ppl_align.testing.check_engine`, one function each: a case in, a finding out."""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_align.core.cost import Cost
from ppl_align.core.printed import say_z
from ppl_align.lm.completions import Completion, tensor_of
from ppl_align.particles.particles import Particles
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.policy import decision_value
from ppl_align.posterior.prior import drew_from_prior, log_prior
from ppl_align.program import Program
from ppl_align.testing.report import Status
from ppl_align.testing.statistics import (
    MAX_SPREAD,
    evidence_z,
    mean_z,
    probabilities,
    say_p,
    two_sided,
    weighting_test,
    worst,
)

if TYPE_CHECKING:
    from ppl_align.testing.contract import Case

Finding = tuple[Status, str, float | None]
"""``(status, line, p_value)``, see :class:`~ppl_align.testing.report.Result`."""
ROUNDING = 1e-4  # nats: what float32 arithmetic may be off by
EXACTLY = 1e-6
_RESCORED = 1024  # particles; all of them would tell nothing more


def _verdict(complaints: Iterator[str]) -> Finding:
    found = list(complaints)
    if not found:
        return "passed", "", None
    return "failed", found[0] + (f" (and {len(found) - 1} more such)" if len(found) > 1 else ""), None


# -- deterministic ------------------------------------------------------------------------------------------------


def shapes(case: Case) -> Finding:
    """Shapes and names."""
    return _verdict(_shapes(case, case.first.posterior, case.oracle.posterior))


def _shapes(case: Case, posterior: Posterior, exact: Posterior) -> Iterator[str]:
    weight = posterior.log_weight
    if weight.dim() != 2 or weight.dtype != torch.float64:
        yield f"expected log_weight [R, N] of float64, got {list(weight.shape)} of {weight.dtype}"
        return
    if bool((weight.isnan() | weight.isposinf()).any()):
        yield "expected log_weight below +inf, got NaN or +inf"
    shape = list(weight.shape)
    replicates = case.opening[1]
    if not posterior.exact and replicates is not None and shape[0] != replicates:
        yield f"expected {replicates} replicates, got {shape[0]}"
    for what in ("particles", "log_prior", "rewards", "factors", "scales"):
        got, want = getattr(posterior, what), getattr(exact, "particles" if what == "log_prior" else what)
        if set(got) != set(want):
            yield f"expected {what} of {sorted(want) or 'nothing'}, got {sorted(got) or 'nothing'}"
    for what in ("log_prior", "rewards", "factors", "scales", "log_upper"):
        for name, value in getattr(posterior, what).items():
            if list(value.shape) != shape:
                yield f"expected {what}[{name!r}] of shape {shape}, got {list(value.shape)}"
    for name, value in posterior.particles.items():
        if name not in exact.particles:
            continue
        got, inner = list(tensor_of(value).shape), list(tensor_of(exact.particles[name]).shape[2:])
        if got != shape + inner:
            yield f"expected particles[{name!r}] of shape {shape + inner}, got {got}"
        elif isinstance(value, Completion) and list(value.lengths.shape) != got[:-1]:
            yield f"expected lengths of {name!r} of shape {got[:-1]}, got {list(value.lengths.shape)}"
    if posterior.log_proposal is not None and list(posterior.log_proposal.shape) != shape:
        yield f"expected log_proposal of shape {shape} or None, got {list(posterior.log_proposal.shape)}"
    program = getattr(case.oracle.model, "__name__", type(case.oracle.model).__name__)
    named = {"engine": getattr(case.engine, "name", posterior.engine), "seed": case.seed, "model": program}
    for what, want in named.items():
        if getattr(posterior, what) != want:
            yield f"expected posterior.{what} = {want!r}, got {getattr(posterior, what)!r}"
    json.dumps(dict(posterior.config))


def seed(case: Case) -> Finding:
    """Same seed, same result; other seed, other result."""
    one, two = case.little, case.small(case.seed)
    if not _same(one, two):
        return "failed", f"expected the same result from seed {case.seed} twice, got two different ones", None
    if not one.exact and _same(one, case.small(case.seed + 1)):
        line = f"expected different results from the seeds {case.seed} and {case.seed + 1}, got the same"
        return "failed", line, None
    return "passed", "", None


def _same(one: Posterior, two: Posterior) -> bool:
    pairs = [(tensor_of(value), tensor_of(two.particles[name])) for name, value in one.particles.items()]
    return all(torch.equal(a, b) for a, b in [(one.log_weight, two.log_weight), *pairs])


def state(case: Case) -> Finding:
    """The caller's state is untouched."""
    return _verdict(f"expected {what} to be left alone, it changed" for what in case.first.disturbed)


def scores(case: Case) -> Finding:
    """log p0, rewards and factors are the program's own; draws whose ``log_proposal`` is log p0 are the prior's."""
    found = _verdict(_scores(case, case.first.posterior))
    return found if found[0] == "failed" or not drew_from_prior(case.first.posterior) else _drawn_from_prior(case)


def _scores(case: Case, posterior: Posterior) -> Iterator[str]:
    size = min(posterior.log_weight.numel(), _RESCORED)

    def flat(value: Tensor) -> Tensor:
        return value.reshape(-1, *value.shape[2:])[:size]

    program = Program(case.oracle.model, case.oracle.args, case.oracle.kwargs)
    particles = Particles.of_draws(posterior.particles, torch.arange(size))
    execution = program.run(particles, draw=False, score=set(particles.values))
    if execution.pending is not None:
        yield f"expected a value for every latent, got none for {execution.pending.name!r}"
        return
    for what in ("log_prior", "rewards", "factors"):
        for name, want in getattr(execution, what).items():
            if name not in getattr(posterior, what):
                yield f"expected {what}[{name!r}], got none"
                continue
            got = flat(getattr(posterior, what)[name]).double()
            # both infinite or both absent (NaN) is agreement
            off = torch.where((got == want) | (got.isnan() & want.isnan()), 0.0, (got - want).abs())
            off = off.nan_to_num(math.inf, math.inf)
            if float(off.max()) > ROUNDING:
                at = int(off.argmax())
                yield f"expected {what}[{name!r}] = {float(want[at]):.6g} when scored again, got {float(got[at]):.6g}"


def _drawn_from_prior(case: Case) -> Finding:
    """Draws that pass for draws of the prior have its means."""
    run, oracle = case.first.posterior, case.oracle
    values = [(name, r, oracle.rewards[name]) for name, r in run.rewards.items()]
    values.append(("log p0", log_prior(run), oracle.log_prior))
    found = [(name, drawn.double().reshape(-1), exact) for name, drawn, exact in values if bool(exact.isfinite().all())]
    z = torch.stack([mean_z(drawn, oracle.mean(exact, oracle.log_prior), ROUNDING) for _, drawn, exact in found])
    off, _, p = worst(z, len(found[0][1]))
    name, drawn, exact = found[int(z.abs().argmax())]
    line = (
        f"expected draws of the prior, which log_proposal = log p0 says they are: the prior mean of {name} is "
        f"{float(oracle.mean(exact, oracle.log_prior)):.4g}, measured {float(drawn.mean()):.4g}, off by {say_z(off)}, "
        f"{say_p(p)}; of particles that were moved, log_proposal is None"
    )
    return ("failed" if p < case.level else "passed"), line, p


def cost(case: Case) -> Finding:
    """The bill is what was spent."""
    return _verdict(_cost(case, case.first.posterior.cost, case.first.bill))


def _cost(case: Case, billed: Cost, spent: Cost) -> Iterator[str]:
    for what in ("lm_forwards", "lm_tokens", "prompt_tokens", "scored_tokens", "reward_calls"):
        got, want = getattr(billed, what), getattr(spent, what)
        if got != want:
            yield f"expected cost.{what} = {want}, as counted from outside, got {got}"
    if case.oracle.completions and not billed.lm_forwards:
        yield "expected cost.lm_forwards > 0 for a program with a completion, got 0"
    if not billed.seconds > 0:
        yield "expected cost.seconds > 0, got 0"


def arviz(case: Case) -> Finding:
    """ArviZ and netCDF take it."""
    with warnings.catch_warnings(action="ignore"):  # ArviZ's and its dependencies' own
        return _verdict(_arviz(case.little))


def _arviz(posterior: Posterior) -> Iterator[str]:
    import arviz as az

    rows = set(az.summary(posterior.to_arviz(), kind="stats").index)
    missing = {"log_prior", "log_likelihood", *(posterior.columns[name] for name in posterior.rewards)} - rows
    if missing:
        yield f"expected {sorted(missing)} in arviz.summary, got {sorted(rows)}"
    with tempfile.TemporaryDirectory() as folder:
        again = Posterior.load(posterior.save(Path(folder) / "run.nc"))
    if not _same(posterior, again):
        yield "expected the particles that were saved, got others after loading"
    for name, value in posterior.completions.items():
        if value.texts() != again.completions[name].texts():
            yield f"expected the texts of {name!r} that were saved, got others after loading"
    for what in ("rewards", "factors", "log_prior"):
        for name, value in getattr(posterior, what).items():
            if not torch.equal(value.nan_to_num(0.123), getattr(again, what)[name].nan_to_num(0.123)):
                yield f"expected the {what}[{name!r}] that were saved, got others after loading"


# -- statistical --------------------------------------------------------------------------------------------------


def unbiased_evidence(case: Case) -> Finding:
    """E[Zhat] = Z over replicates. A chain estimates no Z, and says so."""
    posterior, log_z = case.pooled, case.oracle.log_evidence
    if not posterior.kind.has_evidence:
        line = f"a run of kind {posterior.kind.value!r} estimates no Z: expected a log_evidence of NaN"
        return ("passed", "", None) if bool(posterior.log_evidence.isnan().all()) else ("failed", line, None)
    if posterior.exact:
        off = float((posterior.log_evidence - log_z).abs().max())
        line = f"expected log Z = {log_z:.8g}, got {float(posterior.log_evidence[0]):.8g}"
        return ("passed", "", None) if off < EXACTLY else ("failed", line, None)
    z, spread = evidence_z(posterior, log_z)
    if not spread < MAX_SPREAD:
        return "inconclusive", f"spread {spread:.2g}, give the engine more particles", None
    ratio = (posterior.log_evidence - log_z).exp()
    p = two_sided(z, len(ratio))
    error = float(ratio.std()) / math.sqrt(len(ratio))
    line = (
        f"expected E[Zhat / Z] = 1, measured {float(ratio.mean()):.4g} ± {error:.2g} over {len(ratio)} replicates, "
        f"{say_p(p)}"
    )
    return ("failed" if p < case.level else "passed"), line, p


def proper_weighting(case: Case) -> Finding:
    """E[Zhat sum_i W_i 1(x_i = x)] = Z p*(x). Chains and policies: :func:`invariance`, :func:`policy_in_the_world`."""
    if case.first.posterior.kind is Kind.CHAIN:
        return invariance(case)
    if case.first.posterior.kind is Kind.POLICY:
        return policy_in_the_world(case)
    posterior, exact = case.pooled, case.oracle.posterior
    if posterior.exact:
        want, got = probabilities(exact), probabilities(posterior)
        off = max(abs(got.get(row, 0.0) - want.get(row, 0.0)) for row in want | got)
        line = f"expected the exact probabilities, got one that is off by {off:.2g}"
        return ("passed", "", None) if off < EXACTLY else ("failed", line, None)
    _, spread = evidence_z(posterior, case.oracle.log_evidence)
    if not spread < MAX_SPREAD:
        return "inconclusive", f"spread {spread:.2g}, give the engine more particles", None
    z, cells, p = weighting_test(posterior, exact)
    line = (
        f"expected the posterior's probabilities, the worst of {cells} is off by {say_z(z)} over "
        f"{len(posterior.log_weight)} replicates, {say_p(p)}"
    )
    return ("failed" if p < case.level else "passed"), line, p


def invariance(case: Case) -> Finding:
    """Chains that begin in exact draws of p* are in draws of p* at their end."""
    if case.from_exact_draws is None:
        return "inconclusive", "give the engine a field init=, a posterior whose draws its chains begin in", None
    last, exact = case.from_exact_draws, case.oracle.posterior
    moved = any(bool((tensor_of(v)[:, 0] != tensor_of(v)[:, -1]).any()) for v in last.particles.values())
    if not moved:
        return "failed", "expected chains that move, every one is where it began", None
    size = last.log_weight.shape[1]
    ends = torch.arange(len(last.log_weight))[:, None] * size + size - 1
    weighed = last.take(
        ends, kind=Kind.EXACT_DRAWS, log_weight=torch.full(ends.shape, case.oracle.log_evidence).double()
    )
    z, cells, p = weighting_test(weighed, exact)
    line = (
        f"expected chains that begin in draws of the posterior to end in such, the worst of {cells} probabilities is "
        f"off by {say_z(z)} over {len(ends)} chains, {say_p(p)}"
    )
    return ("failed" if p < case.level else "passed"), line, p


def policy_in_the_world(case: Case) -> Finding:
    """The world answers a policy by its own law, whatever went before, and no policy gets more than the best one."""
    run, exact = case.pooled, case.oracle.posterior
    frequencies = torch.stack([*_answers(run, exact)])
    z, cells, p = worst(mean_z(frequencies.T, 0.0), frequencies.shape[1])
    if p < case.level:
        line = (
            f"expected the world to answer by its own law, the worst of {cells} answers is off by {say_z(z)} over "
            f"{frequencies.shape[1]} episodes, {say_p(p)}"
        )
        return "failed", line, p
    best = None if exact.optimism is None else exact.optimism.best
    j = decision_value(case.first.posterior)
    if best is not None and j is not None and j.value - best > 4 * j.standard_error + EXACTLY:
        return "failed", f"J = {j} is above {best:.4g}, which the best of all policies gets", None
    return "passed", "", p


def _answers(run: Posterior, exact: Posterior) -> Iterator[Tensor]:
    """By site and answer of the world: was it given, less its probability after that history, [episodes]."""
    known: list[Any] = [()] * exact.log_weight.numel()
    played: list[Any] = [()] * run.log_weight.numel()
    for name in exact.particles:
        listed, seen = _rows(exact, name), _rows(run, name)
        if name in exact.environment:
            log_p = exact.log_prior[name].reshape(-1).exp().tolist()
            law: dict[Any, float] = dict(zip(zip(known, listed, strict=True), log_p, strict=True))
            for answer in dict.fromkeys(listed):
                given = [float(now == answer) - law.get((h, answer), 0.0) for h, now in zip(played, seen, strict=True)]
                yield torch.tensor(given, dtype=torch.float64)
        known = [(*h, v) for h, v in zip(known, listed, strict=True)]
        played = [(*h, v) for h, v in zip(played, seen, strict=True)]


def _rows(posterior: Posterior, name: str) -> list[tuple[float, ...]]:
    value = tensor_of(posterior.particles[name])
    return [tuple(row) for row in value.reshape(posterior.log_weight.numel(), -1).tolist()]


CHECKS: dict[str, Callable[[Any], Finding]] = {
    "shapes": shapes,
    "seed": seed,
    "state": state,
    "scores": scores,
    "cost": cost,
    "arviz": arviz,
    "Zhat": unbiased_evidence,
    "weights": proper_weighting,
}
STATISTICAL = ("scores", "Zhat", "weights")
"""Those that a correct engine may fail by chance, at the case's ``level``."""
