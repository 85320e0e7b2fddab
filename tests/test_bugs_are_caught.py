"""Do the tests bite? Plausible bugs, seeded into the library one at a time; the checks must notice each of them.

Each bug is a small monkeypatch of one internal. The check that is named must fail with it, and the same call with the
same seed must pass without it. Exact answers are computed before anything is broken."""

from __future__ import annotations

from functools import lru_cache

import pyro
import pytest
import torch
from conftest import SEED

from ppl_align import SMC, ImportanceSampling
from ppl_align.core.runs import run_memory
from ppl_align.engines import sweep
from ppl_align.engines.elbo import LeaveOneOutELBO
from ppl_align.engines.sweep import Sweep
from ppl_align.guides import AutoGuide
from ppl_align.lm import decoding
from ppl_align.lm.decoding import Population
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.warp import Warp
from ppl_align.particles.resampling import SCHEMES
from ppl_align.testing import PROGRAMS, Oracle
from ppl_align.testing.contract import Case
from ppl_align.testing.statistics import RATE, gradient_test

BUGS, LOSSES = {}, {}
REPEATS = 300  # gradient estimates


def bug(check, program, engine):
    """Register a bug: ``check`` must fail when ``engine`` runs ``program`` with it."""

    def register(patch):
        BUGS[patch.__name__.replace("_", " ")] = (patch, check, program, engine)
        return patch

    return register


@lru_cache
def oracle(name):
    return Oracle(PROGRAMS[name])


def flat(rows):
    """A proposal that is far from every prior, and not normalised."""
    return torch.full_like(rows.log_probs, 0.3)


EAGER = SMC(16, twist="prefix", ess_threshold=1.0)
PLAIN = ImportanceSampling(64)
PROPOSED = ImportanceSampling(64, proposal=flat)


def around(monkeypatch, owner, name, wrapper):
    """``wrapper(original, *args)`` in place of ``original(*args)``."""
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))


def copies(of, ancestors, chosen):
    """Where each particle of a sweep comes from, flat."""
    replicates, particles = of.shape
    own = torch.arange(particles).expand(replicates, particles)
    return (torch.where(chosen[:, None], ancestors, own) + torch.arange(replicates)[:, None] * particles).reshape(-1)


# -- weights ------------------------------------------------------------------------------------------------------


@bug("Zhat", "with_eos", PLAIN)
def sign_of_the_weight(monkeypatch):
    around(monkeypatch, Sweep, "reweight", lambda original, self, psi, *rest: original(self, -psi, *rest))


@bug("Zhat", "fixed_length", PROPOSED)
def prior_term_forgotten_with_a_proposal(monkeypatch):
    def wrapper(original, self, *args):
        kept, self.log_prior = self.log_prior, {k: torch.zeros_like(v) for k, v in self.log_prior.items()}
        original(self, *args)
        self.log_prior = kept

    around(monkeypatch, Sweep, "reweight", wrapper)


@bug("Zhat", "fixed_length", PROPOSED)
def proposal_not_normalised(monkeypatch):
    def wrapper(original, logits, scratch=None):
        cdf, log_total = original(logits, scratch)
        return cdf, torch.zeros_like(log_total)

    around(monkeypatch, decoding, "cumulative", wrapper)


@bug("Zhat", "two_rewards", EAGER)
def weights_not_reset_after_resampling(monkeypatch):
    def wrapper(original, self, ancestors, chosen, population):
        carried = self.log_weight[copies(self, ancestors, chosen)]
        original(self, ancestors, chosen, population)
        self.log_weight = carried

    around(monkeypatch, Sweep, "resample", wrapper)


@bug("Zhat", "two_rewards", EAGER)
def evidence_of_earlier_populations_forgotten(monkeypatch):
    def wrapper(original, self, *args):
        kept = self.log_evidence
        original(self, *args)
        self.log_evidence = kept

    around(monkeypatch, Sweep, "resample", wrapper)


@bug("Zhat", "with_eos", EAGER)
def resampled_after_the_last_step_without_keeping_the_evidence(monkeypatch):
    def wrapper(original, self, *args, **kwargs):
        weights = torch.softmax(self.log_weight.reshape(self.shape), -1)
        kept = self.log_evidence
        self.resample(SCHEMES["systematic"](weights, None), torch.ones(self.shape[0], dtype=torch.bool), None)
        self.log_evidence = kept
        return original(self, *args, **kwargs)

    around(monkeypatch, Sweep, "posterior", wrapper)


@bug("Zhat", "with_eos", SMC(6, twist="prefix", ess_threshold=1.0))
def evidence_averaged_over_all_replicates_instead_of_each(monkeypatch):
    def wrapper(original, log_weight):
        return original(log_weight.reshape(-1)).expand(len(log_weight))

    around(monkeypatch, sweep, "log_mean_exp", wrapper)


# -- resampling ---------------------------------------------------------------------------------------------------


@bug("Zhat", "two_rewards", EAGER)
def ancestor_off_by_one(monkeypatch):
    original = SCHEMES["systematic"]
    monkeypatch.setitem(
        SCHEMES, "systematic", lambda weights, generator: (original(weights, generator) + 1) % weights.shape[-1]
    )


@bug("weights", "two_rewards", EAGER)
def ancestors_not_offset_by_replicate(monkeypatch):
    def wrapper(original, self, ancestors, chosen, population):
        offset = torch.arange(self.shape[0])[:, None] * self.shape[1]
        original(self, ancestors - offset * chosen[:, None], chosen, population)

    around(monkeypatch, Sweep, "resample", wrapper)


@bug("Zhat", "two_rewards", EAGER)
def stale_twist_after_resampling(monkeypatch):
    def wrapper(original, self, *args):
        kept = self.psi, self.absorbed
        original(self, *args)
        self.psi, self.absorbed = kept

    around(monkeypatch, Sweep, "resample", wrapper)


@bug("scores", "whole_prefix", EAGER)
def rows_of_the_network_not_readdressed(monkeypatch):
    def wrapper(original, self, ancestors):
        kept = self.row
        original(self, ancestors)
        self.row = kept.copy()

    around(monkeypatch, Population, "resample", wrapper)


@bug("scores", "upstream_latent", EAGER)
def upstream_latents_left_behind(monkeypatch):
    def wrapper(original, self, *args):
        kept = dict(self.values)
        original(self, *args)
        self.values = kept

    around(monkeypatch, Sweep, "resample", wrapper)


@bug("scores", "two_completions", EAGER)
def prompts_of_the_next_completion_left_behind(monkeypatch):
    """This library had it, and no statistical test had noticed; scoring again shows it at once."""

    def wrapper(original, self, *args):
        kept = self.waiting
        original(self, *args)
        self.waiting = kept

    around(monkeypatch, Sweep, "resample", wrapper)


# -- the prior ----------------------------------------------------------------------------------------------------


@bug("Zhat", "with_eos", PROPOSED)
def eos_term_missing_while_decoding(monkeypatch):
    def wrapper(original, self):
        before, was_alive = self.log_p.clone(), torch.from_numpy(self.alive.copy())
        original(self)
        ended = was_alive & ~torch.from_numpy(self.alive)
        self.log_p[ended] = before[ended]

    around(monkeypatch, Population, "step", wrapper)


@bug("scores", "with_eos", PLAIN)
def eos_term_missing_from_the_score(monkeypatch):
    def wrapper(original, self, value):
        return torch.where(torch.isin(value, torch.tensor(self.terminal)), 0.0, original(self, value))

    around(monkeypatch, CompletionDistribution, "token_log_probs", wrapper)


@bug("scores", "with_eos", PLAIN)
def padding_scored_after_eos(monkeypatch):
    monkeypatch.setattr(CompletionDistribution, "ended_before", lambda self, x: torch.zeros_like(x, dtype=torch.bool))


@bug("scores", "tempered", PLAIN)
def temperature_ignored_when_scoring(monkeypatch):
    def wrapper(original, self, value):
        plain = CompletionDistribution(self.lm, self.prompts, self.index, self.max_new_tokens, Warp(), self.stop_ids)
        return original(plain, value)

    around(monkeypatch, CompletionDistribution, "token_log_probs", wrapper)


@bug("weights", "tempered", PLAIN)
def temperature_ignored_when_drawing(monkeypatch):
    def wrapper(original, logits, scratch=None):
        return original(0.7 * logits)[0], original(logits)[1]

    around(monkeypatch, decoding, "cumulative", wrapper)


@pytest.mark.parametrize("name", BUGS)
def test_the_contract_catches(name, monkeypatch):
    patch, check, program, engine = BUGS[name]
    truth = oracle(program)

    def result():
        case = Case(engine, program, truth, seed=SEED, num_replicates=600, level=RATE / len(BUGS))
        assert case.ran.status == "passed"
        return case.judge(check)

    assert result().status == "passed"
    patch(monkeypatch)
    found = result()
    assert found.status == "failed"
    assert found.line.startswith("expected")


# -- losses -------------------------------------------------------------------------------------------------------


def loss(make):
    LOSSES[make.__name__.replace("_", " ")] = make
    return make


def parts(self, model, guide, args, kwargs):
    """``(log p, log p0, log q)`` of each draw, the last attached to the guide."""
    model_trace, guide_trace = next(iter(self._get_traces(model, guide, args, kwargs)))
    log_p, log_prior = self._per_draw(model_trace), self._per_draw(model_trace, only_scored=True)
    return log_p, log_prior, self._per_draw(guide_trace, only_scored=True)


def others(value):
    return (value.sum() - value) / (len(value) - 1)


@loss
def k3_estimate_of_the_kl_as_a_loss(log_p, log_prior, log_q):
    """Good as an estimate of KL(q || p0), but differentiated it is the gradient of KL(p0 || q)."""
    r = log_p - log_prior
    log_ratio = log_prior - log_q
    return -((r - others(r)) * log_q - (log_ratio.exp() - 1 - log_ratio)).mean()


@loss
def baseline_that_includes_the_draw_itself(log_p, log_prior, log_q):
    """Scales the gradient by (S - 1) / S: half of it is missing with two draws."""
    f = (log_p - log_q).detach()
    return -((f - f.mean()) * log_q).mean()


@loss
def advantages_divided_by_their_spread(log_p, log_prior, log_q):
    f = (log_p - log_q).detach()
    return -((f - others(f)) / f.std().clamp_min(1e-6) * log_q).mean()


@loss
def entropy_of_the_guide_forgotten(log_p, log_prior, log_q):
    return -((log_p - others(log_p)) * log_q).mean()


@loss
def gradient_through_the_log_ratio_only(log_p, log_prior, log_q):
    """As if the draws were reparameterised: what is left has expectation zero."""
    return -(log_p - log_q).mean()


@pytest.fixture(scope="module")
def guide():
    """A table far from the prior: near it, some of these losses agree to first order."""
    torch.manual_seed(20221122)
    made = AutoGuide(PROGRAMS["with_eos"], "table")
    with pyro.get_param_store().scope():
        made()
    (table,) = made.sites["x"].parameters()
    with torch.no_grad():
        table.copy_(1.5 * torch.randn_like(table))
    return made


def steps(guide, make):
    """What ``make(elbo, program, guide, args, kwargs)`` gives at each step of two draws; the same draws every time."""
    torch.manual_seed(SEED)
    elbo = LeaveOneOutELBO(2, 0)
    for _ in range(REPEATS):
        with pyro.get_param_store().scope(), run_memory():
            made = make(elbo, PROGRAMS["with_eos"], guide, (), {})
        yield made


def p_value_of_the_gradient(guide, surrogates):
    """Against the gradient by enumeration."""
    truth = oracle("with_eos")
    gradient = -next(iter(truth.gradient(truth.elbo, guide).values())).reshape(-1)
    (table,) = guide.sites["x"].parameters()
    estimates = [torch.autograd.grad(s, table, retain_graph=True)[0].reshape(-1) for s in surrogates]
    assert len(estimates) == REPEATS
    return gradient_test(torch.stack(estimates), gradient).p_value


@pytest.fixture(scope="module")
def traced(guide):
    return list(steps(guide, parts))


def test_the_gradient_of_the_library_passes(guide):
    own = (surrogate for _, surrogate in steps(guide, LeaveOneOutELBO.loss_and_surrogate))
    assert p_value_of_the_gradient(guide, own) > RATE / len(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_a_gradient_test_catches(name, guide, traced):
    """With the draws of the test above, which passes."""
    assert p_value_of_the_gradient(guide, (LOSSES[name](*step) for step in traced)) < RATE / len(LOSSES)
