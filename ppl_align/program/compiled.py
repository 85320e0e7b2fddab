"""The one view of a Pyro program that every engine uses: run it with some values given, see what it says.

``Program.run(values, draw=...)`` re-executes the model under a particle plate. Values that are given are used;
ordinary latents are drawn (from the prior, or from a proposal); the run stops at the first completion that has no
value. Because the rest of the program is executed anew on every prefix, its Python locals can never be stale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeVar

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_align.core.errors import ModelError
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.program.explain import PARTICLE_PLATE, ROOM, STATIC, explained
from ppl_align.program.log_bounds import log_lower_of, log_upper_of
from ppl_align.program.per_particle import PerParticle
from ppl_align.program.plates import Plates, plates_of, with_room
from ppl_align.program.refusals import (
    refuse_changed_prior,
    refuse_no_density,
    refuse_no_number,
    refuse_subsample,
    refuse_unconditioned_factor,
)

if TYPE_CHECKING:
    from ppl_align.constraints.base import Reader

_DEEPEST = 4  # plates inside one another that a program may use
PARTICLES = PARTICLE_PLATE
Handler = TypeVar("Handler", bound=Messenger)
LatentProposal = Callable[[str, Any], Any]
"""``(name, prior) -> distribution`` to draw an ordinary latent from."""


@dataclass
class Site:
    """A latent that waits for a value; ``fn`` is already expanded over the particles.

    ``environment``: the world answers there (:func:`ppl_align.environment`); it is drawn from ``fn`` and from nothing
    else."""

    name: str
    fn: Any
    environment: bool = False

    @property
    def is_completion(self) -> bool:
        return isinstance(self.fn, CompletionDistribution)


@dataclass
class Execution:
    """What one run of the program on P particles said.

    ``pending``    the site where it stopped, or None if it ran to its end
    ``factors``    log-factors and log-likelihoods by site name, [P] nats
    ``log_upper``  by the same names: the largest value a log-factor can take, nats; None where it is not known, [P]
                   (+inf: not known) where a weight that is drawn makes it another one for each particle
    ``log_lower``  the smallest that is not a rejection, nats; None where it is not known
    ``rewards``    raw r by site name, [P], NaN where a reward does not apply; ``scales``: nats per unit, [P] where they
                   are drawn (in a plate: the mean over its elements)
    ``targets``    the mean that a reward is to have, where one is promised (``moment_constraint``)
    ``drawn``      latents drawn in this run, [P, ...]; ``log_prior``, ``log_proposal`` their scores, [P]
    ``environment``  the latents met, in order, at which the world answers
    ``answers``    what functions that stand for the world said, by name, one for each particle
    ``sources``    the distribution of every completion that had a value, prompts of each particle included
    ``constraints``  the readers of the hard constraints met, by completion site
    ``plates``     of every latent met, those that it stands in; ``nesting``: as of the program
    ``log_potential``  sum of ``factors``, [P]
    """

    pending: Site | None = None
    factors: dict[str, Tensor] = field(default_factory=dict)
    log_upper: dict[str, PerParticle | None] = field(default_factory=dict)
    log_lower: dict[str, float | None] = field(default_factory=dict)
    rewards: dict[str, Tensor] = field(default_factory=dict)
    scales: dict[str, PerParticle] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    prefix_closed: dict[str, bool] = field(default_factory=dict)
    drawn: dict[str, Tensor] = field(default_factory=dict)
    log_prior: dict[str, Tensor] = field(default_factory=dict)
    log_proposal: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, CompletionDistribution] = field(default_factory=dict)
    environment: list[str] = field(default_factory=list)
    answers: dict[str, list[Any]] = field(default_factory=dict)
    constraints: dict[str, list[Reader]] = field(default_factory=dict)
    plates: dict[str, Plates] = field(default_factory=dict)
    nesting: int = 0
    num_particles: int = 0

    @property
    def log_potential(self) -> Tensor:
        return sum(self.factors.values(), torch.zeros(self.num_particles, dtype=torch.float64))

    def prefix_potential(self, floor: float) -> Tensor:
        """``log_potential`` for a prefix: a factor of -inf becomes ``floor``, unless it is prefix-closed."""
        total = torch.zeros(self.num_particles, dtype=torch.float64)
        for name, value in self.factors.items():
            open_ended = not self.prefix_closed.get(name)
            total = total + (torch.where(value.isneginf(), floor, value) if open_ended else value)
        return total


class _Stop(BaseException):
    """Unwinds the user's program; a BaseException, so that ``except Exception`` in it does not swallow us."""


class _Deeper(BaseException):
    """The program has more plates than the particle plate leaves room for."""


class _Execute(Messenger):
    """Gives values to latents, collects what observed sites and factors say."""

    def __init__(
        self,
        program: Program,
        values: Mapping[str, Tensor],
        draw: bool,
        propose: LatentProposal | None,
        score: Collection[str],
    ):
        super().__init__()
        self.program, self.values, self.draw, self.propose, self.score = program, values, draw, propose, score
        self.result = Execution(num_particles=program.num_particles, nesting=program.nesting)
        self.order: list[str] = []

    def _pyro_sample(self, msg: Any) -> None:
        refuse_subsample(msg)
        if is_bookkeeping(msg):
            return
        name = msg["name"]
        self.program.make_room(msg)
        if isinstance(msg["fn"], CompletionDistribution):
            self._check_batch(msg)
        self.order.append(name)
        if msg["is_observed"]:
            return
        refuse_unconditioned_factor(msg)
        refuse_changed_prior(msg)
        self.result.plates[name] = plates_of(msg, PARTICLES)
        world = is_environment(msg)
        if world:
            self.result.environment.append(name)
        if name in self.values:
            fn = msg["fn"]
            msg["value"] = with_room(self.values[name], len(fn.batch_shape) + len(fn.event_shape))
            if isinstance(msg["fn"], CompletionDistribution):
                self.result.sources[name] = msg["fn"]
            if name in self.score:
                self.result.log_prior[name] = self._log_prior(msg, msg["value"])
        elif isinstance(msg["fn"], CompletionDistribution) or not self.draw:
            self.result.pending = Site(name, msg["fn"], world)
            raise _Stop
        else:
            proposal = msg["fn"] if self.propose is None else self.propose(name, msg["fn"])
            value = proposal.sample().detach()
            msg["value"] = self.result.drawn[name] = value
            self.result.log_prior[name] = self._log_prior(msg, value)
            self.result.log_proposal[name] = self._per_particle(msg, proposal.log_prob(value))
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_bookkeeping(msg) or not msg["is_observed"]:
            return
        notes = msg["infer"].get("ppl_align", {})
        log_prob = msg["fn"].log_prob(msg["value"]) * msg["scale"]
        if msg["mask"] is not None:
            log_prob = torch.where(torch.as_tensor(msg["mask"]), log_prob, torch.zeros_like(log_prob))
        refuse_no_number(msg["name"], log_prob)
        self.result.factors[msg["name"]] = self._per_particle(msg, log_prob)
        upper = log_upper_of(msg, log_prob.shape, self.program.nesting)
        self.result.log_upper[msg["name"]] = self._per_particle(msg, upper) if isinstance(upper, Tensor) else upper
        lanes = log_prob.shape[-self.program.nesting :] if self.program.nesting else ()
        self.result.log_lower[msg["name"]] = log_lower_of(msg, math.prod(lanes))
        self.result.prefix_closed[msg["name"]] = notes.get("prefix_closed", False)
        if "reward" in notes:
            self.result.rewards[msg["name"]] = self._per_particle(msg, notes["reward"])
            scale = notes["scale"]
            self.result.scales[msg["name"]] = self._lanes(msg, scale).mean(-1) if isinstance(scale, Tensor) else scale
        if "target" in notes:
            self.result.targets[msg["name"]] = notes["target"]
        if "constrains" in notes:
            self.result.constraints.setdefault(notes["constrains"], []).extend(notes["reader"].parts)

    def _check_batch(self, msg: Any) -> None:
        """Every dimension of a completion's batch is a plate's."""
        shape, plates = msg["fn"].batch_shape, {frame.dim for frame in msg["cond_indep_stack"]}
        stray = [d for d in range(-len(shape), 0) if shape[d] != 1 and d not in plates]
        if stray:
            what = f"completion {msg['name']!r} is a batch of {list(shape)}"
            surplus = len(shape) > 1 + self.program.nesting
            remedy = ROOM if surplus else f"write it under pyro.plate(..., {shape[stray[0]]})"
            raise ModelError(f"{what}, but no plate declares its dimension {stray[0]}: {remedy}")

    def _log_prior(self, msg: Any, value: Tensor) -> Tensor:
        log_p = msg["fn"].log_prob(value)
        refuse_no_density(msg["name"], log_p)
        return self._per_particle(msg, log_p)

    def _per_particle(self, msg: Any, value: Tensor) -> Tensor:
        """[P, plates...] (or less) -> [P]: plates of the program are summed, the particle plate is kept."""
        return self._lanes(msg, value).sum(-1)

    def _lanes(self, msg: Any, value: Tensor) -> Tensor:
        """[P, plates...] (or less) -> [P, K], float64 on the CPU."""
        size, nesting = self.program.num_particles, self.program.nesting
        value = value.detach().double().cpu()
        plates = {frame.dim for frame in msg["cond_indep_stack"]}
        stray = [d for d in range(-value.dim(), 0) if value.shape[d] != 1 and d not in plates]
        if stray:
            raise ModelError(
                f"site {msg['name']!r} has shape {list(value.shape)}, but no plate declares its dimension {stray[0]}: "
                f"sum it out, or keep a dimension of size 1 for each of the {nesting} plate(s) of the program"
            )
        if value.dim() != 1 + nesting or value.shape[0] != size:
            value = value.expand(torch.broadcast_shapes(value.shape, (size, *(1,) * nesting)))
        return value.reshape(size, -1)


def is_bookkeeping(msg: Any) -> bool:
    """Sites of Pyro's own: subsampling of plates, deterministic values."""
    return site_is_subsample(msg) or bool(msg["infer"].get("_deterministic"))


def note_answers(name: str, answers: list[Any]) -> None:
    """Tell the execution that is under way, if there is one, what the world said to each particle."""
    for handler in reversed(_PYRO_STACK):
        if isinstance(handler, _Execute) and handler.result.num_particles == len(answers):
            handler.result.answers[name] = answers
            return


def is_environment(msg: Any) -> bool:
    """The world answers at this site, nobody chooses."""
    return bool(msg["infer"].get("ppl_align", {}).get("environment", False))


@dataclass
class _Structure:
    """The sites that a program has been seen to meet, for all its numbers of particles; ``ended``: these are all."""

    sites: list[str] = field(default_factory=list)
    ended: bool = False


class Program:
    """A Pyro model with its arguments, seen by ``num_particles`` particles at once.

    ``nesting``: plates inside one another in the model (the particle plate lies to their left). A first look at the
    program finds it out, so that what is drawn before a plate has room for it from the beginning."""

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], num_particles: int
    ) -> None:
        self.model, self.args, self.kwargs = model, args, dict(kwargs)
        self.num_particles = num_particles
        self.nesting = 0
        self._looked = False
        self._structure = _Structure()

    def with_particles(self, num_particles: int) -> Program:
        """The same program for another number of particles."""
        other = Program(self.model, self.args, self.kwargs, num_particles)
        other.nesting, other._looked, other._structure = self.nesting, self._looked, self._structure
        return other

    def run(
        self,
        values: Mapping[str, Tensor],
        *,
        draw: bool,
        propose: LatentProposal | None = None,
        score: Collection[str] = (),
    ) -> Execution:
        """One execution; see the module's docstring. ``score``: given values whose prior is wanted as well.

        Raises ``ModelError`` where engines cannot work with the program."""
        self.look()
        handler = self.execute(lambda: _Execute(self, values, draw, propose, score))
        self._check_structure(handler)
        return handler.result

    @property
    def order(self) -> Sequence[str]:
        """The sites met so far, in the order of the program."""
        return self._structure.sites

    def look(self) -> None:
        """Find out ``nesting``, once, before anything is drawn."""
        if not self._looked:
            from ppl_align.program.sketch import sketch

            self._looked = True
            self.nesting = max(self.nesting, sketch(self).nesting)

    def make_room(self, msg: Any) -> None:
        """Start anew if a site lies in more plates than there is room for."""
        if any(f.dim is not None and f.dim < -self.nesting for f in msg["cond_indep_stack"] if f.name != PARTICLES):
            raise _Deeper

    def execute(self, make_handler: Callable[[], Handler]) -> Handler:
        """Run the model under a handler of its own and the particle plate; returns the handler.

        Anew with room for one plate more, and another handler, as long as the program has more plates than that."""
        from ppl_align.program.names import Names

        first_mismatch: ValueError | None = None
        while True:
            handler = make_handler()
            try:
                with torch.no_grad(), handler, Names(), self.plate():
                    self.model(*self.args, **self.kwargs)
            except _Stop:
                pass
            except _Deeper:
                self.nesting += 1
                continue
            except ValueError as error:
                first_mismatch = first_mismatch or error
                ours = f"plate('{PARTICLES}')", f"pyro.plate({PARTICLES},"  # the second of pyro.subsample
                mismatch = "collide at dim" in str(error) or any(words in str(error) for words in ours)
                if mismatch and self.nesting < _DEEPEST:  # perhaps a plate of the program sits where ours is
                    self.nesting += 1
                    continue
                line = explained(first_mismatch, self.model, self.nesting)
                if line is None:
                    raise first_mismatch from None
                raise line from first_mismatch
            except RuntimeError as error:
                line = explained(error, self.model, self.nesting)
                if line is None:
                    raise
                raise line from error
            return handler

    def plate(self) -> Any:
        return pyro.plate(PARTICLES, self.num_particles, dim=-1 - self.nesting)

    def _check_structure(self, handler: _Execute) -> None:
        """Each run meets the sites that every other has met, as far as both went."""
        known, seen = self._structure, handler.order
        pending = handler.result.pending
        if pending is not None and not pending.is_completion:
            seen = seen[:-1]
        refuse_change(known.sites, seen, known.ended, pending is None)
        if len(seen) > len(known.sites):
            known.sites = list(seen)
        known.ended = known.ended or pending is None


def refuse_change(known: Sequence[str], seen: Sequence[str], known_ended: bool = True, ended: bool = True) -> None:
    """Raise ``ModelError`` with the first site in which two runs of one program differ.

    A run that has not ended may be the beginning of another."""
    for before, now in zip_longest(known, seen):
        if before != now:
            if (before is None and not known_ended) or (now is None and not ended):
                return
            site = now if now is not None and now not in known else before
            raise ModelError(f"the program's structure changes from run to run (site {site!r}). {STATIC}")
