"""Guides: gradients against enumerated gradients, and what a trained guide is good for.

"The loss goes down" would have missed both silent zero gradients that are known of Pyro's estimators."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from toys.oracles import canonical_sequences

from ppl_align import SMC, SVI, CallableLM, CausalLM, Enumeration, ImportanceSampling, MarkovLM, completion, reward
from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError
from ppl_align.core.runs import run_memory
from ppl_align.engines.svi.elbo import LeaveOneOutELBO
from ppl_align.guides import AutoGuide, markov
from ppl_align.guides.auto import BETWEEN
from ppl_align.testing.oracle import Oracle
from ppl_align.testing.programs import EOS, PROGRAMS
from ppl_align.testing.statistics import RATE, bonferroni_z, evidence_z, gradient_test, mean_z, two_sided

TESTS = 20  # statistical tests in this file
Z = bonferroni_z(TESTS)


@pytest.fixture(scope="module")
def transformer_program(tiny_llama: CausalLM):
    def program():
        x = completion("x", tiny_llama, [1, 2], max_new_tokens=3)
        reward("r", lambda t: 0.7 * (t == 3).sum(-1) - 0.4 * (t[..., 0] == 5), x.tokens, beta=0.6)

    return program


def exact_gradient(program, guide, source):
    """d(-ELBO)/d(parameters) by enumeration: ELBO(q) = sum_x q(x) (log p(x, data) - log q(x))."""
    exact = Enumeration().run(program)
    tokens = exact.particles["x"].tokens[0]
    log_joint = (exact.log_weight[0] - math.log(len(tokens))).detach()
    log_q = guide.sites["x"].log_prob(source.expand([len(tokens)]), tokens)
    assert float(log_q.detach().exp().sum()) == pytest.approx(1.0, abs=1e-5), "the guide is a distribution"
    elbo = (log_q.exp() * (log_joint - log_q)).sum()
    parameters = [p for p in guide.sites["x"].parameters() if p.requires_grad]
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(-elbo, parameters)]).double(), float(elbo.detach())


def estimated_gradients(program, guide, draws, repeats):
    elbo = LeaveOneOutELBO(draws, 0)
    parameters = [p for p in guide.sites["x"].parameters() if p.requires_grad]
    gradients, losses = [], []
    for _ in range(repeats):
        with pyro.get_param_store().scope(), run_memory():
            loss, surrogate = elbo.loss_and_surrogate(program, guide, (), {})
        gradients.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(surrogate, parameters)]).double())
        losses.append(loss)
    return torch.stack(gradients), torch.tensor(losses)


def check_unbiased(program, guide, source, draws, repeats):
    want, elbo = exact_gradient(program, guide, source)
    got, losses = estimated_gradients(program, guide, draws, repeats)
    assert want.abs().max() > 1e-3, "a gradient of zero proves nothing"
    assert gradient_test(got, want).p_value > RATE / TESTS
    assert two_sided(float(mean_z(losses, -elbo)), repeats) > RATE / TESTS


def make_guide(program, kind, rank=2):
    guide = AutoGuide(program, kind, rank)
    with pyro.get_param_store().scope():
        guide()
    return guide


def test_gradient_of_the_table_guide():
    program = PROGRAMS["with_eos"]
    guide = make_guide(program, "table")
    with torch.no_grad():
        for p in guide.sites["x"].parameters():
            p.copy_(0.5 * torch.randn_like(p))
    check_unbiased(program, guide, EOS.completion([], 4), draws=3, repeats=250)


def test_gradient_of_the_head_guide_comes_from_decoding_alone(tiny_llama, transformer_program):
    guide = make_guide(transformer_program, "head")
    with torch.no_grad():
        guide.sites["x"].left.copy_(0.3 * torch.randn_like(guide.sites["x"].left))
    check_unbiased(transformer_program, guide, tiny_llama.completion([1, 2], 3), draws=24, repeats=80)
    with measure() as cost:
        estimated_gradients(transformer_program, guide, 8, 1)
    assert cost.scored_tokens == 0
    assert cost.lm_forwards <= 3  # the decode itself: log q, log p0 and the gradient come with it


def test_gradient_of_the_lora_guide(tiny_llama, transformer_program):
    guide = make_guide(transformer_program, "lora")
    with torch.no_grad():
        for name, p in guide.sites["x"].named_parameters():
            if "lora_B" in name:
                p.copy_(0.3 * torch.randn_like(p))
    check_unbiased(transformer_program, guide, tiny_llama.completion([1, 2], 3), draws=24, repeats=50)


def test_stored_score_is_the_log_probability_and_its_gradient(tiny_llama, transformer_program):
    """The surrogate of the head, against autograd through a second reading of the same draws."""
    guide = make_guide(transformer_program, "head").sites["x"]
    with torch.no_grad():
        guide.left.copy_(0.3 * torch.randn_like(guide.left))
    source = tiny_llama.completion([1, 2], 3).expand([20])
    draw = guide.draw(source)
    score, reread = draw.score(), guide.log_prob(source, draw.tokens)
    torch.testing.assert_close(score, reread, atol=1e-5, rtol=1e-5)
    weight = torch.randn(20, dtype=torch.float64)
    for one, two in zip(
        torch.autograd.grad((score * weight).sum(), list(guide.parameters())),
        torch.autograd.grad((reread * weight).sum(), list(guide.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)


def test_leave_one_out_has_less_variance_than_no_baseline():
    program = PROGRAMS["with_eos"]
    guide = make_guide(program, "table")
    quiet, _ = estimated_gradients(program, guide, 8, 80)

    class NoBaseline(LeaveOneOutELBO):
        def loss_and_surrogate(self, model, guide, args, kwargs):
            model_trace, guide_trace = next(iter(self._get_traces(model, guide, args, kwargs)))
            f = (self._per_draw(model_trace) - self._per_draw(guide_trace)).detach()
            return -f.mean().item(), -(f * self._per_draw(guide_trace, only_scored=True)).mean()

    elbo, noisy = NoBaseline(8, 0), []
    parameters = list(guide.sites["x"].parameters())
    for _ in range(80):
        with pyro.get_param_store().scope(), run_memory():
            _, surrogate = elbo.loss_and_surrogate(program, guide, (), {})
        noisy.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(surrogate, parameters)]))
    assert quiet.var(0).sum() < 0.7 * torch.stack(noisy).var(0).sum()


@pytest.mark.parametrize("kind", ["head", "lora"])
def test_network_guides_move_towards_the_posterior(kind, tiny_llama, transformer_program):
    exact = Enumeration().run(transformer_program)
    trained = SVI(num_steps=80, num_particles=16, num_replicates=60, guide=kind, rank=4, learning_rate=0.02)
    posterior = trained.run(transformer_program, seed=0)
    prior_kl = exact.log_evidence.item() - Enumeration().run(transformer_program).factors["r"][0].dot(
        exact.log_prior["x"][0].exp()
    )
    gap = exact.log_evidence.item() - posterior.log_weight.mean().item()
    assert gap < 0.5 * float(prior_kl)
    z, spread = evidence_z(posterior, exact.log_evidence.item())
    assert abs(z) < Z
    assert spread < 0.6
    improved = ImportanceSampling(16, 60, proposal=posterior.guide).run(transformer_program, seed=1)
    plain = ImportanceSampling(16, 60).run(transformer_program, seed=1)
    assert improved.log_evidence.std() < plain.log_evidence.std()
    steered = SMC(16, 60, proposal=posterior.guide, twist="prefix").run(transformer_program, seed=2)
    assert abs(evidence_z(steered, exact.log_evidence.item())[0]) < Z


def test_the_prior_is_untouched_by_its_lora_guide(tiny_llama, transformer_program):
    source = tiny_llama.completion([1, 2], 3)
    tokens = canonical_sequences(7, 3, (6,), 6)
    before = source.log_prob(tokens)
    posterior = SVI(num_steps=5, num_particles=4, num_replicates=2, guide="lora", learning_rate=0.1).run(
        transformer_program
    )
    torch.testing.assert_close(source.log_prob(tokens), before, rtol=0, atol=0)
    guide = posterior.guide.sites["x"]
    assert not torch.allclose(guide.log_prob(source.expand([len(tokens)]), tokens).float(), before)
    shared = {p.data_ptr() for p in tiny_llama.model.parameters()}
    frozen = [p for n, p in guide.adapted.named_parameters() if "lora" not in n]
    assert all(p.data_ptr() in shared for p in frozen), "the frozen weights are one copy"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # transformers, while peft loads
def test_a_lora_guide_saves_as_a_peft_adapter(tmp_path, tiny_llama, transformer_program):
    import peft
    from transformers import LlamaForCausalLM

    posterior = SVI(num_steps=5, num_particles=4, num_replicates=2, guide="lora", learning_rate=0.1).run(
        transformer_program
    )
    posterior.guide.save(tmp_path / "adapter")
    base = LlamaForCausalLM(tiny_llama.model.config)
    base.load_state_dict(tiny_llama.model.state_dict())
    loaded = CausalLM(peft.PeftModel.from_pretrained(base, tmp_path / "adapter"), prepack=False)
    tokens = canonical_sequences(7, 3, (6,), 6)
    want = posterior.guide.sites["x"].log_prob(tiny_llama.completion([1, 2], 3).expand([len(tokens)]), tokens)
    torch.testing.assert_close(loaded.completion([1, 2], 3).log_prob(tokens).double(), want.detach(), atol=1e-5, rtol=0)


class WholeSequences(dist.TorchDistribution):
    """A categorical over listed sequences: the plainest guide there is."""

    has_rsample = False
    arg_constraints = {}  # noqa: RUF012
    support = dist.constraints.independent(dist.constraints.nonnegative_integer, 1)

    def __init__(self, logits, sequences, batch_shape=torch.Size()):
        self.pick, self.sequences = dist.Categorical(logits=logits), sequences
        super().__init__(batch_shape, sequences.shape[1:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return WholeSequences(self.pick.logits, self.sequences, torch.Size(batch_shape))

    def sample(self, sample_shape=torch.Size()):
        return self.sequences[self.pick.sample(torch.Size(sample_shape) + self.batch_shape)]

    def log_prob(self, value):
        at = (value[..., None, :] == self.sequences).all(-1).int().argmax(-1)
        return self.pick.logits.log_softmax(-1)[at]


def test_a_guide_of_ones_own():
    """Any Pyro program with the model's latent sites; what it leaves out is drawn from the prior."""
    source = EOS.completion([], 3)
    sequences = canonical_sequences(3, 3, source.terminal, source.pad_id)

    def guide():
        logits = pyro.param("logits", torch.zeros(len(sequences), dtype=torch.float64))
        pyro.sample("x", WholeSequences(logits, sequences))

    program = PROGRAMS["raw_pyro"]
    exact = Enumeration().run(program)
    posterior = SVI(num_steps=200, num_particles=16, num_replicates=60, guide=guide).run(program, seed=0)
    assert exact.log_evidence.item() - posterior.log_weight.mean().item() < 0.02
    assert abs(evidence_z(posterior, exact.log_evidence.item())[0]) < Z
    weights = posterior.log_weight.reshape(-1)
    scored = Oracle(program).elbo(posterior.guide).item()  # of the trained guide, though its run is over
    assert abs(scored - weights.mean().item()) < Z * weights.std().item() / len(weights) ** 0.5
    again = ImportanceSampling(16, 60, proposal=posterior.guide).run(program, seed=5)
    assert abs(evidence_z(again, exact.log_evidence.item())[0]) < Z
    with pytest.raises(InputError, match="proposes whole values"):
        SMC(8, 1, proposal=posterior.guide, twist="prefix").run(program)


def test_continuous_latents_are_learned_with_pathwise_gradients():
    """A Gaussian latent upstream: log Z is known in closed form, and so is the part of Z with z in an interval.

    A Gaussian guide has lighter tails than a mixture of Gaussians, so Zhat has no usable variance; on an interval the
    weights are bounded and their mean has a normal limit."""
    low, high = -0.5, 2.0

    def program():
        z = pyro.sample("z", dist.Normal(0.5, 1.2))
        x = completion("x", EOS, [], max_new_tokens=2)
        ones = (x.tokens == 1).sum(-1).double()
        pyro.sample("y", dist.Normal(z + ones, 0.8), obs=torch.tensor(1.7))

    exact_x = Enumeration().run(lambda: completion("x", EOS, [], max_new_tokens=2))
    ones = (exact_x.particles["x"].tokens[0] == 1).sum(-1).double()
    joint = exact_x.log_prior["x"][0] + dist.Normal(0.5 + ones, (1.2**2 + 0.8**2) ** 0.5).log_prob(torch.tensor(1.7))
    log_z = torch.logsumexp(joint, 0).item()
    variance = 1 / (1 / 1.2**2 + 1 / 0.8**2)
    given_x = dist.Normal(variance * (0.5 / 1.2**2 + (1.7 - ones) / 0.8**2), variance**0.5)
    inside = float((joint.exp() * (given_x.cdf(torch.tensor(high)) - given_x.cdf(torch.tensor(low)))).sum())

    trained = SVI(num_steps=300, num_particles=32, num_replicates=200, learning_rate=0.05).run(program, seed=0)
    plain = ImportanceSampling(32, 200).run(program, seed=0)
    z, spread = evidence_z(plain, log_z)
    assert abs(z) < Z
    assert spread < 0.6
    for posterior in (trained, plain):
        within = (posterior.particles["z"] > low) & (posterior.particles["z"] < high)
        part = (posterior.log_weight.exp() * within).mean(-1)
        assert abs(float(mean_z(part, inside))) < Z
    assert log_z - trained.log_weight.mean() < 0.3 * (log_z - plain.log_weight.mean())
    with pytest.raises(InputError, match="cannot enumerate 'z'"):
        Enumeration().run(program)


def test_pyros_trace_graph_elbo_sees_a_reward_that_left_torch():
    """ids -> text -> float loses the dependency that TraceGraph_ELBO prunes by; without care its gradient is zero."""
    source = EOS.completion([], 2)
    sequences = canonical_sequences(3, 2, source.terminal, source.pad_id)

    def program():
        x = completion("x", EOS, [], max_new_tokens=2)
        reward("ones", lambda texts: [1.3 * text.count("1") for text in texts], x)

    logits = torch.randn(len(sequences), dtype=torch.float64, requires_grad=True)
    log_q = logits.log_softmax(-1)
    r = torch.tensor([1.3 * text.count("1") for text in EOS.decode_batch(sequences.tolist())])
    elbo = (log_q.exp() * (source.log_prob(sequences) + r - log_q)).sum()
    want = torch.autograd.grad(-elbo, logits)[0]

    estimator = pyro.infer.TraceGraph_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=0)
    gradients = []
    for _ in range(60):
        guide = lambda: pyro.sample("x", WholeSequences(logits, sequences))  # noqa: E731
        _, surrogate = estimator._loss_and_surrogate_loss(program, guide, (), {})
        gradients.append(torch.autograd.grad(surrogate, logits)[0])
    got = torch.stack(gradients)
    assert gradient_test(got, want).p_value > RATE / TESTS
    assert float(want.abs().max()) > 0.1


def test_a_guide_with_a_language_model_of_its_own_is_trained():
    """The scores of its draws carry the gradient: remembered ones would not."""

    def model() -> None:
        x = completion("x", MarkovLM(torch.zeros(3, 3).double(), eos_id=None), [0], max_new_tokens=2)
        reward("r", lambda tokens: (tokens == 1).double().sum(-1), x.tokens)

    def guide() -> None:
        logits = pyro.param("logits", torch.zeros(3, dtype=torch.float64))
        completion("x", CallableLM(3, lambda prefix: logits.expand(len(prefix), -1)), [0], max_new_tokens=2)

    trained = SVI(num_steps=60, num_particles=16, guide=guide).run(model).guide
    q = torch.softmax(trained.parameters["params"]["logits"].detach(), 0)
    assert q[1] > 0.45  # the posterior has e / (e + 2) = 0.576


def closed_over(make):
    """One LM for all runs, whose function reads the parameter of the run."""
    held = [torch.full((3,), 1 / 3)]
    lm = CallableLM(3, lambda prefix: held[0].log().expand(len(prefix), -1))

    def prior():
        held[0] = make()
        return lm

    return prior


def made_anew(make):
    """An LM of its own for each run of the program."""
    return lambda: MarkovLM(make().log().expand(3, 3))


@pytest.mark.parametrize("lm", [closed_over, made_anew])
@pytest.mark.parametrize("constrained", [False, True])
def test_a_prior_that_is_learned_is_never_scored_from_memory(lm, constrained):
    """The guide knows log p of what it draws, but not its gradient: without that, the parameter would not move.

    log Z = log sum_x p(x) exp(2 (number of 1s)) is largest where all of p is on 1."""

    def make():
        if constrained:
            return pyro.param("p", torch.full((3,), 1 / 3).double(), constraint=dist.constraints.simplex)
        return pyro.param("p", torch.zeros(3).double()).softmax(-1)

    def program():
        seen[:] = make().tolist()
        x = completion("x", prior(), [0], max_new_tokens=2)
        reward("r", lambda t: 2 * (t == 1).double().sum(-1), x.tokens)

    prior, seen = lm(make), []
    run = SVI(num_steps=40, num_particles=16, guide="table").run(program)
    assert seen[1] > 0.9
    by_now = torch.tensor(seen).log()[run.particles["x"].tokens].sum(-1)
    torch.testing.assert_close(run.log_prior["x"], by_now.double(), rtol=0, atol=1e-5)


def test_networks_learn_in_small_steps_and_tables_in_large_ones():
    """Whatever stands between a site and the parameters of its guide in Pyro's store."""
    rate, site = SVI().rate_of, f"x{BETWEEN}"
    assert [rate(site + own) for own in ("left", "right", "base.lora_A.guide.weight")] == [1e-3] * 3
    assert rate(site + markov.PARTS[0]) == 3e-2
    assert rate(site + "tables.1") == rate("my own") == 1e-1
    assert SVI(learning_rate=0.5).rate_of(site + "left") == 0.5
