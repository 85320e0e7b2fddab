"""Rejection sampling against enumeration, and the bounds of rewards that it needs."""

from __future__ import annotations

import math
from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import SEED

from ppl_align import CallableLM, Exact, ImportanceSampling, Posterior, Rejection, completion, reward
from ppl_align.cli import main
from ppl_align.diagnostics import evidence
from ppl_align.engines.rejection import Forecast
from ppl_align.errors import InputError, ModelError, RewardError, RunError, TooManyDrawsError
from ppl_align.posterior.prior import drew_from_prior
from ppl_align.program import Program
from ppl_align.rewards import Toxicity, Vader, each
from ppl_align.testing.programs import EOS, FIXED, MEMORY, PROGRAMS, STEP, count_score
from ppl_align.testing.statistics import evidence_z, g_test, key_rows, probabilities, weighting_test

# Some 40 z-tests with fixed seeds: at 4.5 standard errors they raise a false alarm for fewer than one in 3000 seeds.
Z = 4.5
FALSE_ALARM = 3e-5  # of each of 26 tests against enumeration: one in 1000 seeds for all of them


# -- programs whose factors all have a largest value --------------------------------------------------------------


def upstream_latent():
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
    x = completion("x", FIXED, torch.stack([z, torch.ones_like(z)], -1), max_new_tokens=3)
    reward("r", count_score, x.tokens, beta=0.7, upper=3 * STEP)
    reward("tie", lambda same: same.double(), z == x.tokens[..., 0], weight=0.4, upper=1.0)


def downstream_latent():
    x = completion("x", EOS, [], max_new_tokens=3)
    z = pyro.sample("z", dist.Bernoulli(torch.sigmoid(0.9 * (x.tokens == 1).sum(-1) - 0.5)))
    reward("z", lambda z: z.double(), z, weight=1.1, upper=1.0)
    reward("zeros", lambda t: (t == 0).sum(-1) - 0.5, x.tokens, weight=-0.2, lower=-0.5)


def discrete_observation():
    x = completion("x", EOS, [], max_new_tokens=3)
    pyro.sample("y", dist.Binomial(2, torch.sigmoid(0.7 * (x.tokens == 1).sum(-1) - 0.4)), obs=torch.tensor(1.0))


def observed_exactly():
    x = completion("x", FIXED, [1], max_new_tokens=3)
    completion("y", EOS, ([2], x), obs=[1])


def plated():
    with pyro.plate("pair", 2):
        x = completion("x", FIXED, [[0], [1]], max_new_tokens=2)
    same = (x.tokens[..., 0, 0] == x.tokens[..., 1, 0])[..., None]
    reward("same", lambda same: same.double(), same, weight=0.8, upper=1.0)
    with pyro.plate("pair again", 2):
        reward("r", count_score, x.tokens, beta=0.9, upper=2 * STEP)


def does_not_apply():
    x = completion("x", FIXED, [1], max_new_tokens=3)
    reward("early", lambda texts: [None if text[0] == "2" else -float(text[0]) for text in texts], x, upper=0.0)


SHIPPED = ["with_eos", "observed_ending", "two_completions", "two_rewards", "hard_rejection", "nucleus", "text_reward"]
OWN = (upstream_latent, downstream_latent, discrete_observation, observed_exactly, plated, does_not_apply)
BOUNDED = {name: PROGRAMS[name] for name in SHIPPED} | {f.__name__: f for f in OWN}
LARGEST = {  # B by hand, nats
    "with_eos": 3.2 / 0.7,
    "two_completions": 2.1 + 2 * STEP / 0.9,
    "two_rewards": 3 * STEP / 1.5,
    "hard_rejection": 3 * STEP / 1.2,
    "nucleus": 3 * STEP / 0.8,
    "text_reward": 1.5 / 0.6,
    "upstream_latent": 3 * STEP / 0.7 + 0.4,
    "downstream_latent": 1.1 + 0.2 * 0.5,
    "plated": 0.8 + 2 * 2 * STEP / 0.9,
}
MANY = Rejection(num_particles=16, num_replicates=200, max_draws=2_000_000, num_pilot=500)


@pytest.fixture(scope="module")
def exact():
    return {name: Exact().run(program) for name, program in BOUNDED.items()}


@pytest.fixture(scope="module")
def drawn():
    return {name: MANY.run(program, seed=SEED + sum(map(ord, name))) for name, program in BOUNDED.items()}


# -- against enumeration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOUNDED)
def test_unbiased_evidence_and_proper_weighting(name, exact, drawn):
    z, spread = evidence_z(drawn[name], exact[name].log_evidence.item())
    assert 0 < spread < 0.6
    assert abs(z) < Z
    assert weighting_test(drawn[name], exact[name]).p_value > FALSE_ALARM


@pytest.mark.parametrize("name", BOUNDED)
def test_accepted_draws_are_draws_of_the_posterior(name, exact, drawn):
    """Weights ignored: they are independent and identically distributed."""
    counts = Counter(key_rows(drawn[name])[0])
    assert g_test(counts, probabilities(exact[name])).p_value > FALSE_ALARM


@pytest.mark.parametrize("name", BOUNDED)
def test_draws_are_independent_of_their_evidence(name, drawn):
    """Correlation of log Zhat_r with the replicate's mean likelihood, which the mean of all weights would not pass."""
    run = drawn[name]
    likelihood = sum(run.factors.values()).mean(-1)
    if float(likelihood.std()) < 1e-9:
        return
    correlation = torch.corrcoef(torch.stack([run.log_evidence, likelihood]))[0, 1]
    assert abs(float(correlation)) * math.sqrt(len(likelihood)) < Z


@pytest.mark.parametrize("name", BOUNDED)
def test_waiting_times_are_negative_binomial(name, exact, drawn):
    """E[n_r] = N / a, relative variance of Zhat as diagnosed from the waiting times and as found in the replicates."""
    run, count = drawn[name], len(drawn[name].log_weight)
    acceptance = math.exp(exact[name].log_evidence.item() - largest(name))
    waiting = run.history["num_draws"].double()
    assert abs(float(waiting.mean()) * acceptance / 16 - 1) < Z * math.sqrt((1 - acceptance) / 16 / count)
    ratio = (run.log_evidence - exact[name].log_evidence).exp()
    # a sample variance has a relative error of about sqrt((kurtosis - 1) / count); waiting times have little kurtosis
    assert float(ratio.var()) == pytest.approx(evidence.relative_variance(run), rel=Z * math.sqrt(4 / count))


@pytest.mark.parametrize(
    ("name", "particles"), [("does_not_apply", 2), ("downstream_latent", 2), ("observed_exactly", 3)]
)
def test_few_particles_show_the_bias_of_the_obvious_estimator(name, particles, exact):
    """N/n overestimates by a share of (1-a)/N; at N = 2 the relative variance of (N-1)/(n-1) is -log(a)/(1-a) - 1."""
    run = Rejection(particles, 2000, max_draws=10**6).run(BOUNDED[name], seed=SEED)
    ratio = (run.log_evidence - exact[name].log_evidence).exp()
    error = float(ratio.std()) / math.sqrt(2000)
    assert abs(float(ratio.mean()) - 1) < Z * error
    acceptance = math.exp(exact[name].log_evidence.item() - largest(name))
    naive = particles / run.history["num_draws"].double() / acceptance
    assert float(naive.mean()) - 1 > 2 * Z * float(naive.std()) / math.sqrt(2000)
    if particles == 2:
        squares = (ratio - 1).square()
        expected = -math.log(acceptance) / (1 - acceptance) - 1
        assert abs(float(squares.mean()) - expected) < Z * float(squares.std()) / math.sqrt(2000)
        tail = 1 / (run.history["num_draws"] - 1).double() ** 2 * (run.history["num_draws"] > 2)
        noise = float(tail.std()) / math.sqrt(2000) / acceptance**2
        assert evidence.relative_variance(run) == pytest.approx(expected, abs=Z * (noise + 2 * expected * error))


def largest(name):
    program = Program(BOUNDED[name], (), {}, 1)
    values = {}
    while (execution := program.run(values, draw=True)).pending is not None:
        values |= execution.drawn | {execution.pending.name: execution.pending.fn.sample()}
    bound = sum(execution.log_upper.values())
    assert bound == pytest.approx(LARGEST.get(name, 0.0), abs=1e-12)
    return bound


@pytest.mark.parametrize("name", BOUNDED)
def test_the_pilot_predicts_the_acceptance_and_the_draws(name, exact, drawn):
    acceptance = math.exp(exact[name].log_evidence.item() - largest(name))
    found, error = (drawn[name].history[key] for key in ("acceptance", "acceptance_se"))
    assert abs(found - acceptance) < Z * error
    assert error < 0.2 * acceptance
    forecast = MANY.forecast(BOUNDED[name], seed=drawn[name].seed)
    assert (forecast.acceptance, forecast.standard_error) == (found, error)  # the run's own pilot
    assert forecast.num_draws == pytest.approx(3200 / found)
    needed = int(drawn[name].history["num_draws"].sum())
    noise = math.hypot(error / acceptance, 1 / math.sqrt(3200))
    assert abs(needed / forecast.num_draws - 1) < Z * noise * 1.2
    assert "\n" not in str(forecast)
    assert f"{forecast.num_draws:,.0f} draws" in str(forecast)


def test_the_price_is_in_proportion_to_the_draws():
    """Up to the prefixes and texts that larger batches share: few, among 40 equally likely tokens."""
    flat = CallableLM(40, lambda prefix: torch.zeros(len(prefix), 40), eos_id=0)
    asked = []

    def program():
        x = completion("x", flat, [], max_new_tokens=8)
        reward("r", lambda t: asked.append(len(t)) or (t > 30).double().mean(-1), x.tokens, beta=0.2, upper=1.0)

    engine = Rejection(num_particles=8, num_replicates=4)
    forecast = engine.forecast(program)
    asked.clear()
    cost = engine.run(program).cost
    draws = sum(asked)
    assert draws > 300
    assert cost.reward_calls / draws == pytest.approx(forecast.reward_calls / forecast.num_draws)
    assert 0.8 < cost.lm_tokens / draws / (forecast.lm_tokens / forecast.num_draws) < 1.1


# -- the contract -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with_eos", "upstream_latent", "two_completions", "text_reward", "plated"])
class TestContract:
    engine = Rejection(6, 3)

    def test_shapes_and_names(self, name):
        run = self.engine.run(BOUNDED[name])
        assert (run.engine, run.seed, run.model) == ("rejection", 0, name)
        assert run.draws_are_exact
        assert not run.exact
        assert run.history["num_draws"].shape == (3,)
        assert bool((run.history["num_draws"] >= 6).all())
        for site, value in run.particles.items():
            tensor = getattr(value, "tokens", value)
            assert tensor.shape[:2] == run.log_prior[site].shape == (3, 6)
            if hasattr(value, "source"):
                torch.testing.assert_close(
                    value.source.log_prob(tensor).double().reshape(3, 6, -1).sum(-1), run.log_prior[site]
                )
        for part in (run.rewards, run.factors):
            assert all(value.shape == (3, 6) for value in part.values())
        assert bool((run.log_weight == run.log_weight[:, :1]).all())

    def test_factors_are_the_programs_own(self, name):
        """What was carried over from many batches is what the program says of the draws, prompts included."""
        run = self.engine.run(BOUNDED[name], seed=4)
        flat = {site: getattr(v, "tokens", v).reshape(18, *getattr(v, "tokens", v).shape[2:]) for site, v in
                run.particles.items()}  # fmt: skip
        again = Program(BOUNDED[name], (), {}, 18).run(flat, draw=False, score=set(flat))
        for factor, value in again.factors.items():
            torch.testing.assert_close(value, run.factors[factor].reshape(-1))
        for site, value in again.log_prior.items():
            torch.testing.assert_close(value, run.log_prior[site].reshape(-1))

    def test_same_seed_same_posterior(self, name):
        one, two, other = (self.engine.run(BOUNDED[name], seed=seed) for seed in (7, 7, 8))
        assert torch.equal(one.log_weight, two.log_weight)
        assert key_rows(one) == key_rows(two)
        assert not torch.equal(one.log_weight, other.log_weight)

    def test_the_global_state_is_untouched(self, name):
        torch.manual_seed(99)
        before = torch.get_rng_state()
        self.engine.run(BOUNDED[name])
        self.engine.forecast(BOUNDED[name])
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.filterwarnings("ignore")  # ArviZ's own
    def test_arviz_and_netcdf_take_it(self, name, tmp_path):
        import arviz

        run = self.engine.run(BOUNDED[name])
        assert {"log_prior", "log_likelihood"} <= set(arviz.summary(run.to_arviz(), kind="stats").index)
        again = Posterior.load(run.save(tmp_path / "run.nc"))
        assert again.draws_are_exact
        assert torch.equal(again.log_weight, run.log_weight)
        assert torch.equal(again.history["num_draws"], run.history["num_draws"])
        assert again.history["acceptance"] == run.history["acceptance"]
        assert again.history["acceptance_se"] == run.history["acceptance_se"]
        assert evidence.relative_variance(again) == evidence.relative_variance(run)
        assert key_rows(again) == key_rows(run)


def test_files_of_older_versions_load(tmp_path):
    """They say nothing of exact draws."""
    import h5py

    path = ImportanceSampling(4, 2).run(PROGRAMS["with_eos"]).save(tmp_path / "run.nc")
    with h5py.File(path, "r+") as file:
        del file.attrs["draws_are_exact"]
    assert not Posterior.load(path).draws_are_exact


def test_progress_counts_accepted_particles():
    told = []
    Rejection(8, 2).run(PROGRAMS["with_eos"], progress=lambda *what: told.append(what))
    done = [accepted for accepted, _, _ in told]
    assert done == sorted(done)
    assert {wanted for _, wanted, _ in told} == {16}
    assert done[-1] == 16
    assert all(note.startswith("accepts ") and note.endswith("%") for _, _, note in told)


def test_its_draws_do_not_depend_on_those_of_other_engines():
    """With one stream for all, these two runs with one seed would hold the same 64 draws."""

    def free():
        completion("x", MEMORY, [0], max_new_tokens=6)

    ours = Rejection(16, 4, num_pilot=64).run(free, seed=3)
    theirs = ImportanceSampling(16, 4).run(free, seed=3)
    equal = [a == b for a, b in zip(key_rows(ours)[0], key_rows(theirs)[0], strict=True)]
    assert bool((ours.history["num_draws"] == 16).all())  # without factors every draw is accepted
    assert sum(equal) < 32


def test_it_does_not_pass_for_draws_of_the_prior(drawn):
    """Yet it knows the prior: p0 / p* is proportional to exp(-psi)."""
    assert not any(drew_from_prior(run) for run in drawn.values())
    from ppl_align.diagnostics.prior import prior_mean

    run = drawn["text_reward"]
    plain = ImportanceSampling(4000, 1).run(PROGRAMS["text_reward"])
    direct = plain.rewards["ones"]
    noise = float(direct.std()) / math.sqrt(4000) + 2.0 * float(run.rewards["ones"].std()) / math.sqrt(3200)
    assert prior_mean(run, run.rewards["ones"]) == pytest.approx(float(direct.mean()), abs=Z * noise)


def test_means_have_the_error_that_they_say(exact):
    """z-scores of E[r] are those of Student's t with about 31 degrees of freedom: variance 31/29."""
    truth = exact["with_eos"].mean("r").value
    scores = []
    for seed in range(120):
        value, error = Rejection(8, 4).run(PROGRAMS["with_eos"], seed=1000 * SEED + seed).mean("r")
        scores.append((value - truth) / error)
    found, spread = torch.tensor(scores), math.sqrt(31 / 29)
    assert abs(float(found.mean())) < Z * spread / math.sqrt(120)
    assert abs(float(found.var()) - 31 / 29) < Z * spread**2 * math.sqrt(2 / 120)


# -- bounds of rewards --------------------------------------------------------------------------------------------


def one_reward(fn, what="tokens", **options):
    def program():
        x = completion("x", FIXED, [0], max_new_tokens=2)
        reward("r", fn, x.tokens if what == "tokens" else x, **options)

    return program


def log_upper(program):
    run = Program(program, (), {}, 3)
    return run.run({"x": FIXED.completion([0], 2).sample((3,))}, draw=True).log_upper["r"]


def test_shipped_rewards_carry_their_bounds():
    assert (Vader().lower, Vader().upper) == (-1.0, 1.0)
    assert (Toxicity().lower, Toxicity().upper) == (-1.0, 0.0)
    assert log_upper(one_reward(Vader(), "text", beta=0.2)) == 5.0
    assert log_upper(one_reward("vader", "text", beta=0.5, weight=-2.0)) == 4.0
    assert log_upper(one_reward("vader", "text", upper=0.5)) == 0.5
    assert log_upper(one_reward("vader", "text", upper=math.inf)) is None
    assert log_upper(one_reward("vader", "text", weight=0.0, upper=math.inf)) == 0.0


def test_a_function_may_carry_bounds_and_adapters_pass_them_on():
    def length(text):
        return -len(text)

    assert log_upper(one_reward(each(length), "text")) is None
    length.upper = 0.0
    assert log_upper(one_reward(each(length), "text")) == 0.0
    assert log_upper(one_reward(each(length), "text", weight=-1.0)) is None


@pytest.mark.parametrize(("options", "r"), [({"upper": 1.0}, 1.0 + 1e-5), ({"lower": 0.0}, -1e-5)])
def test_a_value_outside_its_bounds_is_an_error_that_shows_the_text(options, r):
    near = one_reward(lambda texts: [float(r)] * len(texts), "text", **options)
    with pytest.raises(RewardError, match=r"reward 'r' is .* for the text '. .', outside .*correct") as caught:
        ImportanceSampling(4, 1).run(near)
    assert "\n" not in str(caught.value)
    within = one_reward(lambda t: torch.full(t.shape[:-1], round(r) + (r - round(r)) / 100), **options)
    ImportanceSampling(4, 1).run(within)  # 1e-7: rounding
    with pytest.raises(RewardError, match=r"for the value \[., .\], outside"):
        ImportanceSampling(4, 1).run(one_reward(lambda t: torch.full(t.shape[:-1], r), **options))
    with pytest.raises(RewardError, match="for the text 'by hand'"):
        reward("r", lambda texts: [r], "by hand", **options)


def test_a_rejection_lies_below_every_bound():
    kept = one_reward(lambda t: torch.where(t[..., 0] == 0, -torch.inf, 0.5), lower=0.0, upper=0.5)
    assert bool(Rejection(4, 2).run(kept).rewards["r"].eq(0.5).all())
    turned = one_reward(lambda t: torch.full(t.shape[:-1], -torch.inf), lower=0.0, weight=-1.0)
    with pytest.raises(RewardError, match="is -inf"):
        ImportanceSampling(4, 1).run(turned)


def test_none_is_a_factor_of_one_and_must_be_within_the_bound():
    low = one_reward(lambda texts: [None if text[0] == "1" else -1.0 for text in texts], "text", upper=-0.5)
    with pytest.raises(RewardError, match=r"is None, a factor of 1, for the text '1 .'.*upper= of at least 0"):
        ImportanceSampling(64, 1).run(low)
    high = one_reward(lambda texts: [None if text[0] == "1" else 1.0 for text in texts], "text", weight=-1.0, lower=0.5)
    with pytest.raises(RewardError, match="lower= of at most 0"):
        ImportanceSampling(64, 1).run(high)


def test_handlers_that_scale_or_mask_a_reward_move_its_bound():
    x = one_reward(lambda t: t[..., 0].double(), upper=2.0)
    assert log_upper(pyro.poutine.scale(x, scale=0.5)) == 1.0
    below = one_reward(lambda t: -t[..., 0].double() - 1, upper=-1.0)
    assert log_upper(below) == -1.0
    assert log_upper(pyro.poutine.mask(below, mask=torch.tensor(False))) == 0.0

    def per_particle():
        x = completion("x", FIXED, [0], max_new_tokens=2)
        with pyro.poutine.scale(scale=1.0 + x.tokens[..., 0]):
            reward("r", lambda t: t[..., 0].double(), x.tokens, upper=2.0)

    assert log_upper(per_particle) is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Rejection(1), "num_particles"),
        (lambda: Rejection(num_replicates=0), "num_replicates"),
        (lambda: Rejection(num_pilot=1), "num_pilot"),
        (lambda: Rejection(max_draws=63), "max_draws .* at least 64"),
        (lambda: Rejection().run(one_reward(count_score)), r"reward 'r'.*largest.*reward\(\.\.\., upper=\.\.\.\)"),
        (lambda: Rejection().run(one_reward(count_score, weight=-1.0)), r"reward 'r'.*smallest.*lower="),
        (lambda: Rejection().run(PROGRAMS["raw_pyro"]), "factor 'f'.*upper="),
        (lambda: Rejection().forecast(PROGRAMS["raw_pyro"]), "factor 'f'.*upper="),
        (lambda: Rejection().forecast("positive_review"), "a Pyro program"),
        (lambda: Rejection().run(lambda: None), "no latent site"),
        (lambda: ImportanceSampling().run(one_reward(count_score, upper="high")), "upper must be a number"),
        (lambda: ImportanceSampling().run(one_reward(count_score, upper=0.0, lower=1.0)), "leave no value"),
    ],
)
def test_what_cannot_be_run_is_one_clear_line(make, says):
    with pytest.raises(InputError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_density_has_no_bound():
    def program():
        x = completion("x", FIXED, [0], max_new_tokens=2)
        pyro.sample("y", dist.Normal(x.tokens[..., 0].double(), 0.1), obs=torch.tensor(1.0))

    with pytest.raises(InputError, match="factor 'y' has no known largest value"):
        Rejection().run(program)


def test_a_probability_above_one_is_found_out():
    class Improper(dist.Bernoulli):
        def log_prob(self, value):
            return super().log_prob(value) + 1.0

    def program():
        x = completion("x", FIXED, [0], max_new_tokens=2)
        pyro.sample("y", Improper(torch.full(x.tokens.shape[:-1], 0.9)), obs=torch.tensor(1.0))

    with pytest.raises(RunError, match=r"factor 'y' is 0.89\d* nats, above its largest value of 0"):
        Rejection().run(program)


def test_a_bound_that_moves_is_refused():
    calls = iter(range(1, 1000))

    def program():
        x = completion("x", FIXED, [0], max_new_tokens=2)
        reward("r", count_score, x.tokens, upper=1.8 + next(calls))

    with pytest.raises(ModelError, match="constant"):
        Rejection().run(program)


# -- what it will not pay -----------------------------------------------------------------------------------------


def test_it_refuses_before_it_is_too_late():
    """One line: what it would take, and what to change. No more than the pilot was drawn."""
    seen = []

    def counted():
        x = completion("x", EOS, [], max_new_tokens=4)
        reward("r", lambda t: seen.append(len(t)) or 1.0 * (t == 1).all(-1), x.tokens, beta=0.1, upper=1.0)

    says = r"about [\d,]+ draws \(.*% are accepted\), more than max_draws=64: raise beta, give a tighter upper="
    with pytest.raises(TooManyDrawsError, match=says) as caught:
        Rejection(max_draws=64).run(counted)
    assert "\n" not in str(caught.value)
    assert sum(seen) == 64


def test_nothing_accepted_in_the_pilot():
    never = one_reward(lambda t: torch.full(t.shape[:-1], -torch.inf), upper=0.0)
    with pytest.raises(TooManyDrawsError, match="none of its 64 pilot draws: raise num_pilot"):
        Rejection().run(never)
    forecast = Rejection().forecast(never)
    assert forecast.num_draws == math.inf
    assert "no telling" in str(forecast)


def test_max_draws_is_never_exceeded():
    """A budget of exactly what the pilot predicts is too small for about every other seed."""

    def attempt(seed):
        budget = math.ceil(Rejection().forecast(PROGRAMS["with_eos"], seed=seed).num_draws)
        try:
            run = Rejection(max_draws=budget).run(PROGRAMS["with_eos"], seed=seed)
        except TooManyDrawsError as error:
            return f"of 64 particles in max_draws={budget} draws" in str(error), "stopped"
        return int(run.history["num_draws"].sum()) <= budget, "done"

    outcomes = {attempt(seed) for seed in range(12)}
    assert outcomes == {(True, "stopped"), (True, "done")}


def test_a_forecast_is_plain_data():
    forecast = Forecast(0.0213, 0.0041, 3005, 66_000, 2900, 81.2, 64)
    assert str(forecast) == (
        "2.1% ± 0.4% of the draws are accepted: 64 particles take about 3,005 draws, 66,000 LM tokens, "
        "2,900 reward calls, 81.2 s"
    )


def test_the_command_line_goes_on_with_other_engines(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.py").write_text(
        "import torch\n"
        "from ppl_align import CallableLM, completion, reward\n"
        "_lm = CallableLM(4, lambda prefix: torch.zeros(len(prefix), 4), eos_id=3)\n"
        "def toy(beta: float = 1.0):\n"
        '    x = completion("x", _lm, [0], max_new_tokens=3)\n'
        '    reward("ones", lambda t: (t == 1).double().mean(-1), x.tokens, beta=beta, upper=1.0)\n'
    )
    engines = ["--engine", "rejection", "--engine", "importance"]
    assert main(["run", "toy.py", *engines]) == 0
    assert "one exact draw of rejection retained" in " ".join(capsys.readouterr().out.split())
    assert main(["run", "toy.py", *engines, "--set", "beta=0.01", "--set", "rejection.max_draws=70"]) == 1
    out, err = capsys.readouterr()
    assert "Rejection would take about" in err
    assert "importance" in out
