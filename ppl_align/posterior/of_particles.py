"""A posterior from the particles of an engine: flat values [P, ...] become [R, N, ...], as users see them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ppl_align.core.errors import ModelError
from ppl_align.lm.completions import Completion
from ppl_align.particles.particles import Particles
from ppl_align.particles.per_particle import differing, for_each
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.result import Posterior
from ppl_align.program.plates import as_written


def of_particles(particles: Particles, log_weight: Tensor, kind: Kind = Kind.WEIGHTED, **fields: Any) -> Posterior:
    """R replicates of N particles that have run to the end of their program, with ``log_weight [R, N]``.

    ``fields``: those of the result that particles do not know; ``log_proposal=None`` of particles that were moved after
    they were drawn (by default, what their values were drawn with).

    Raises ``ModelError`` for a program without latents."""
    shape = tuple(log_weight.shape)
    if not particles.values:
        raise ModelError("the program has no latent site: there is nothing to infer; add a completion(...)")

    def view(value: Tensor) -> Tensor:
        return value.detach().cpu().reshape(*shape, *value.shape[1:])

    plates = {name: particles.plates.get(name, ()) for name in particles.values}
    sites: dict[str, Completion | Tensor] = {}
    for name, value in particles.values.items():
        source, value = particles.sources.get(name), as_written(value, plates[name], particles.nesting)
        sites[name] = view(value)
        if source is not None:
            own = value.shape[1:-1]  # the dimensions of its plates
            sites[name] = Completion(view(value), source.reshaped((*shape, *own)))
    history = dict(fields.pop("history", {}))
    if particles.answers:
        history["answers"] = dict(particles.answers)
    least = list(particles.log_lower.values())
    if least and None not in least:
        history["log_lower"] = sum(one for one in least if one is not None)
    if "log_proposal" not in fields:
        fields["log_proposal"] = view(particles.total_log_proposal)
    return Posterior(
        engine="",
        log_weight=log_weight,
        kind=kind,
        particles=sites,
        rewards={k: view(v) for k, v in particles.rewards.items()},
        scales={k: view(for_each(v, log_weight.numel())) for k, v in particles.scales.items()},
        drawn_scales=differing(particles.scales),
        targets=dict(particles.targets),
        factors={k: view(v) for k, v in particles.factors.items()},
        log_upper={k: view(for_each(v, log_weight.numel())) for k, v in particles.log_upper.items()},
        log_prior={k: view(v) for k, v in particles.log_prior.items()},
        lm=", ".join(sorted({source.lm.name for source in particles.sources.values()})),
        environment=tuple(particles.environment),
        plates=plates,
        history=history,
        **fields,
    )
