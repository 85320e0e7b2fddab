"""The one view of a Pyro program that every engine uses: run it with some values given, see what it says.

``Program.run(particles, draw=...)`` re-executes the model under a plate of the particles. Values that they have are
used; ordinary latents are drawn (from the prior, or from a proposal); the run stops at the first completion that has no
value. Because the rest of the program is executed anew on every prefix, its Python locals can never be stale.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

import pyro
import torch
from pyro.poutine.messenger import Messenger

from ppl_align.core.errors import ModelError
from ppl_align.core.pyro_stack import handlers, plates_collide
from ppl_align.particles.particles import Particles
from ppl_align.program.execute import Deeper, Execute, LatentProposal, Stop
from ppl_align.program.explain import STATIC, explained
from ppl_align.program.names import Names
from ppl_align.program.plates import PARTICLES

_DEEPEST = 4  # plates inside one another that a program may use
Handler = TypeVar("Handler", bound=Messenger)


class Running(Messenger):
    """Around each execution of a program: which one is it?"""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program


def running() -> Program | None:
    """The program that is being executed right now."""
    return next((handler.program for handler in handlers() if isinstance(handler, Running)), None)


class Program:
    """A Pyro model with its arguments.

    ``nesting``: plates inside one another in the model (the particle plate lies to their left). A first look at the
    program finds it out, so that what is drawn before a plate has room for it from the beginning."""

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.model, self.args, self.kwargs = model, tuple(args), dict(kwargs or {})
        self.nesting = 0
        self._looked = False
        self._sites: list[str] = []  # that it has been seen to meet, for all its numbers of particles
        self._ended = False  # these are all

    def run(
        self, particles: Particles, *, draw: bool, propose: LatentProposal | None = None, score: Collection[str] = ()
    ) -> Particles:
        """One execution; see the module's docstring. ``score``: given values whose prior is wanted as well.

        Raises ``ModelError`` where engines cannot work with the program."""
        self.look()
        handler = self.execute(lambda nesting: Execute(particles, nesting, draw, propose, score), particles.size)
        self._check_structure(handler)
        return handler.particles

    @property
    def order(self) -> Sequence[str]:
        """The sites met so far, in the order of the program."""
        return self._sites

    def look(self) -> None:
        """Find out ``nesting``, once, before anything is drawn."""
        if not self._looked:
            from ppl_align.program.sketch import sketch

            self._looked = True
            self.nesting = max(self.nesting, sketch(self).nesting)

    def execute(self, make_handler: Callable[[int], Handler], size: int) -> Handler:
        """Run the model on ``size`` particles under their plate and a handler of its own; returns the handler.

        Anew with room for one plate more, and another handler, as long as the program has more plates than that."""
        first_mismatch: ValueError | None = None
        while True:
            handler = make_handler(self.nesting)
            try:
                with torch.no_grad(), handler, Running(self), Names(), self.plate(size):
                    self.model(*self.args, **self.kwargs)
            except Stop:
                pass
            except Deeper:
                self.nesting += 1
                continue
            except ValueError as error:
                first_mismatch = first_mismatch or error
                ours = f"plate('{PARTICLES}')", f"pyro.plate({PARTICLES},"  # the second of pyro.subsample
                mismatch = plates_collide(error) or any(words in str(error) for words in ours)
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

    def plate(self, size: int) -> Any:
        """The plate of ``size`` particles, to the left of all plates of the program."""
        return pyro.plate(PARTICLES, size, dim=-1 - self.nesting)

    def _check_structure(self, handler: Execute) -> None:
        """Each run meets the sites that every other has met, as far as both went."""
        seen, pending = handler.order, handler.particles.pending
        if pending is not None and not pending.is_completion:
            seen = seen[:-1]
        refuse_change(self._sites, seen, self._ended, pending is None)
        if len(seen) > len(self._sites):
            self._sites = list(seen)
        self._ended = self._ended or pending is None


def refuse_change(known: Sequence[str], seen: Sequence[str], known_ended: bool = True, ended: bool = True) -> None:
    """Raise ``ModelError`` with the first site in which two runs of one program differ.

    A run that has not ended may be the beginning of another."""
    for before, now in zip_longest(known, seen):
        if before != now:
            if (before is None and not known_ended) or (now is None and not ended):
                return
            site = now if now is not None and now not in known else before
            raise ModelError(f"the program's structure changes from run to run (site {site!r}). {STATIC}")
