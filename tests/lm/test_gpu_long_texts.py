"""Runs that share forwards, texts that cross blocks and prompts that begin alike, on CUDA: ``pytest -m gpu``."""

from __future__ import annotations

import copy

import pytest
import torch
from toys.networks import network

from ppl_align import SMC, CausalLM, completion, reward
from ppl_align.core.turns import Turns
from ppl_align.lm import kv_cache, meeting, sharing
from ppl_align.lm.cached import CausalDecoder
from ppl_align.lm.kv_cache import Moves, select_rows
from ppl_align.testing.held import alone

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]
COMMON = (3, 8, 1, 1, 7, 0, 5)
PROMPTS = [(*COMMON, 2, 9, 9), (*COMMON, 4), COMMON, (*COMMON, 2, 5)]
MOVES = [  # parents and tokens
    ([0, 0, 3, 2], [2, 3, 3, 1]),
    ([2, 1, 0, 0, 2], [1, 9, 4, 10, 0]),
    ([4, 1, 1], [8, 8, 1]),
    ([0, 1, 2], [3, 3, 3]),
]


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "SHORT", 0)
    monkeypatch.setattr(kv_cache, "BLOCK", 3)
    monkeypatch.setattr(sharing, "SHARED", 4)


def said(decoder) -> tuple[torch.Tensor, list[tuple[int, ...]]]:
    """What a decoder says while its rows move, and of which rows."""
    rows, found = list(PROMPTS), [decoder.log_probs]
    seen = list(rows)
    for parents, tokens in MOVES:
        decoder = decoder.extend(torch.tensor(parents), torch.tensor(tokens))
        rows = [(*rows[parent], token) for parent, token in zip(parents, tokens, strict=True)]
        seen += rows
        found.append(decoder.log_probs)
    return torch.cat(found).cpu().double(), seen


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_rows_that_move_are_as_on_the_cpu(kind: str):
    model = network(kind)
    decoder = CausalLM(model, device="cuda").start(PROMPTS)
    assert (decoder.prefix is not None) == (kind != "mistral")
    found, rows = said(decoder)
    torch.testing.assert_close(found, alone(model, rows), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_texts_are_scored_as_on_the_cpu(kind: str):
    model = network(kind)
    tokens = torch.randint(11, (len(PROMPTS), 5))
    found = CausalLM(model, device="cuda").token_log_probs(PROMPTS, tokens.cuda())
    torch.testing.assert_close(found.cpu(), CausalLM(model).token_log_probs(PROMPTS, tokens), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_half_precision_is_no_worse_than_it_was(kind: str, dtype: torch.dtype):
    """Root mean square, nats a token, against the same weights in double precision."""
    lm = CausalLM(network(kind), device="cuda", dtype=dtype)
    assert sharing.can_share(lm)
    exact = copy.deepcopy(lm.model).cpu().double()
    off = {}
    for shared in (0, len(COMMON) - 1):
        found, rows = said(CausalDecoder.after(lm, PROMPTS, shared=shared))
        off[shared] = float((found - alone(exact, rows)).square().mean().sqrt())
    assert off[len(COMMON) - 1] < 1.5 * off[0] < 100 * torch.finfo(dtype).eps


def test_nobody_waits_for_rows_that_move():
    decoder = CausalLM(network(), device="cuda").start(PROMPTS).extend(torch.arange(4), torch.arange(4))
    torch.cuda.set_sync_debug_mode("error")
    try:
        select_rows(decoder.cache, Moves.of(torch.tensor([0, 3, 2, 2]), decoder.lm.device))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_runs_that_share_forwards_score_their_own_texts():
    lm = CausalLM(network(), device="cuda")

    def program(prompt: list[int]) -> None:
        x = completion("x", lm, prompt, max_new_tokens=6)
        y = completion("y", lm, (prompt, x, [4, 1]), max_new_tokens=4)
        reward("r", lambda t: (t == 1).double().sum(-1), y.tokens)

    prompts = [[*COMMON, 1], [*COMMON, 2, 2], [*COMMON, 5], [9]]
    works = [lambda p=p: SMC(8, 2, twist="prefix").run(program, p, seed=0) for p in prompts]
    for outcome in Turns(meeting.serve).run(works):
        for name, site in outcome.value.completions.items():
            log_p = site.source.log_prob(site.tokens).double().cpu()
            torch.testing.assert_close(outcome.value.log_prior[name].cpu(), log_p, atol=1e-3, rtol=0)
