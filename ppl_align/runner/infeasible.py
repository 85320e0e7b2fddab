"""Resampling of infeasible completions: a policy that keeps to a hard constraint for certain.

A guide that is kept to a constraint token by token can still run into a dead end. As a policy it would break the
constraint now and then, and its J = E[log-likelihood] - KL(policy || p0) would be -inf. So the agent writes such a
text again, from the same history h, until it meets the constraint; the world is not asked again, and not tilted::

    pi'(a | h) = pi(a | h) / A(h),   A(h) = the probability under pi of meeting the constraint

A(h) is not known, but the number of tries n is geometric, and E[1 + 1/2 + ... + 1/(n-1)] = -log A(h), whatever the
text in the end (van Opheusden, Acerbi & Ma 2020, arXiv:2001.03985): added to log q, it leaves J unbiased.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_align.core.errors import RunError
from ppl_align.lm.completions import Completion
from ppl_align.lm.decoding import Population
from ppl_align.lm.growing import Growing
from ppl_align.particles.particles import Site

MAX_TRIES = 100
"""Tries in a row: half of the draws may end dead, and one text in 1e30 would not be written by then."""


def resample_infeasible(site: Site, population: Growing) -> None:
    """Replace the texts of a finished population that do not meet its restriction, in place.

    Raises ``RunError`` where a text ends dead ``MAX_TRIES`` times in a row."""
    source, proposal = population.source, getattr(population, "proposal", None)
    texts = _infeasible(population)
    index = source.index.reshape(-1)
    tries = 1
    while len(texts):
        if tries == MAX_TRIES:
            raise RunError(
                f"{site.name!r} ended without meeting its hard constraints {MAX_TRIES} times in a row: raise "
                f"max_new_tokens, or train longer"
            )
        new = Population(source.with_index(index[texts.to(index.device)]), proposal).run()
        where = texts.to(population.tokens.device)
        population.tokens[where], population.log_p[where] = new.tokens, new.log_p
        harmonic = sum(1 / k for k in range(1, tries + 1))
        population.log_q[where] = new.log_q + harmonic
        texts = texts[_infeasible(new)]
        tries += 1


def _infeasible(population: Growing) -> Tensor:
    """Which texts do not meet the restriction."""
    restriction, texts = population.source.restriction, Completion(population.tokens, population.source).ids
    return torch.arange(0) if restriction is None else (~restriction.accepts(texts)).nonzero()[:, 0]
