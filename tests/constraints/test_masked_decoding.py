"""docs/masked-decoding.md: its tables are what its script computes, and what the script computes is right."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from ppl_align import SMC, ImportanceSampling, completion, constrain
from ppl_align.constraints import Regex
from ppl_align.testing.statistics import bonferroni_z

DOCS = Path(__file__).parents[2] / "docs"
Z = bonferroni_z(20)


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("masked_decoding", DOCS / "masked_decoding.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["toy", "particles"])
def test_the_page_says_what_the_script_computes(page, name):
    assert page.in_page(name)[2] == page.BLOCKS[name]()


def test_the_language_model_has_its_table(page):
    written = page.in_page("smollm2")[2]
    assert all(f"`{answer.strip()}`" in written for answer in page.ANSWERS)


def test_the_toys_laws_by_hand(page):
    laws = page.toy()
    prior = {"no": 0.25 * 0.7, "yes, of course": 0.6 * 0.02 * 0.8, "no, never": 0.25 * 0.2 * 0.9}
    z = sum(prior.values())
    masked = {"no": 0.25 / 0.85 * 0.7 / 0.9, "yes, of course": 0.6 / 0.85, "no, never": 0.25 / 0.85 * 0.2 / 0.9}
    assert laws.by_answer(laws.log_prior) == pytest.approx(prior)
    assert laws.by_answer(laws.log_masked) == pytest.approx(masked)
    assert laws.by_answer(laws.log_posterior) == pytest.approx({text: p / z for text, p in prior.items()})


def test_draws_of_the_engines_have_the_law_that_is_printed(page):
    """The mean of the normalised weights over replicates is the law of one draw out of N particles."""
    laws, lm = page.toy(), page.toy_lm()

    def model():
        form = Regex("yes, of course|no|no, never")
        constrain("format", form, completion("x", lm, "", max_new_tokens=4))

    for n in (1, 4):
        expected = page.resampled(laws.log_masked.exp(), laws.log_posterior.exp(), n)
        run = ImportanceSampling(n, 4000).run(model, seed=n)
        weights = run.log_weight.softmax(-1)
        texts = run.particles["x"].texts()
        for text, p in zip(laws.texts, expected.tolist(), strict=True):
            here = torch.tensor([t == text for t in texts]).reshape(weights.shape)
            share = (weights * here).sum(-1)
            assert abs(share.mean() - p) < Z * share.std() / len(share) ** 0.5
    run = SMC(256, 8).run(model, seed=0)
    assert run.log_evidence.mean().item() == pytest.approx(laws.log_evidence, abs=0.1)
