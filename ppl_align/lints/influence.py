"""What depends on the value of a latent: exchange it between particles, all else held fixed, and see what changes.

A site acts on factors directly, and on later sites through their law: another prompt, other parameters. What it acts on
in the end is found by going on from there. Nothing is drawn, and rewards are asked about what is new to them only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_align.core.errors import ModelError, PplAlignError
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.posterior.once import once
from ppl_align.program.record import Record

if TYPE_CHECKING:
    from ppl_align.lints.prior_sample import PriorSample

OTHERS = 3
"""Particles whose value each particle is given in place of its own, one after the other."""


@dataclass
class Exchanged:
    """The program once some sites have the values of other particles.

    ``factors``  [P] nats by name     ``touched``  by later latent: where its law is another, bool [P]"""

    factors: Mapping[str, Tensor]
    touched: dict[str, Tensor]


class Influence:
    """Who acts on what in a program, by the draws of a :class:`~ppl_align.lints.prior_sample.PriorSample`."""

    def __init__(self, sample: PriorSample) -> None:
        self.sample = sample
        self.order = list(sample.values)

    def factor(self, site: str) -> str | None:
        """A factor that depends on the site: directly if there is one, or else through later sites."""
        for name in self.reach(site):
            for _, run in self._each(name):
                for factor, before in self._steady.items():
                    if bool(_differs(before, run.factors[factor]).any()):
                        return factor
        return None

    def reach(self, site: str, after: str = "") -> list[str]:
        """The site and the latents that depend on it, nearest first; ``after``: none that come before this one."""
        start = self.order.index(after) + 1 if after else 0
        found = [site]
        for here in found:  # it grows on the way
            touched = [name for _, run in self._each(here) for name in run.touched]
            found += [name for name in self.order[start:] if name in touched and name not in found]
        return found

    def unseen(self, known: str, choice: str) -> str | None:
        """A factor for which who chooses at ``choice`` would want to know what was drawn at ``known``, and does not.

        Nobody needs to know what the two say to factors of their own, or to one that adds them up. They have to act
        together: on one factor or, each by itself, on the law of what comes later and matters."""
        nowhere = torch.zeros(self.sample.num_draws, dtype=torch.bool)
        blind = {k: ~run.touched.get(choice, nowhere) for k, run in self._each(known)}
        mine, others = self.reach(known, after=choice), self.reach(choice)
        later = any(bool((blind[k] & seen).any()) for k, run in self._each(known) for seen in self._later(run, choice))
        for here in mine if later else [known]:
            if here in others and (factor := self.factor(here)) is not None:
                return factor
            for other in others:
                for k, where in blind.items():
                    for factor, together in self._together(here, other, k):
                        if bool((together & where if here == known else together).any()):
                            return factor
        return None

    def _later(self, run: Exchanged, choice: str) -> list[Tensor]:
        start = self.order.index(choice)
        return [where for name, where in run.touched.items() if self.order.index(name) > start]

    def _together(self, one: str, other: str, k: int) -> Iterator[tuple[str, Tensor]]:
        """By factor: where what it says of both exchanged is not the sum of what it says of each, bool [P]."""
        asked = (self._exchanged(sites, k) for sites in (frozenset({one}), frozenset({other}), frozenset({one, other})))
        runs = [run for run in asked if run is not None]
        for name, neither in self._steady.items() if len(runs) == 3 else ():
            yield name, _no_sum(neither, *(run.factors[name] for run in runs))

    # -- one exchange --------------------------------------------------------------------------------------------------

    def _each(self, site: str) -> Iterator[tuple[int, Exchanged]]:
        for k in range(1, OTHERS + 1):
            if (run := self._exchanged(frozenset({site}), k)) is not None:
                yield k, run

    @cached_property
    def _steady(self) -> dict[str, Tensor]:
        """Factors that stay as they are as long as nothing changes."""
        again = self._exchanged(frozenset(), 0)
        if again is None:
            return {}
        before = self.sample.particles.factors.items()
        return {name: f for name, f in before if not bool(_differs(f, again.factors[name]).any())}

    @once
    def _exchanged(self, sites: frozenset[str], k: int) -> Exchanged | None:
        """Each particle with the values that the k-th after it has at ``sites``; None: cannot be asked."""
        values = {name: v.roll(-k, 0) if name in sites else v for name, v in self.sample.values.items()}
        record = Record()
        try:
            with record:
                run = self.sample.ask(values, known=self.sample.answers)
        except ModelError:
            raise
        except (PplAlignError, ValueError):  # values that the program never has together: u > z in Uniform(0, z)
            return None
        touched = {name: self._law_differs(name, record.nodes[name]["fn"]) for name in self.order if name not in sites}
        return Exchanged(run.factors, {name: where for name, where in touched.items() if bool(where.any())})

    def _law_differs(self, name: str, after: Any) -> Tensor:
        """Where a latent is drawn from something else than before, bool [P]."""
        before, size = self.sample.nodes[name]["fn"], self.sample.num_draws
        if isinstance(before, CompletionDistribution) and isinstance(after, CompletionDistribution):
            shape = before.batch_shape or (size,)
            rows = zip(before.prompt_rows(shape), after.prompt_rows(shape), strict=True)
            return torch.tensor([one != other for one, other in rows]).reshape(size, -1).any(-1)
        value = self.sample.values[name]
        try:
            return _differs(before.log_prob(value), after.log_prob(value)).reshape(size, -1).any(-1).cpu()
        except ValueError:  # it could not have been drawn now
            return torch.ones(size, dtype=torch.bool)


def _differs(before: Tensor, after: Tensor) -> Tensor:
    """Beyond rounding, elementwise."""
    return ~torch.isclose(before, after, rtol=1e-4, atol=1e-6, equal_nan=True)


def _no_sum(neither: Tensor, one: Tensor, other: Tensor, both: Tensor) -> Tensor:
    """Is a function of two arguments, given at four corners, no sum of functions of each? bool [P].

    A rejection (-inf) is in a sum if it comes with one of the arguments, whatever the other is."""
    corners = torch.stack([neither, one, both, other])  # each between the two that share an argument with it
    dead = corners.isneginf()
    size = torch.where(dead, 0.0, corners).abs().amax(0)
    bent = ~dead.any(0) & ((neither - one - other + both).abs() > 1e-6 + 1e-4 * size)
    return bent | (dead & ~dead.roll(1, 0) & ~dead.roll(-1, 0)).any(0)
