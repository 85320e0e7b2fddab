"""Every architecture that can be built small: as the network says without a cache, or refused in one line."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from ppl_align.testing.held import hold
from ppl_align.testing.zoo import ZOO, network

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("quiet_transformers")


def page():
    spec = importlib.util.spec_from_file_location("supported_models", ROOT / "docs" / "supported_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = page()


@pytest.mark.parametrize("name", ZOO)
def test_decoding_and_scoring_are_the_networks_own(name: str):
    held = hold(network(name))
    assert PAGE.row(name, held) in PAGE.PAGE.read_text(encoding="utf-8"), "run docs/supported_models.py"
    if held.plan == "refused":
        assert held.kind in held.said
        assert "\n" not in held.said
        assert any(word in held.said for word in ("nats", "encoder", "cannot"))
    else:
        assert held.off < 1e-4
        assert ("runs without its cache" in held.said) == (held.plan == "recompute")


def test_there_are_enough_of_them_and_the_page_has_all():
    assert len(ZOO) >= 60
    listed = re.findall(r"^\| (\S+) \| `", PAGE.PAGE.read_text(encoding="utf-8"), re.M)
    assert listed == list(ZOO), "run docs/supported_models.py"
