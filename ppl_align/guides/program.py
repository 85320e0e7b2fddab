"""A guide that the user wrote: any Pyro program with the model's latent sites and arguments."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppl_align.errors import ModelError
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.warp import Warp
from ppl_align.program import Program
from ppl_align.program.compiled import PARTICLES


class ProgramGuide:
    """Draws whole sequences (or any subset of the latents); what it leaves out is drawn from the prior.

    It proposes values, not tokens: importance sampling can use it, SMC cannot steer with it."""

    def __init__(self, guide: Callable[..., Any], parameters: Any = None) -> None:
        self.guide = guide
        self.parameters = parameters
        self.warps: dict[str, Warp] = {}  # of the completions it draws, known once it has drawn

    @property
    def __name__(self) -> str:
        return getattr(self.guide, "__name__", type(self.guide).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.guide(*args, **kwargs)

    def draw(self, program: Program) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``(values [P, ...], log_q [P])`` by site."""
        with self.trained(), torch.no_grad():
            with program.plate():
                trace = poutine.trace(self.guide).get_trace(*program.args, **program.kwargs)
            trace.compute_log_prob()
        size = program.num_particles
        values, log_q = {}, {}
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or node["is_observed"] or name == PARTICLES:
                continue
            if type(node["fn"]).__name__ == "_Subsample":
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

    def trained(self) -> Any:
        """A context: Pyro's parameters as training left them; before that, those of the run."""
        return pyro.get_param_store().scope(self.parameters) if self.parameters else nullcontext()
