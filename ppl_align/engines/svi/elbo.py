"""The ELBO with a leave-one-out baseline: Pyro's ``Trace_ELBO`` with a quieter gradient.

    f_i = log p(x_i, data) - log q(x_i),   x_i ~ q,  i = 1..S
    gradient = (1/S) sum_i (f_i - mean_{j != i} f_j) grad log q(x_i)  +  pathwise terms of reparameterised sites

The baseline of draw i does not depend on draw i, so the gradient stays unbiased (Kool et al. 2019; it is what RLOO
does, arXiv:2402.14740), and it vanishes when q is the posterior, where every f_i is log Z.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppl_align.core.errors import InputError, RunError
from ppl_align.core.estimate import standard_error
from ppl_align.program.compiled import refuse_change
from ppl_align.program.execute import is_bookkeeping
from ppl_align.program.notes import notes_of
from ppl_align.program.refusals import refuse_no_density, refuse_no_number


class LeaveOneOutELBO(Trace_ELBO):
    """``num_particles`` S >= 2 vectorised draws; ``max_plate_nesting``: plates of the program."""

    def __init__(
        self,
        num_particles: int,
        max_plate_nesting: int,
        environment: Collection[str] = (),
        kept: Collection[str] = (),
    ) -> None:
        """``environment``: sites that the guide must leave as they are.

        ``kept``: completions at which the guide is kept to the hard constraints of the program, token by token."""
        if num_particles < 2:
            raise InputError("a leave-one-out baseline needs num_particles of at least 2 draws per step")
        self.environment, self.kept = environment, kept
        self.errors: list[float] = []  # standard error of each loss, by its own draws
        self.sites: list[str] | None = None  # of the program, as the first draws met them
        super().__init__(num_particles=num_particles, max_plate_nesting=max_plate_nesting, vectorize_particles=True)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        loss, surrogate = self.loss_and_surrogate(model, guide, args, kwargs)
        if surrogate.requires_grad:
            surrogate.backward()
        return loss

    def loss_and_surrogate(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[float, Tensor]:
        """``(-ELBO estimate, a scalar whose gradient estimates that of -ELBO)``."""
        model_trace, guide_trace = next(iter(self._get_traces(model, guide, args, kwargs)))
        sites = [name for name, site in model_trace.nodes.items() if site["type"] == "sample"]
        refuse_change(sites if self.sites is None else self.sites, sites)
        self.sites = sites
        leave_the_world_alone(self.environment, model_trace, guide_trace)
        log_p = self._per_draw(model_trace)
        log_q = self._per_draw(guide_trace)
        score = self._per_draw(guide_trace, only_scored=True)
        pathwise = any(_is_latent(site) and site["value"].requires_grad for site in guide_trace.nodes.values())
        f = log_p - (log_q if pathwise else log_q.detach())
        refuse_infinite(f, model_trace, self.kept)
        value = f.detach()
        self.errors.append(standard_error(value))
        baseline = (value.sum() - value) / (self.num_particles - 1)
        surrogate = -(f + (value - baseline) * score).mean()
        return -value.mean().item(), surrogate

    def _per_draw(self, trace: Any, only_scored: bool = False) -> Tensor:
        """Sum of log-probabilities of each draw, [S]."""
        total = torch.zeros(self.num_particles, dtype=torch.float64)
        for site in trace.nodes.values():
            if site["type"] != "sample" or is_bookkeeping(site):
                continue
            if only_scored and (not _is_latent(site) or site["fn"].has_rsample):
                continue
            log_prob = site["log_prob"].cpu()
            if log_prob.dim() != self.max_plate_nesting or log_prob.shape[0] != self.num_particles:
                room = self.num_particles, *(1,) * (self.max_plate_nesting - 1)
                log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, room))
            total = total + log_prob.reshape(self.num_particles, -1).sum(-1)
        return total


def _is_latent(site: Any) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and not is_bookkeeping(site)


def leave_the_world_alone(environment: Collection[str], model_trace: Any, guide_trace: Any) -> None:
    """A guide may choose what to say, not what the world answers: log q = log p at the environment's sites."""
    for name in environment:
        site, own = model_trace.nodes[name], guide_trace.nodes.get(name)
        if own is None or not torch.allclose(own["log_prob"].detach(), site["log_prob"].detach(), atol=1e-3):
            does = "leaves out" if own is None else "changes"
            raise InputError(
                f"the guide {does} the world at {name!r}: repeat environment({name!r}, ...) in it just as the program "
                f"has it (to condition the world as well, make it an ordinary pyro.sample or completion)"
            )


def refuse_infinite(f: Tensor, model_trace: Any, kept: Collection[str] = ()) -> None:
    """A log-density of -inf has no gradient: say which site gave it, and whether the guide was ``kept`` from it."""
    if bool(f.isfinite().all()):
        return
    for name, site in model_trace.nodes.items():
        if site["type"] == "sample" and "log_prob" in site and not bool(site["log_prob"].isfinite().all()):
            refuse = refuse_no_number if site["is_observed"] else refuse_no_density  # what is no number is no rejection
            refuse(name, site["log_prob"].detach())
            share = float((~site["log_prob"].isfinite()).double().mean())
            notes = notes_of(site)
            constrained = notes.constrains
            if notes.matcher is not None and any(part.acts != "mask" for part in notes.matcher.parts):
                raise RunError(
                    f"SVI cannot learn from a hard rejection: {share:.0%} of the guide's draws do not meet {name!r}, "
                    f"and no guide can be kept to a Predicate, a test of text. Use SMC or importance sampling"
                )
            if constrained in kept:
                raise RunError(
                    f"SVI cannot learn from dead ends: {share:.0%} of the guide's draws kept to {name!r} while they "
                    f"could and ended without meeting it. Raise max_new_tokens, or use another engine: SMC or "
                    f"importance sampling for a posterior, TreePlanner for a decision"
                )
            if constrained is not None:
                raise RunError(
                    f"SVI cannot learn from a hard rejection: {share:.0%} of the guide's draws do not meet {name!r}, "
                    f'and nothing keeps them to it. Use guide="auto", with constrain(...) right after its completion, '
                    f"or SMC or importance sampling"
                )
            raise RunError(
                f"SVI cannot learn from a hard rejection: {name!r} is -inf on {share:.0%} of the guide's draws. "
                f"Use a finite penalty, or SMC or importance sampling"
            )
    raise RunError("SVI met a log-density that is not finite")
