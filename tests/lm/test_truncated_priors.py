"""A prior with top-k or top-p, and a proposal that is another network: what q may write is for the prior to say.

A top set of q's own would miss some of the prior's, and what is never drawn is in no estimate."""

from __future__ import annotations

import pyro
import pytest
import torch
from guides.test_guides import check_unbiased, make_guide
from toys.lms import SPELLED
from toys.oracles import canonical_sequences

from ppl_align import SMC, SVI, Enumeration, ImportanceSampling, MarkovLM, Product, completion, constrain, reward
from ppl_align.constraints import Regex
from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError
from ppl_align.core.runs import run_memory
from ppl_align.engines.conditional import ConditionalSMC
from ppl_align.engines.svi.elbo import LeaveOneOutELBO
from ppl_align.lm.decoding import Population
from ppl_align.lm.warp import Warp
from ppl_align.testing.programs import EOS, count_score, markov
from ppl_align.testing.statistics import MAX_SPREAD, bonferroni_z, evidence_z, mean_z

OTHER = markov(seed=4)  # ranks the tokens otherwise than EOS does
NEVER_1 = torch.tensor([0.0, -torch.inf, 0.5], dtype=torch.float64)
HOLES = MarkovLM(NEVER_1.expand(3, 3), NEVER_1, eos_id=2)
CUTS = {"top_k": {"top_k": 2}, "top_p": {"top_p": 0.7}, "all": {"temperature": 1.5, "top_k": 2, "top_p": 0.9}}
Z = bonferroni_z(20)


def cut(lm, prompt, length, warp):
    def program():
        x = completion("x", lm, prompt, max_new_tokens=length, **warp)
        reward("r", lambda t: 0.7 * (t == 1).sum(-1) - 0.4 * (t[..., 0] == 0) + 0.2 * (t == 3).sum(-1), x.tokens)

    return program


def every(lm, length):
    return canonical_sequences(lm.vocab_size, length, (lm.eos_id,), lm.eos_id)


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize(
    "engine",
    [
        ImportanceSampling(32, 300, proposal=OTHER),
        SMC(32, 300, proposal=OTHER, twist="prefix", ess_threshold=0.9),
    ],
    ids=["importance", "smc"],
)
def test_another_lm_proposes_all_that_the_prior_can_write(engine, name):
    program = cut(EOS, [], 3, CUTS[name])
    z, spread = evidence_z(engine.run(program, seed=1), Enumeration().run(program).log_evidence.item())
    assert abs(z) < Z
    assert spread < MAX_SPREAD


@pytest.mark.parametrize(("pattern", "proposal"), [("a+b+", OTHER), ("aab", HOLES)], ids=["other", "holes"])
def test_a_constraint_on_top_of_it(pattern, proposal):
    """Where a proposal can write nothing of what both allow, it is uniform there."""

    def program():
        x = completion("x", SPELLED, [], max_new_tokens=3, top_k=2)
        constrain("c", Regex(pattern), x)
        reward("r", count_score, x.tokens)

    exact = Enumeration().run(program).log_evidence.item()
    z, spread = evidence_z(ImportanceSampling(32, 300, proposal=proposal).run(program, seed=3), exact)
    assert abs(z) < Z
    assert spread < MAX_SPREAD


@pytest.mark.parametrize("name", ["none", *CUTS])
def test_a_draw_is_scored_as_it_was_drawn(name):
    """And a text that is no draw has the probability that the draws say: they sum to 1 over what the prior writes."""
    warp = {"none": {"temperature": 0.6}, **CUTS}[name]
    source = EOS.completion([], 3, **warp)
    tokens = every(EOS, 3)
    log_q = source.proposed_log_probs(OTHER, tokens).sum(-1)
    assert float(log_q.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert torch.equal(log_q.isneginf(), source.log_prob(tokens).isneginf())
    population = Population(source.expand([200]), OTHER).run()
    torch.testing.assert_close(
        source.proposed_log_probs(OTHER, population.tokens).sum(-1), population.log_q, rtol=0, atol=1e-12
    )
    assert bool((population.log_p > -torch.inf).all())


def test_proposing_is_confined_and_normalised():
    inside = torch.tensor([[True, True, False], [True, True, False], [True, True, True]])
    log_q = torch.tensor([[0.2, 0.2, 0.6], [0.0, 0.0, 1.0], [0.0, 0.5, 0.5]]).log()
    want = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    torch.testing.assert_close(Warp(2.0, top_k=1).propose(log_q, inside).exp(), want)


@pytest.mark.parametrize(
    "name", [*(pytest.param(cut, marks=pytest.mark.statistical) for cut in ("top_k", "top_p")), "all"]
)
def test_gradient_of_the_lora_guide(name, tiny_llama):
    """The support hangs on the prior alone, so q is differentiable; estimates against the enumerated gradient."""
    program, guide, source = lora(tiny_llama, name)
    check_unbiased(program, guide, source, draws=24, repeats=50)


def lora(tiny_llama, name, scale=0.3):
    warp = {"none": {}, **CUTS}[name]
    program = cut(tiny_llama, [5, 0], 3, warp)
    guide = make_guide(program, "lora")
    with torch.no_grad():
        for key, p in guide.sites["x"].named_parameters():
            if "lora_B" in key:
                p.copy_(scale * torch.randn_like(p))
    return program, guide, tiny_llama.completion([5, 0], 3, **warp)


@pytest.mark.parametrize("name", ["none", *CUTS])
def test_a_lora_draw_is_scored_as_it_was_drawn(name, tiny_llama):
    """While decoding, in training, read again, and by the engines: one q."""
    _, guide, source = lora(tiny_llama, name)
    part, source = guide.sites["x"], source.expand([300])
    draw = part.draw(source)
    again = part.log_prob(source, draw.tokens)
    torch.testing.assert_close(again.detach(), draw.log_q, atol=1e-5, rtol=0)
    population = Population(source, part.proposal()).run()
    torch.testing.assert_close(part.log_prob(source, population.tokens).detach(), population.log_q, atol=1e-5, rtol=0)
    if draw.score is None:
        return
    torch.testing.assert_close(draw.log_p.float(), source.log_prob(draw.tokens), atol=1e-5, rtol=0)
    kept = draw.score()
    torch.testing.assert_close(kept, again, atol=1e-5, rtol=0)
    parameters = [p for p in part.parameters() if p.requires_grad]
    one, two = (torch.autograd.grad(log_q.sum(), parameters) for log_q in (kept, again))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_an_untrained_lora_guide_is_the_prior(tiny_llama):
    for name in CUTS:
        _, guide, source = lora(tiny_llama, name, scale=0.0)
        draw = guide.sites["x"].draw(source.expand([50]))
        torch.testing.assert_close(draw.log_q, draw.log_p, atol=1e-5, rtol=0)


def test_the_prior_is_read_once_in_training(tiny_llama):
    """Its own pass says where q may go and what log p0 is; what is scored anew is the adapted network only."""
    program, guide, _ = lora(tiny_llama, "top_k")
    with measure() as cost, run_memory(), pyro.get_param_store().scope():
        LeaveOneOutELBO(8, 0).loss_and_surrogate(program, guide, (), {})
    assert cost.scored_tokens == 8 * 3
    assert cost.lm_forwards <= 2 * 3 + 2


@pytest.mark.parametrize("name", ["top_k", "top_p"])
@pytest.mark.parametrize("steps", [2, pytest.param(40, marks=pytest.mark.statistical)])
def test_a_trained_lora_guide_is_weighed_honestly(steps, name, tiny_llama):
    program = cut(tiny_llama, [5, 0], 3, CUTS[name])
    exact = Enumeration().run(program)
    run = SVI(steps, 16, 200, guide="lora", learning_rate=0.01).run(program, seed=0)
    tokens = exact.completions["x"].tokens[0]
    source = tiny_llama.completion([5, 0], 3, **CUTS[name]).expand([len(tokens)])
    log_q = run.guide.sites["x"].log_prob(source, tokens).detach()
    assert float(log_q.exp().sum()) == pytest.approx(1.0, abs=1e-5), "all of what the prior can write, and no more"
    assert float((exact.weights.reshape(-1).log() - log_q).max()) < 1.5, "no weight is so large that z misleads"
    again = ImportanceSampling(16, 200, proposal=run.guide).run(program, seed=1)
    for posterior in (run, again):
        z, spread = evidence_z(posterior, exact.log_evidence.item())
        assert abs(z) < Z
        assert spread < MAX_SPREAD


def test_an_exact_draw_can_be_retained():
    """Conditional SMC scores the draw it retains under q: -inf there would be a particle of infinite weight."""
    program = cut(EOS, [], 3, CUTS["top_p"])
    exact = Enumeration().run(program)
    run = ConditionalSMC(ImportanceSampling(16, 300, proposal=OTHER), exact).run(program, seed=2)
    assert bool(run.log_weight.isfinite().all())
    inverse = (exact.log_evidence.item() - run.log_evidence).exp()  # E[1 / Zhat_c] = 1 / Z
    assert abs(float(mean_z(inverse, 1.0))) < Z


@pytest.mark.parametrize(
    ("proposal", "says"),
    [
        (markov(vocab=4, seed=4), "4 tokens"),
        (markov(vocab=2, eos_id=1), "2 tokens"),
        (lambda rows: rows.log_probs[:, :2], r"\[1, 2\]"),
        (lambda rows: rows.log_probs[0], r"\[3\]"),
    ],
)
def test_a_proposal_over_other_tokens_is_refused(proposal, says):
    with pytest.raises(InputError, match=says) as caught:
        ImportanceSampling(4, proposal=proposal).run(cut(EOS, [], 2, {}))
    assert "\n" not in str(caught.value)


def test_a_proposal_that_misses_something_is_remarked_on():
    def greedy(rows):
        return Warp(top_k=1)(rows.log_probs)

    def wide(rows):
        return torch.zeros_like(rows.log_probs).log_softmax(-1)

    program = cut(EOS, [], 3, {})
    for proposal in (greedy, HOLES, Product([EOS, OTHER], plausible=0.9)):
        (line,) = ImportanceSampling(4, proposal=proposal).run(program).warnings
        assert "probability zero" in line
        assert "\n" not in line
    for proposal in (wide, OTHER, None):
        assert ImportanceSampling(4, proposal=proposal).run(program).warnings == ()
    for proposal in (wide, OTHER):
        assert ImportanceSampling(4, proposal=proposal).run(cut(EOS, [], 3, CUTS["top_k"])).warnings == ()
