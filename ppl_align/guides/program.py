"""A guide that the user wrote: any Pyro program with the model's latent sites and arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import transform_to

from ppl_align.core.errors import InputError, ModelError
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.warp import Warp
from ppl_align.program import Program
from ppl_align.program.execute import is_bookkeeping
from ppl_align.program.provenance import Provenance


class ProgramGuide:
    """Draws whole sequences (or any subset of the latents); what it leaves out is drawn from the prior.

    It proposes values, not tokens: importance sampling can use it, SMC cannot steer with it."""

    def __init__(self, guide: Callable[..., Any], store: Any = None) -> None:
        """``store``: the state of Pyro's parameter store after training."""
        self.guide = guide
        self.store = store
        self.provenance: Provenance | None = None
        self.warps: dict[str, Warp] = {}  # of the completions it draws, known once it has drawn

    @property
    def __name__(self) -> str:
        return getattr(self.guide, "__name__", type(self.guide).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.guide(*args, **kwargs)

    def draw(self, program: Program, size: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Values [P, ...] and log q [P] by site, for P = ``size`` particles."""
        with self.trained(), torch.no_grad():
            with program.plate(size):
                trace = poutine.trace(self.guide).get_trace(*program.args, **program.kwargs)
            trace.compute_log_prob()
        values, log_q = {}, {}
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or node["is_observed"] or is_bookkeeping(node):
                continue
            value, log_prob = node["value"], node["log_prob"]
            assert value is not None
            assert log_prob is not None
            if value.shape[:1] != (size,):
                raise ModelError(f"the guide draws {name!r} without a particle dimension: it must follow the plates")
            values[name] = value.detach()
            if isinstance(node["fn"], CompletionDistribution):
                self.warps[name] = node["fn"].warp
            log_q[name] = log_prob.detach().double().cpu().reshape(size, -1).sum(-1)
        return values, log_q

    def tokens(self, site: str) -> None:
        """As a proposal of tokens: the prior, for completions that it leaves out."""

    def latent(self, site: str, prior: Any) -> Any:
        """As a proposal of one latent: the prior, for those that it leaves out."""
        return prior

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """What training found, by the names of ``pyro.param``; empty before it."""
        return _Parameters(self.store or {})

    def save(self, folder: str | Path) -> None:
        """Of a guide that is a program of the user's, only the program can make it again: ``InputError``."""
        raise InputError(
            f"the guide {self.__name__!r} is a program of your own, which no file can hold: keep its parameters, "
            f"torch.save(dict(guide.parameters), file)"
        )

    def trained(self) -> Any:
        """A context: Pyro's parameters as training left them; before that, those of the run."""
        return pyro.get_param_store().scope(self.store) if self.store else nullcontext()


class _Parameters(dict[str, Tensor]):
    """Constrained values by name; what Pyro itself keeps (``"params"``, ``"constraints"``) can be asked for, too."""

    def __init__(self, store: Mapping[str, Any]) -> None:
        limits = store.get("constraints", {})
        found = {
            name: transform_to(limits[name])(value).detach() if name in limits else value.detach()
            for name, value in store.get("params", {}).items()
        }
        super().__init__(found)
        self._store = store

    def __missing__(self, name: str) -> Any:
        return self._store[name]
