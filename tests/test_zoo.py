"""Every architecture that can be built small: as the network says without a cache, or refused in one line."""

from __future__ import annotations

import pytest
import transformers

from ppl_align.testing.held import hold
from ppl_align.testing.zoo import ZOO, network


@pytest.fixture(autouse=True)
def quiet_transformers():
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # which fast kernels are not installed
    yield
    transformers.utils.logging.set_verbosity(level)


@pytest.mark.parametrize("name", ZOO)
def test_decoding_and_scoring_are_the_networks_own(name: str):
    held = hold(network(name))
    if held.plan == "refused":
        assert held.kind in held.said
        assert "\n" not in held.said
        assert any(word in held.said for word in ("nats", "encoder", "cannot"))
    else:
        assert held.off < 1e-4
        assert ("runs without its cache" in held.said) == (held.plan == "recompute")


def test_there_are_enough_of_them():
    assert len(ZOO) >= 60
