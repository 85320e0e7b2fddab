"""Temperature, top-k and top-p are numbers, the same for all texts: anything else is one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys.lms import FLAT_ABC

from ppl_align import SVI, completion, reward
from ppl_align.core.errors import InputError


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p"])
@pytest.mark.parametrize("value", [torch.tensor([0.5, 1.0]), torch.ones(1), "1", [1], True, 1j])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(InputError, match=f"{name} must be a (whole )?number, one for all texts, got") as caught:
        FLAT_ABC.completion("a", 2, **{name: value})
    assert "\n" not in str(caught.value)
    assert ("power(name, x, alpha)" in str(caught.value)) == isinstance(value, torch.Tensor)


def test_a_whole_number_of_tokens():
    with pytest.raises(InputError, match="top_k must be a whole number"):
        FLAT_ABC.completion("a", 2, top_k=1.5)
    with pytest.raises(InputError, match="temperature must be a number"):
        FLAT_ABC.completion("a", 2, temperature=None)


@pytest.mark.parametrize("make", [float, np.float64, lambda x: torch.tensor(x, dtype=torch.float64)])
def test_numbers_of_any_kind(make):
    source = FLAT_ABC.completion("a", 2, temperature=make(0.5), top_p=make(0.9))
    assert source.warp == FLAT_ABC.completion("a", 2, temperature=0.5, top_p=0.9).warp
    assert hash(source.warp) == hash(FLAT_ABC.completion("a", 2, temperature=0.5, top_p=0.9).warp)
    assert FLAT_ABC.completion("a", 2, top_k=np.int64(2)).warp == FLAT_ABC.completion("a", 2, top_k=2).warp


@pytest.mark.parametrize(("length", "kind"), [(2, "table"), (60, "markov")])
def test_a_guide_says_what_it_is(length, kind):
    def program():
        reward("r", lambda t: (t == 1).sum(-1).double(), completion("x", FLAT_ABC, "a", max_new_tokens=length).tokens)

    guide = SVI(num_steps=2).run(program).guide
    assert repr(guide) == f"AutoGuide('auto', rank=4, sites={{'x': '{kind}'}})"
