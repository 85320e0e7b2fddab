"""Scoring a whole support reads each distinct prefix once, whatever the policy."""

from __future__ import annotations

import torch

from ppl_align import CausalLM, completion, reward
from ppl_align.core.cost import measure
from ppl_align.lm.decoding import Rows
from ppl_align.lm.warp import log_normalise
from ppl_align.testing.oracle import Oracle


def test_a_policy_is_scored_on_distinct_prefixes(tiny_llama: CausalLM):
    def program(temperature: float = 1.0):
        x = completion("x", tiny_llama, [1, 2], max_new_tokens=3, temperature=temperature)
        reward("r", lambda t: (t == 3).double().sum(-1), x.tokens)

    def tempered(rows: Rows) -> torch.Tensor:
        assert len(rows.prefixes) == len(set(map(tuple, rows.prefixes.tolist())))
        return log_normalise(rows.log_probs / 0.7)

    oracle = Oracle(program)
    assert len(oracle.log_prior) == 1 + 6 + 6 * 6 * 7
    with measure() as cost:
        log_q = oracle.log_q(tempered)
    assert cost.lm_tokens == 7 + (6 * 7 + 1)  # prefixes of one token and of two, the ended one padded
    torch.testing.assert_close(log_q, Oracle(program, 0.7).log_prior, rtol=0, atol=1e-5)
