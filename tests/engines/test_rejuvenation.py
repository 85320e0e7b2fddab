"""Rejuvenation: unfinished texts moved on the way leave E[Zhat] = Z; rows of two decodings become one population."""

from __future__ import annotations

import pytest
import torch
from conftest import SEED
from toys.contracts import oracle_of
from toys.tiny import tiny_llama, tiny_tokenizer

from ppl_align import SMC, CausalLM, Regex, completion, constrain, reward
from ppl_align.kernels import Cycle, IndependenceMH, InfillMH, SuffixMH
from ppl_align.kernels.place import Place
from ppl_align.runner.decode import Decode
from ppl_align.testing import PROGRAMS, Oracle
from ppl_align.testing.statistics import bonferroni_z, mean_z

REPLICATES = 20_000
Z = bonferroni_z(20)


class ByToken:
    """Cuts that hang on the tokens behind them."""

    reads_entropy = False

    def weights(self, texts, entropy):
        return 0.1 + 2.0 * texts.tokens.double()


KERNELS = {
    "suffix": SuffixMH(),
    "infill": InfillMH(size=1),
    "cycle": Cycle(IndependenceMH(), SuffixMH(cuts=ByToken())),
}


def deviation(name: str, kernel, **settings) -> float:
    """Of the mean of Zhat / Z from 1, standard errors."""
    smc = SMC(4, REPLICATES, twist="prefix", ess_threshold=1.0, rejuvenate=kernel, **settings)
    run = smc.run(PROGRAMS[name], seed=SEED)
    return float(mean_z((run.log_evidence - oracle_of(name).log_evidence).exp(), 1.0))


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("name", ["with_eos", "truncated", "raw_pyro"])
def test_zhat_is_unbiased_with_few_particles(name, kernel):
    assert abs(deviation(name, kernel)) < Z


def test_how_likely_the_cut_was_counts(monkeypatch):
    monkeypatch.setattr(Place, "log_chosen", lambda self, weights=None: torch.zeros(len(self.text)).double())
    assert abs(deviation("raw_pyro", SuffixMH(cuts=ByToken()))) > Z


def test_it_says_how_many_have_moved():
    run = SMC(64, 3, twist="prefix", every=2, rejuvenate=SuffixMH()).run(PROGRAMS["whole_prefix"], seed=SEED)
    moved = run.history["moved"]
    assert moved.shape == run.history["ess"].shape
    shares = moved[~moved.isnan()]
    assert float(shares.min()) > 0
    assert float(shares.max()) <= 1
    assert run.log_proposal is None


@pytest.fixture(scope="module")
def llama() -> CausalLM:
    return CausalLM(tiny_llama(), tiny_tokenizer())


@pytest.mark.parametrize("joins", [True, False])
def test_rows_that_are_joined_and_rows_that_are_read_anew(llama, monkeypatch, joins):
    """Where the accepted rows cannot be put together with the others, all texts are read once more."""

    def film() -> None:
        x = completion("x", llama, "the film", max_new_tokens=4)
        reward("r", lambda tokens: (tokens == 4).double().sum(-1), x.tokens, beta=0.5)

    if not joins:
        monkeypatch.setattr(Decode, "replace", lambda self, where, other: False)
    oracle = Oracle(film)
    smc = SMC(6, 1000, twist="prefix", ess_threshold=1.0, rejuvenate=Cycle(SuffixMH(), InfillMH()))
    run = smc.run(film, seed=SEED)
    assert abs(float(mean_z((run.log_evidence - oracle.log_evidence).exp(), 1.0))) < Z
    tokens = run.particles["x"].tokens.reshape(-1, 4)
    again = llama.completion("the film", 4).log_prob(tokens).double().reshape(run.log_weight.shape)
    torch.testing.assert_close(run.log_prior["x"], again, atol=1e-4, rtol=0)


def test_within_a_plate_and_under_a_constraint(llama):

    def model() -> None:
        x = completion("x", llama, "the film", max_new_tokens=3)
        constrain("words", Regex("( ?(was|good|bad))*"), x)
        reward("r", lambda tokens: (tokens == 4).double().sum(-1), x.tokens, beta=0.5)

    oracle = Oracle(model)
    smc = SMC(8, 2000, twist="prefix", ess_threshold=1.0, rejuvenate=InfillMH(size=2))
    run = smc.run(model, seed=SEED)
    assert abs(float(mean_z((run.log_evidence - oracle.log_evidence).exp(), 1.0))) < Z
    assert abs(deviation("plated", SuffixMH(), every=2)) < Z
