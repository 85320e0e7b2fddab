"""The contract of an engine, held against enumeration: ``check_engine(MyEngine()).raise_if_failed()``."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from ppl_align.core.cost import Cost, measure
from ppl_align.core.errors import AllDeadError, InputError, RunError, type_and_line
from ppl_align.core.seeds import seed_all
from ppl_align.core.validation import at_least
from ppl_align.engines.base import Engine
from ppl_align.lm.completions import Completion
from ppl_align.posterior import Posterior
from ppl_align.testing.checks import CHECKS, STATISTICAL
from ppl_align.testing.oracle import Oracle
from ppl_align.testing.programs import PROGRAMS
from ppl_align.testing.quiet import said_once
from ppl_align.testing.report import Report, Result
from ppl_align.testing.statistics import RATE

FEWEST_REPLICATES = 50  # of fewer values, no p-value below 1e-4 can be believed


def check_engine(
    engine: Any,
    oracles: Mapping[str, Callable[..., Any] | Oracle] | Iterable[Callable[..., Any] | Oracle] = PROGRAMS,
    *,
    seed: int = 0,
    num_replicates: int = 300,
) -> Report:
    """Hold an engine to everything the library promises of engines, on programs whose posterior can be listed.

    ``engine``    anything with ``run(program, seed=) -> Posterior``; its field ``num_replicates`` (``num_chains``) is
                  raised; an engine without one, or that refuses so many but runs as it is, is run with as many seeds
    ``oracles``   programs, or :class:`Oracle` objects (for programs with arguments), by name or in a row

    ==========  ===================================================================================================
    run         it runs; a program refused with ``InputError`` or ``RunError`` is listed, and allowed
    shapes      shapes [R, N, ...], names of the sites, rewards and factors, engine, seed, JSON-able configuration
    seed        same seed, same result; another seed, another one (unless it is exact)
    state       global random numbers, Pyro's parameter store and torch's switches are untouched
    scores      log p0, rewards and factors of each particle are the program's own, when scored again; draws whose
                log_proposal is log p0 have the means of the prior
    cost        the bill is what was really spent
    arviz       ArviZ summarises it; netCDF gives back what was saved
    Zhat        E[Zhat] = Z over replicates
    weights     E[Zhat sum_i W_i 1(x_i = x)] = Z p*(x): properly weighted, for the most probable assignments
    ==========  ===================================================================================================

    An engine whose runs are Markov chains (``Kind.CHAIN``) estimates no Z: its log_evidence is NaN. Its ``weights`` are
    right if chains that begin in exact draws of the posterior (its field ``init``) are in draws of it at their end. Of
    an engine that decides (``Kind.POLICY``), if the world answers by its own law and its J is no more than the best.

    Means of the prior, Zhat and weights are tests: over seeds, a correct engine fails any of them with probability 1e-3
    at most, all programs together. Where Zhat varies by more than 0.6 of its mean they are inconclusive, which is not a
    pass: give the engine more particles. They see what the engine visits, so bring programs whose prior covers the
    posterior.
    A program that the engine refuses is no failure, as long as it runs another: whether it may refuse so many is for
    the reader to judge, so the verdict says first how many were really checked. What the engine warns of or logs in
    every run is shown once. Nothing that it raises gets out. Raises ``InputError`` where there is no engine, or a
    program that ``Enumeration`` cannot list.
    """
    if isinstance(engine, type) or not callable(getattr(engine, "run", None)):
        name = getattr(engine, "__name__", type(engine).__name__)
        raise InputError(f"check_engine() takes an engine, such as SMC(num_particles=64); got {name}")
    at_least(FEWEST_REPLICATES, num_replicates=num_replicates)
    named = _named(oracles)
    level = RATE / (len(STATISTICAL) * len(named))
    results: list[Result] = []
    with said_once():
        for name, oracle in named.items():
            results += Case(engine, name, oracle, seed, num_replicates, level).results()
    return Report(f"contract of {getattr(engine, 'name', type(engine).__name__)}", results)


def _named(oracles: Any) -> dict[str, Oracle]:
    """Programs and oracles, by name, as oracles."""
    if not isinstance(oracles, Mapping):
        listed = [oracles] if callable(oracles) or isinstance(oracles, Oracle) else list(oracles)
        oracles = {getattr(o.model if isinstance(o, Oracle) else o, "__name__", f"program {i}"): o
                   for i, o in enumerate(listed)}  # fmt: skip
        if len(oracles) < len(listed):
            raise InputError("two of the programs have the same name: give a mapping, {name: program}")
    if not oracles:
        raise InputError("check_engine() needs at least one program")
    return {name: o if isinstance(o, Oracle) else Oracle(_without_arguments(name, o)) for name, o in oracles.items()}


def _without_arguments(name: str, program: Any) -> Any:
    """The program, if it can be called with nothing."""
    try:
        inspect.signature(program).bind()
    except TypeError as error:
        if callable(program):
            raise InputError(f"program {name!r} needs arguments ({error}): wrap it: Oracle({name}, ...)") from None
    except ValueError:  # a builtin that does not tell
        pass
    return program


@dataclass
class Case:
    """One engine on one program: what the checks look at. Runs are made when they are first asked for.

    ``level``: the p-value below which a statistical check fails."""

    engine: Any
    name: str
    oracle: Oracle
    seed: int = 0
    num_replicates: int = 300
    level: float = RATE

    def results(self, checks: Iterable[str] = CHECKS) -> list[Result]:
        """The run, then each check; nothing else if it did not run."""
        ran = self.ran
        return [ran, *(self.judge(check) for check in checks)] if ran.status == "passed" else [ran]

    @cached_property
    def ran(self) -> Result:
        """Did the program run at all?"""
        if isinstance(self.engine, Engine) and not isinstance(getattr(self.engine, "name", None), str):
            kind = type(self.engine).__name__
            line = f'an engine needs a name: write name: ClassVar[str] = "{kind.lower()}" in class {kind}'
            return Result(self.name, "run", "failed", line)
        try:
            posterior = self.first.posterior
        except (InputError, RunError) as error:
            return Result(self.name, "run", "refused", str(error))
        except Exception as error:
            return Result(self.name, "run", "failed", f"expected a Posterior, it raised {type_and_line(error)}")
        if not isinstance(posterior, Posterior):
            return Result(self.name, "run", "failed", f"expected a Posterior, got {type(posterior).__name__}")
        return Result(self.name, "run", "passed")

    def judge(self, check: str) -> Result:
        """One of :data:`CHECKS`; an exception in it is a failure, not a crash."""
        try:
            finding = CHECKS[check](self)
        except _Refused as refused:
            return Result(self.name, check, "inconclusive", str(refused))
        except Exception as error:
            return Result(self.name, check, "failed", f"raised {type_and_line(error)}")
        return Result(self.name, check, *finding)

    # -- runs ---------------------------------------------------------------------------------------------------

    @cached_property
    def opening(self) -> tuple[Watched, int | None]:
        """The first run, and its number of replicates (None: the engine does not say).

        An engine may refuse what the raised number costs and do its own: that one is taken then. A population that
        died is no refusal, but an estimate of zero: trying again would be a choice by outcome."""
        known = _replicates_field(self.engine)
        own = getattr(self.engine, known or "num_replicates", None)
        try:
            raised = watch(self.engine, self.oracle, self.seed, self.num_replicates)
            return raised, self.num_replicates if known else own
        except (InputError, RunError) as error:
            if isinstance(error, AllDeadError) or not known:
                raise
            return watch(self.engine, self.oracle, self.seed), own

    @property
    def first(self) -> Watched:
        """The run that most checks look at: all replicates at once, where the engine knows (and takes) so many."""
        return self.opening[0]

    @cached_property
    def little(self) -> Posterior:
        """A small run of the case's own seed."""
        return self.small(self.seed)

    def small(self, seed: int) -> Posterior:
        """A run of two replicates at most, where the engine knows replicates."""
        return self.another(seed, min(2, self.opening[1] or 2))

    def another(self, seed: int, num_replicates: int | None) -> Posterior:
        """A run after the first; an engine that refuses this one alone leaves the check undecided."""
        try:
            return watch(self.engine, self.oracle, seed, num_replicates).posterior
        except AllDeadError:
            raise
        except (InputError, RunError) as error:
            raise _Refused(f"it ran with seed {self.seed}, but not with seed {seed}: {type_and_line(error)}") from error

    @cached_property
    def from_exact_draws(self) -> Posterior | None:
        """As many chains as replicates are wanted, begun in exact draws; None: the engine has no field ``init``."""
        if "init" not in {field.name for field in dataclasses.fields(self.engine)}:
            return None
        exact = self.oracle.sample(1, self.num_replicates, seed=self.seed)
        return watch(
            dataclasses.replace(self.engine, init=exact), self.oracle, self.seed, self.num_replicates
        ).posterior

    @cached_property
    def pooled(self) -> Posterior:
        """``num_replicates`` independent replicates, from one run or from as many seeds as it takes."""
        runs = [self.first.posterior]
        if runs[0].exact:
            return runs[0]
        size, seed, died = len(runs[0].log_weight), self.seed, 0
        each = min(size, self.opening[1] or 1)
        while size + died < self.num_replicates:
            seed += 1
            try:
                runs.append(self.another(seed, each))
                size += len(runs[-1].log_weight)
            except AllDeadError:  # a population that died is an estimate of zero, not a refusal
                died += each
        return _concatenated(runs, died) if len(runs) > 1 or died else runs[0]


@dataclass(frozen=True)
class Watched:
    """A run, the bill as seen from outside, and what of the caller's state it changed."""

    posterior: Posterior
    bill: Cost
    disturbed: list[str]


class _Refused(Exception):
    """A run that the engine would not do, after one that it did."""


def _replicates_field(engine: Any) -> str | None:
    """What an engine calls its independent repeats, if it knows any."""
    own = {f.name for f in dataclasses.fields(engine)} if dataclasses.is_dataclass(engine) else set()
    return next((name for name in ("num_replicates", "num_chains") if name in own), None)


def watch(engine: Any, oracle: Oracle, seed: int, num_replicates: int | None = None) -> Watched:
    """Run the engine (with so many replicates, if it knows them), looking over its shoulder; the caller's own state
    is put back."""
    known = _replicates_field(engine)
    if num_replicates is not None and known is not None:
        engine = dataclasses.replace(engine, **{known: num_replicates})
    with _own_state():
        before = _state()
        with measure() as bill:
            posterior = engine.run(oracle.model, *oracle.args, seed=seed, **oracle.kwargs)
        after = _state()
    return Watched(posterior, bill, [name for name, value in before.items() if after[name] != value])


@contextlib.contextmanager
def _own_state() -> Iterator[None]:
    """A random state and a parameter store to look after, whatever the engine does to them."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002  the global one is the point
    switches = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            seed_all(20221122)
            pyro.param("somebody's", torch.tensor(1.5))
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        torch.set_default_dtype(switches[0])
        torch.set_grad_enabled(switches[1])


def _state() -> dict[str, Any]:
    parameters = {name: value.detach().tolist() for name, value in pyro.get_param_store().items()}
    return {
        "torch's global random numbers": torch.get_rng_state().numpy().tobytes(),
        "numpy's global random numbers": pickle.dumps(np.random.get_state()),  # noqa: NPY002
        "Python's global random numbers": random.getstate(),
        "Pyro's parameter store": parameters,
        "torch's default dtype": torch.get_default_dtype(),
        "torch's gradient mode": torch.is_grad_enabled(),
    }


def _concatenated(runs: list[Posterior], died: int) -> Posterior:
    """The replicates of several runs as those of one: weights and latents only."""

    def joined(name: str) -> Completion | Tensor:
        values = [run.particles[name] for run in runs]
        values += [_row(values[0])] * died
        if isinstance(values[0], Completion):
            tokens = torch.cat([value.tokens for value in values])  # type: ignore[union-attr]
            return Completion(tokens, terminal=values[0]._terminal)
        return torch.cat(values)  # type: ignore[arg-type]

    dead = [torch.full_like(runs[0].log_weight[:1], -torch.inf)] * died
    log_weight = torch.cat([*(run.log_weight for run in runs), *dead])
    return dataclasses.replace(
        runs[0], log_weight=log_weight, particles={name: joined(name) for name in runs[0].particles}
    )


def _row(value: Completion | Tensor) -> Completion | Tensor:
    """The first replicate alone."""
    return Completion(value.tokens[:1], terminal=value._terminal) if isinstance(value, Completion) else value[:1]
