"""What the sites of a program are like, noted while it runs: ``with Record() as sites: program.run(...)``."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger

from ppl_align.program.execute import is_bookkeeping
from ppl_align.program.plates import PARTICLES


class Record(Messenger):
    """``nodes``: Pyro's message of every sample site by name, in the order of the program; the last run counts.

    Unlike a trace it does not mind that a program is run again from its beginning, and it leaves the model itself as it
    is: what has been fitted or remembered for that model still applies."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[str, Any] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] != PARTICLES and not is_bookkeeping(msg):
            self.nodes[msg["name"]] = msg
