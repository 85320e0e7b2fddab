"""The judge: every value of every latent, weighed exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.core.validation import at_least
from ppl_align.engines.base import Engine, Task, all_dead
from ppl_align.lm.base import Ids
from ppl_align.lm.tree import as_sequence, enumerate_completions, score_completions
from ppl_align.particles.particles import Particles, Site
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.of_particles import of_particles
from ppl_align.program.refusals import refuse_no_density
from ppl_align.runner.runner import Runner


@dataclass(frozen=True)
class Enumeration(Engine):
    """Enumerate the whole support: log Z, probabilities and expectations without error.

    For toys, and for real LMs over one or two tokens (``max_new_tokens=1``: V sequences from one forward; ``top_k``
    cuts the tree). Prefixes are shared, so the LM sees each prefix once. The result has R = 1 and one particle per
    assignment; ``log_weight`` holds log p(x, data) + log N, so that ``log_evidence`` is log Z.

    ``max_sequences``  refuse politely (``InputError``) beyond this many assignments
    ``candidates``     by completion site: the only answers to consider (texts or ids), for classification and short
                       answers with a real LM. Each is scored exactly, EOS included, prefixes shared; the posterior is
                       that of the program *given that the answer is one of them*, and ``log_evidence`` the log of the
                       mass they hold together: sum over candidates of p0(c) w(c)
    """

    max_sequences: int = 100_000
    candidates: Mapping[str, Sequence[str | Sequence[int]]] | None = None

    name: ClassVar[str] = "exact"

    def __post_init__(self) -> None:
        at_least(1, max_sequences=self.max_sequences)
        for site, listed in (self.candidates or {}).items():
            if isinstance(listed, str) or not listed:
                raise InputError(f"candidates[{site!r}] is a list of at least one answer, got {listed!r}")

    def _infer(self, task: Task) -> Posterior:
        def expand(site: Site, size: int) -> tuple[Tensor, Tensor, Tensor]:
            found = self._expand(site, size)
            task.progress(len(found[0]), self.max_sequences, site.name)
            return found

        particles = Runner(task.program()).branch(Particles(1), expand)
        self._check_candidates(particles)
        joint = sum(particles.log_prior.values(), particles.log_potential)
        if bool(joint.isneginf().all()):
            raise all_dead("in the whole support", particles)
        log_weight = (joint + math.log(particles.size))[None]
        return of_particles(particles, log_weight, Kind.ENUMERATION, log_proposal=None)

    def _expand(self, site: Site, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Every value of the site for every assignment: ``(parent [P'], value [P', ...], log_prior [P'])``."""
        batch = site.fn.batch_shape[1:]
        parent, held, log_p = torch.arange(size), None, torch.zeros(size, dtype=torch.float64)
        for element in range(math.prod(batch)):
            support = (_completions if site.is_completion else _support)(self, site, element)
            copies = torch.tensor([len(support[p][1]) for p in parent.tolist()])
            self.refuse_too_many(int(copies.sum()), site.name)
            chosen = torch.repeat_interleave(torch.arange(len(parent)), copies)
            new = torch.cat([support[p][0] for p in parent.tolist()])[:, None]
            log_p = log_p[chosen] + torch.cat([support[p][1] for p in parent.tolist()])
            held = new if held is None else torch.cat([held[chosen], new], 1)
            parent = parent[chosen]
        assert held is not None
        return parent, held.reshape(len(parent), *batch, *held.shape[2:]), log_p

    def _check_candidates(self, particles: Particles) -> None:
        unknown = sorted(set(self.candidates or ()) - set(particles.sources))
        if unknown:
            raise InputError(
                f"candidates for {unknown[0]!r}: the program has no completion of that name (it has "
                f"{', '.join(map(repr, particles.sources)) or 'none'})"
            )

    def refuse_too_many(self, count: float, name: str) -> None:
        """Raises ``InputError`` for more assignments, at the site ``name``, than there may be."""
        if count > self.max_sequences:
            raise InputError(
                f"Enumeration would list more than {self.max_sequences} assignments at {name!r} ({count} already): "
                f"lower max_new_tokens, declare top_k=, raise max_sequences, or use another engine"
            )


def _support(engine: Enumeration, site: Site, element: int) -> list[tuple[Tensor, Tensor]]:
    """An ordinary latent: (values [S, ...], log p [S]) for each assignment."""
    if not getattr(site.fn, "has_enumerate_support", False):
        raise InputError(f"Enumeration cannot enumerate {site.name!r} ({type(site.fn).__name__}): use another engine")
    values = site.fn.enumerate_support(expand=True)
    log_p = site.fn.log_prob(values).double()
    refuse_no_density(site.name, log_p)
    size, event = site.fn.batch_shape[0], site.fn.event_shape
    values, log_p = values.reshape(len(values), size, -1, *event), log_p.reshape(len(log_p), size, -1)
    return [(values[:, p, element], log_p[:, p, element]) for p in range(size)]


def _completions(engine: Enumeration, site: Site, element: int) -> list[tuple[Tensor, Tensor]]:
    """A completion: (tokens [S, T], log p [S]) for each assignment, one tree per distinct prompt."""
    index = site.fn.index.reshape(site.fn.batch_shape[0], -1)[:, element].tolist()
    listed = (engine.candidates or {}).get(site.name)
    if listed is None:
        check = partial(engine.refuse_too_many, name=site.name)
        trees = {i: enumerate_completions(site.fn, i, check) for i in set(index)}
    else:
        sequences = _sequences(site, listed)
        trees = {i: score_completions(site.fn, i, sequences) for i in set(index)}
    return [trees[i] for i in index]


def _sequences(site: Site, listed: Sequence[str | Sequence[int]]) -> list[Ids]:
    """The candidates as whole sequences of ids; raises ``InputError`` for one that is impossible or there twice."""
    prior = site.fn
    found: dict[Ids, Any] = {}
    for answer in listed:
        ids = prior.lm.encode(answer) if isinstance(answer, str) else answer
        whole = as_sequence(prior, ids)
        if not whole:
            raise InputError(
                f"candidate {answer!r} of {site.name!r} cannot be an answer: it has {len(ids)} tokens and must "
                f"{'end within' if prior.can_end else 'have exactly'} max_new_tokens={prior.max_new_tokens}"
            )
        if whole in found:
            raise InputError(f"candidates of {site.name!r}: {answer!r} and {found[whole]!r} are the same tokens")
        found[whole] = answer
    return list(found)
