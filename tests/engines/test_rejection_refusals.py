"""What rejection sampling refuses: factors without a bound, and bills that are too high."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_align import Rejection, completion, reward
from ppl_align.cli import main
from ppl_align.core.errors import InputError, ModelError, RunError, TooManyDrawsError
from ppl_align.engines.rejection.rejection import Forecast
from ppl_align.testing.programs import EOS, FIXED, PROGRAMS, count_score


def one_reward(fn, what="tokens", **options):
    def program():
        x = completion("x", FIXED, [0], max_new_tokens=2)
        reward("r", fn, x.tokens if what == "tokens" else x, **options)

    return program


# -- refusals ---------------------------------------------------------------------------------------------------


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
