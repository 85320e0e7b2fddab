"""Engines that each break one promise of the contract, and the programs they are tried on."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyro
import torch

from ppl_align import ImportanceSampling
from ppl_align.core.cost import Cost
from ppl_align.testing import PROGRAMS, Oracle
from ppl_align.testing.checks import CHECKS

ONE = {"with_eos": PROGRAMS["with_eos"]}
QUICK = [name for name in CHECKS if name != "arviz"]
TWO = {name: PROGRAMS[name] for name in ("upstream_latent", "two_completions")}


@dataclass(frozen=True)
class Broken(ImportanceSampling):
    """Importance sampling, with something done to its result."""

    num_particles: int = 32

    def broken(self, posterior):
        return posterior

    def run(self, model, *args, **kwargs):
        return self.broken(super().run(model, *args, **kwargs))


class NoFactors(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, factors={})


class FlatPrior(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, log_prior={k: v.reshape(-1) for k, v in posterior.log_prior.items()})


class NotANumber(Broken):
    def broken(self, posterior):
        posterior.log_weight[0, 0] = math.nan
        return posterior


class FewReplicates(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, log_weight=posterior.log_weight[:-1])


class SecretConfiguration(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, config={"model": object()})


class OneSeed(Broken):
    def run(self, model, *args, seed=0, **kwargs):
        return dataclasses.replace(super().run(model, *args, seed=0, **kwargs), seed=seed)


class NoSeed(Broken):
    count: ClassVar = itertools.count()

    def run(self, model, *args, seed=0, **kwargs):
        return dataclasses.replace(super().run(model, *args, seed=next(self.count), **kwargs), seed=seed)


class UsesTorchsNumbers(Broken):
    def broken(self, posterior):
        torch.rand(1)
        return posterior


class UsesNumpysNumbers(Broken):
    def broken(self, posterior):
        np.random.rand()  # noqa: NPY002
        return posterior


class UsesPythonsNumbers(Broken):
    def broken(self, posterior):
        random.random()
        return posterior


class LeavesParameters(Broken):
    def broken(self, posterior):
        pyro.param("left behind", torch.tensor(0.0))
        return posterior


class ClearsParameters(Broken):
    def broken(self, posterior):
        pyro.clear_param_store()
        return posterior


class SwitchesGradientsOff(Broken):
    def broken(self, posterior):
        torch.set_grad_enabled(False)
        return posterior


class ForgetsASite(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, log_prior={k: v + 0.1 for k, v in posterior.log_prior.items()})


class ScalesRewards(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, rewards={k: 2 * v for k, v in posterior.rewards.items()})


class HidesTheBill(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, cost=Cost(seconds=1.0))


class CannotBeSaved(Broken):
    def broken(self, posterior):
        posterior.save = lambda path: (_ for _ in ()).throw(OSError("no disk"))
        return posterior


class TooMuchEvidence(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, log_weight=posterior.log_weight + 0.1)


class LogOfTheMean(Broken):
    """E[log Zhat] instead of log E[Zhat]: weights that are as good as any, up to their mean."""

    def broken(self, posterior):
        geometric = posterior.log_weight.mean(-1, keepdim=True) - posterior.log_evidence[:, None]
        return dataclasses.replace(posterior, log_weight=posterior.log_weight + geometric)


class WeightsOfOthers(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, log_weight=posterior.log_weight.roll(1, -1))


class OnlyTheMode(Broken):
    """The evidence of all, the particles of the most probable assignment."""

    def broken(self, posterior):
        best = posterior.log_weight.new_full(posterior.log_weight.shape, Oracle(PROGRAMS["with_eos"]).log_evidence)
        x, oracle = posterior.particles["x"], Oracle(PROGRAMS["with_eos"])
        x.tokens[:] = oracle.values["x"][oracle.log_target.argmax()]
        return dataclasses.replace(posterior, log_weight=best + 1e-3 * torch.randn(best.shape, dtype=best.dtype))


class PassesForExact(Broken):
    def broken(self, posterior):
        return dataclasses.replace(posterior, kind="enumeration")


class Raises(Broken):
    def broken(self, posterior):
        raise KeyError("x")


class ReturnsNothing(Broken):
    def broken(self, posterior):
        return None


SEVERAL = (
    FlatPrior,
    ScalesRewards,
    NoFactors,
    FewReplicates,
    NotANumber,
    TooMuchEvidence,
    LogOfTheMean,
    OnlyTheMode,
    PassesForExact,
)
