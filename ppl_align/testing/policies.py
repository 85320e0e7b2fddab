"""log q of a whole support, whatever way the policy is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.guides import AutoGuide
from ppl_align.guides.program import ProgramGuide
from ppl_align.guides.tokens import TokenGuide
from ppl_align.lm.base import LM
from ppl_align.lm.decoding import Rows
from ppl_align.particles.particles import Particles
from ppl_align.program import Program
from ppl_align.program.plates import all_with_room

if TYPE_CHECKING:
    from ppl_align.testing.oracle import Oracle


def score(oracle: Oracle, policy: Any) -> Tensor:
    """log q [S] float64 of every assignment of ``oracle`` under ``policy``: see :class:`~ppl_align.testing.Oracle`."""
    size = len(oracle.log_prior)
    if isinstance(policy, Tensor):
        if policy.shape != (size,):
            raise InputError(f"log q must have one entry for each of the {size} assignments, got {list(policy.shape)}")
        return policy.double()
    if isinstance(policy, (AutoGuide, ProgramGuide)):
        return _score_program(oracle, policy)
    if len(oracle.values) > 1:
        raise InputError("a policy over tokens can be scored where one completion is the only latent: give a guide")
    source = oracle.source()
    tokens = next(iter(oracle.values.values())).reshape(size, -1)
    if isinstance(policy, LM):
        return source.proposed_log_probs(policy, tokens).double().sum(-1)
    if isinstance(policy, TokenGuide):
        return policy.log_prob(source, tokens)
    if callable(policy):
        return _FromFunction(policy).log_prob(source, tokens)
    raise InputError(f"a policy is log q [S], an LM, a proposal or a guide, got {type(policy).__name__}")


class _FromFunction(TokenGuide):
    """A proposal ``Rows -> log_q [rows, V]``, scored as guides are."""

    def __init__(self, fn: Any) -> None:
        super().__init__()
        self.fn = fn

    def log_q(self, rows: Rows) -> Tensor:
        return self.fn(rows)


def _score_program(oracle: Oracle, guide: AutoGuide | ProgramGuide) -> Tensor:
    """Run the guide with every latent held at its value, and add up what its sites say."""
    size = len(oracle.log_prior)
    program = Program(oracle.model, oracle.args, oracle.kwargs)
    execution = program.run(Particles(size, oracle.values), draw=False)  # finds out how many plates the program has
    values = all_with_room(oracle.values, execution.plates, execution.nesting)
    with guide.trained() if isinstance(guide, ProgramGuide) else pyro.get_param_store().scope():
        with program.plate(size):
            held = poutine.condition(guide, data=values)
            trace = poutine.trace(held).get_trace(*oracle.args, **oracle.kwargs)
        trace.compute_log_prob()
    total = torch.zeros(size, dtype=torch.float64)
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and name in oracle.values:
            log_prob = node["log_prob"].double().cpu()
            full = torch.broadcast_shapes(log_prob.shape, (size, *(1,) * program.nesting))
            total = total + log_prob.expand(full).reshape(size, -1).sum(-1)
    return total
