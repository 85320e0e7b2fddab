"""Every site of a program has a name of its own.

Engines keep values, factors and answers by name. Of two rewards with one name the second would replace the first, two
completions would share one text, and the posterior would be that of another program, without a word. Pyro's own traces
say so of its sample sites; an engine that runs the program directly, and a tool, which is no site of Pyro's, need this.
"""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from ppl_align.core.errors import ModelError
from ppl_align.core.pyro_stack import handlers
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.program.execute import is_bookkeeping
from ppl_align.program.notes import notes_of
from ppl_align.program.plates import PARTICLES

WORLD = "an environment"
TAKEN = (PARTICLES, "_INPUT", "_RETURN", "num_particles_vectorized")


class SameNameError(ModelError):
    """Two sites of a program have one name."""


class Names(Messenger):
    """Around one execution of a program: raises ``SameNameError`` where a name comes a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[str, str] = {}

    def take(self, name: str, kind: str) -> None:
        """From here on the name belongs to a site of this kind."""
        refuse_name(name, kind)
        if name in self.kinds:
            first = self.kinds[name]
            which = f"two sites are called {name!r}, {first} and {'another' if first == kind else kind}"
            raise SameNameError(f"{which}: give every site of the program a name of its own")
        self.kinds[name] = kind

    def _pyro_sample(self, msg: Any) -> None:
        if not is_bookkeeping(msg):
            self.take(msg["name"], _kind(msg))
        elif site_is_subsample(msg) and msg["name"] != PARTICLES:
            self.take(msg["name"], "a plate")


def refuse_name(name: Any, kind: str) -> None:
    """Raise ``ModelError`` for what neither a file nor a screen can show as a name, and for what is ours or Pyro's."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ModelError(f"{kind} is called {name!r}: a name is a string of at least one letter, without line ends")
    if name in TAKEN:
        raise ModelError(f"{kind} is called {name!r}, which Pyro and the engines use themselves: choose another name")


def take_name(name: str) -> None:
    """Tell the execution that is under way, if there is one, that the world answers here without a site of Pyro's."""
    for handler in handlers():
        if isinstance(handler, Names):
            handler.take(name, WORLD)
            return


def _kind(msg: Any) -> str:
    notes = notes_of(msg)
    if notes.environment:
        return WORLD
    if notes.constrains is not None:
        return "a constraint"
    if notes.reward is not None:
        return "a reward"
    if isinstance(msg["fn"], CompletionDistribution):
        return "a completion"
    if type(msg["fn"]).__name__ == "Unit":
        return "a factor"
    return "an observation" if msg["is_observed"] else "a latent"
