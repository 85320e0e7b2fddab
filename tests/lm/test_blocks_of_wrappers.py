"""Every LM draws blocks after what is written, and scores them alike, whatever it reads around the prompt."""

from __future__ import annotations

import pytest
import torch
from conftest import SEED
from toys.blocks import BlockLM
from toys.lms import ABCD as A
from toys.lms import OTHER_ABCD as B

from ppl_align import Enumeration, ImportanceSampling, Mixture, Product, Prompted, completion, reward
from ppl_align.constraints import Contains
from ppl_align.core.errors import InputError
from ppl_align.testing.statistics import mean_z
from ppl_align.twists import look_ahead

PROMPTS, TEXTS = [(0,), (0,), (1,), (1,)], [(), (1, 2), (3,), (3,)]
LMS = {
    "steps": A,
    "blocks": BlockLM(A),
    "blocks, drawn from something else": BlockLM(A, draws_from=B),
    "prompted": Prompted(A, before="b", after="c"),
    "prompted blocks": Prompted(BlockLM(A), before="b", after="c"),
    "mixture": Mixture([A, Prompted(B, after="d")]),
    "product": Product([A, B], [1.5, -0.5]),
}


def whole(lm, drawn):
    """log p of the texts with the block, less that of the texts, up to the end: by scoring whole texts, [m, k]."""
    source, scored = lm.completion([0], 5), []
    for prompt, text, block in zip(PROMPTS, TEXTS, drawn.tolist(), strict=True):
        row = torch.tensor([[*text, *block]])
        scored.append(lm.token_log_probs([prompt], row)[0, len(text) :])
    ended = source.ended_before(drawn)
    return torch.stack(scored).double().masked_fill(ended, 0.0), ended


@pytest.mark.parametrize("name", LMS)
def test_a_block_goes_on_after_the_text(name):
    lm = LMS[name]
    torch.manual_seed(SEED)
    block = lm.draw_block(PROMPTS, TEXTS, 3, lm.completion([0], 5))
    expected, ended = whole(lm, block.tokens)
    log_p, log_q = lm.score_block(PROMPTS, TEXTS, block.tokens, lm.completion([0], 5))
    for found, told in ((block.log_p, expected), (log_p, expected), (log_q, block.log_q.masked_fill(ended, 0.0))):
        assert torch.allclose(found.masked_fill(ended, 0.0), told.double(), atol=1e-5)


def program(lm):
    x = completion("x", lm, [0], max_new_tokens=3)
    reward("r", lambda tokens: (tokens == 1).double().sum(-1), x.tokens, beta=0.7, upper=3.0)


def test_a_persona_of_a_prior_that_only_draws_blocks():
    exact = Enumeration().run(program, Prompted(A, after="c"))
    run = ImportanceSampling(50, 80).run(program, Prompted(BlockLM(A), after="c"), seed=SEED)
    z = (run.log_evidence - float(exact.log_evidence)).exp()
    assert abs(float(mean_z(z, 1.0))) < 4.5


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Mixture([BlockLM(A), B]), "a mixture needs"),
        (lambda: Product([A, Prompted(BlockLM(B))]), "a product needs"),
        (lambda: look_ahead(BlockLM(A), Contains("b"), [0], 4), "looking ahead needs"),
    ],
    ids=["mixture", "product", "look ahead"],
)
def test_what_needs_next_tokens_says_so_when_it_is_made(make, what):
    with pytest.raises(InputError, match=what) as caught:
        make()
    assert "\n" not in str(caught.value)
