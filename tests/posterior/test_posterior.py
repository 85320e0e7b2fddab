"""Estimates, tables, draws and files of a posterior, against enumeration."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from toys.synthetic import SCALE, exact, importance, smc, svi

from ppl_align.core.errors import InputError
from ppl_align.core.text import Texts
from ppl_align.lm.completions import Completion
from ppl_align.posterior import Posterior

RUNS = {"exact": exact, "importance": importance, "smc": smc, "svi": svi}


@pytest.fixture(scope="module")
def truth():
    return exact()


def test_exact_mean_has_no_error(truth):
    p = truth.log_weight.softmax(-1)
    value, error = truth.mean("praise")
    assert value == pytest.approx(float((p * truth.rewards["praise"]).sum()), abs=1e-12)
    assert error == 0.0


@pytest.mark.parametrize("make", [importance, svi])
def test_delta_method_is_the_spread_of_independent_runs(truth, make):
    """z-scores of 150 runs: mean 0 and standard deviation 1 within their own errors."""
    target = truth.mean("praise").value
    estimates = [make(seed, particles=128).mean("praise") for seed in range(150)]
    z = np.array([(e.value - target) / e.standard_error for e in estimates])
    assert abs(z.mean()) < 4 / math.sqrt(150)
    assert abs(z.std() - 1) < 4 / math.sqrt(2 * 150) + 0.05  # 0.05: weights have a tail


def test_jackknife_is_the_spread_of_smc_runs(truth):
    target = truth.mean("praise").value
    estimates = [smc(seed, replicates=8).mean("praise") for seed in range(150)]
    values = np.array([e.value for e in estimates])
    errors = np.array([e.standard_error for e in estimates])
    assert abs(values.mean() - target) < 4 * values.std() / math.sqrt(150) + 0.01
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.25)


def test_smc_below_four_replicates_states_no_error():
    value, error = smc(replicates=3).mean("praise")
    assert math.isfinite(value)
    assert math.isnan(error)


def test_one_effective_draw_states_no_error():
    run = importance(replicates=1)
    run.log_weight = torch.full((1, 64), -50.0, dtype=torch.float64)
    run.log_weight[0, 3] = 0.0
    assert math.isnan(run.mean("praise").standard_error)
    assert "?" in str(run.mean("praise"))


def test_replicates_count_in_proportion_to_their_evidence():
    run = importance(replicates=2)
    run.log_weight[0] = math.log(3.0)
    run.log_weight[1] = math.log(1.0)
    r = run.rewards["praise"]
    assert run.mean("praise").value == pytest.approx(float(0.75 * r[0].mean() + 0.25 * r[1].mean()))


def test_three_ways_to_name_an_expectation():
    run = importance()
    by_name = run.mean("length")
    assert run.mean(lambda particles: particles["review"].lengths) == by_name
    assert run.mean(lambda particles: particles["review"].text.map(lambda s: "good" in s)) == run.mean(
        lambda text: "good" in text, of="review"
    )
    assert run.mean("log_likelihood").value == pytest.approx(SCALE * run.mean("praise").value)


def test_latents_can_be_averaged():
    run = importance()
    run.particles = {**run.particles, "tone": torch.arange(4 * 64).reshape(4, 64) % 2, "theta": torch.randn(4, 64, 3)}
    assert run.mean("tone").value == pytest.approx(float((run.weights * run.particles["tone"]).sum()))
    assert run.mean(lambda t: t[1], of="theta") == run.mean(lambda p: p["theta"][..., 1])
    with pytest.raises(InputError, match="not one number per particle"):
        run.mean("theta")


def test_a_reward_that_does_not_apply_is_left_out():
    run = importance()
    r = run.rewards["praise"].clone()
    r[:, ::2] = torch.nan
    run.rewards = {"praise": r}
    w = run.weights[:, 1::2]
    assert run.mean("praise").value == pytest.approx(float((w * r[:, 1::2]).sum() / w.sum()))


def test_rejected_particles_do_not_spoil_a_mean():
    run = importance()
    r, log_weight = run.rewards["praise"].clone(), run.log_weight.clone()
    r[:, :10], log_weight[:, :10] = -torch.inf, -torch.inf
    run.rewards, run.log_weight = {"praise": r}, log_weight
    assert math.isfinite(run.mean("praise").value)
    assert math.isfinite(run.mean("praise").standard_error)
    assert run.table()["praise"].min() > -math.inf


@pytest.mark.parametrize(
    ("what", "of", "message"),
    [
        ("priase", None, "there are praise"),
        ("praise", "review", "goes with a function"),
        (lambda text: 1.0, "reveiw", "there are review"),
        (lambda particles: torch.zeros(3), None, "one number per particle"),
    ],
)
def test_mean_says_what_is_wrong(what, of, message):
    with pytest.raises(InputError, match=message):
        importance().mean(what, of)


def test_table_of_the_exact_posterior(truth):
    table = truth.table()
    assert len(table) == truth.log_weight.shape[1]
    assert table["probability"].sum() == pytest.approx(1.0)
    assert table["probability"].is_monotonic_decreasing
    joint = (table["log_prior"] + SCALE * table["praise"]).to_numpy()
    assert np.exp(joint - float(truth.log_evidence)) == pytest.approx(table["probability"].to_numpy(), abs=1e-12)


def test_table_counts_distinct_ids_and_text_view_adds_spellings():
    tokens = torch.tensor([[[1, 2], [1, 2], [3, 0], [4, 4]]])
    spelled = Texts(["ab", "ab", "ab", "c"], (1, 4))
    run = Posterior(
        "importance",
        torch.tensor([[0.1, 0.2, 0.3, 0.4]]).double().log(),
        {"x": Completion(tokens, text=spelled)},
        rewards={"r": torch.tensor([[1.0, 1.0, 1.0, 2.0]])},
        log_prior={"x": torch.tensor([[-1.0, -1.0, -2.0, -3.0]])},
    )
    assert run.table()["probability"].tolist() == pytest.approx([0.4, 0.3, 0.3])
    text = run.table(by="text")
    assert text["x"].tolist() == ["ab", "c"]
    assert text["probability"].tolist() == pytest.approx([0.6, 0.4])
    assert text["log_prior"][0] == pytest.approx(math.log(math.exp(-1) + math.exp(-2)))
    with pytest.raises(InputError, match="by is"):
        run.table(by="texts")


def test_draws_are_equal_weight_shuffled_and_local(truth):
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    draws = truth.draws(4000, seed=1)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert draws.equals(truth.draws(4000, seed=1))
    assert not draws.equals(truth.draws(4000, seed=2))
    # systematic resampling: every count is within one of its expectation
    counts = draws["review"].value_counts()
    expected = truth.table().groupby("review")["probability"].sum() * 4000
    members = truth.table().groupby("review").size()
    assert ((counts.reindex(expected.index, fill_value=0) - expected).abs() < members + 1e-9).all()
    # shuffled: neighbours are not alike
    r = draws["praise"].to_numpy()
    assert abs(np.corrcoef(r[1:], r[:-1])[0, 1]) < 4 / math.sqrt(4000)


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_draws_refuses_a_bad_number(n):
    with pytest.raises(InputError, match="whole number"):
        importance().draws(n)


def test_frames_print_whole_texts():
    tokens = torch.zeros(1, 2, 3, dtype=torch.long)
    long = "word " * 60 + "END"
    run = Posterior(
        "importance", torch.zeros(1, 2).double(), {"x": Completion(tokens, text=Texts([long, "b"], (1, 2)))}
    )
    shown = repr(run.draws(3))
    assert "END" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert isinstance(run.draws(3), pd.DataFrame)
    assert len(repr(run.draws(1000))) > 0


@pytest.mark.parametrize("engine", RUNS)
def test_a_saved_posterior_comes_back(engine, tmp_path):
    run = RUNS[engine]()
    path = run.save(tmp_path / "deep" / "run.nc")
    assert [p.name for p in path.parent.iterdir()] == ["run.nc"]
    back = Posterior.load(path)
    for name in ("engine", "config", "seed", "model", "lm", "cost", "drawn_scales", "kind", "steered"):
        assert getattr(back, name) == getattr(run, name), name
    assert torch.equal(back.log_weight, run.log_weight)
    assert torch.equal(back.particles["review"].tokens, run.particles["review"].tokens)
    assert torch.equal(back.particles["review"].lengths, run.particles["review"].lengths)
    for which in ("text", "prompt"):
        assert back.particles["review"].texts(which) == run.particles["review"].texts(which)
    for name in ("rewards", "scales", "factors", "log_upper", "log_prior", "history"):
        assert list(getattr(back, name)) == list(getattr(run, name))
        for key, value in getattr(run, name).items():
            assert torch.equal(getattr(back, name)[key], value), (name, key)
    assert (back.log_proposal is None) == (run.log_proposal is None)
    assert back.table().equals(run.table())
    assert back.mean("praise") == run.mean("praise")
    assert back.summary() == run.summary()


def test_awkward_names_and_texts_survive_a_file(tmp_path):
    texts = Texts(["nul \x00 byte", "snow ☃, lone \ud800 surrogate", ""], (1, 3))
    run = Posterior(
        "importance",
        torch.tensor([[0.0, -torch.inf, 1.0]]).double(),
        {"a/b%": Completion(torch.tensor([[[1], [2], [3]]]), text=texts), "draw": torch.tensor([[0, 1, 1]])},
        rewards={"r/1": torch.tensor([[0.5, -torch.inf, torch.nan]])},
        history={"note": "words", "loss": torch.tensor([1.0])},
        config={"twist": None, "every": "word", "nested": {"k": [1, 2]}},
    )
    back = Posterior.load(run.save(tmp_path / "p.nc"))
    assert list(back.particles) == ["a/b%", "draw"]
    assert back.particles["a/b%"].texts() == ["nul \N{SYMBOL FOR NULL} byte", "snow ☃, lone ? surrogate", ""]
    assert back.particles["draw"].dtype == torch.int64
    assert torch.equal(back.rewards["r/1"], run.rewards["r/1"].nan_to_num(nan=7.0)) is False
    assert back.rewards["r/1"].isnan().tolist() == [[False, False, True]]
    assert back.history["note"] == "words"
    assert back.config == run.config
    assert back.to_arviz() is not None


def test_load_refuses_what_it_did_not_write(tmp_path):
    import xarray as xr

    with pytest.raises(InputError, match="no saved posterior"):
        Posterior.load(tmp_path / "absent.nc")
    foreign = tmp_path / "foreign.nc"
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(foreign, engine="h5netcdf")
    with pytest.raises(InputError, match=r"not written by Posterior\.save"):
        Posterior.load(foreign)
    whole = importance().save(tmp_path / "whole.nc").read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"not a file of ours"):
        (tmp_path / "broken.nc").write_bytes(broken)
        with pytest.raises(InputError) as caught:
            Posterior.load(tmp_path / "broken.nc")
        assert "\n" not in str(caught.value)


def test_save_refuses_a_folder_and_leaves_nothing_behind(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="folder"):
        importance().save(tmp_path)
    importance().save(tmp_path / "p.nc")

    def full_disk(tree, path, **options):
        path.write_bytes(b"half of a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xarray.DataTree.to_netcdf", full_disk)
    with pytest.raises(InputError, match="No space left"):
        svi().save(tmp_path / "p.nc")
    assert [p.name for p in tmp_path.iterdir()] == ["p.nc"]
    assert Posterior.load(tmp_path / "p.nc").engine == "importance"


def test_arviz_sees_chains_of_equal_weight_draws(truth):
    run = importance(replicates=4, particles=256)
    data = run.to_arviz()
    assert dict(data["posterior"].sizes) == {"chain": 4, "draw": 256}
    draws = data["posterior"]["praise"].values
    for r in range(4):
        # systematic draws of one replicate: their mean is within range / N of the weighted mean
        w = run.log_weight[r].softmax(-1)
        assert draws[r].mean() == pytest.approx(float((w * run.rewards["praise"][r]).sum()), abs=6 / 256 * 4)
    assert all(v.dtype.kind in "fib" for v in data["posterior"].data_vars.values())
    assert data["completions"]["review_text"].shape == (4, 256)
    assert np.allclose(data["weighted"]["log_weight"].values, run.log_weight.numpy())
    assert np.allclose(data["log_likelihood"]["praise"].values, SCALE * draws)
    assert (data["prior"]["praise"].values == run.rewards["praise"].numpy()).all()
    assert data.attrs["engine"] == "importance"
    assert "prior" not in svi().to_arviz()
    assert truth.to_arviz()["posterior"].sizes["draw"] == 1000


def test_arviz_leaves_out_a_dead_replicate():
    run = importance()
    run.log_weight[2] = -torch.inf
    data = run.to_arviz()
    assert data["posterior"]["chain"].values.tolist() == [0, 1, 3]
    assert "nan" not in run.summary()


@pytest.mark.parametrize("engine", RUNS)
def test_summary_is_one_paragraph(engine):
    text = repr(RUNS[engine]())
    assert "\n" not in text
    assert "log Z" in text
    assert "E[praise]" in text


def test_log_evidence_is_float64():
    """log N in float32 once cost seven digits of log Z."""
    log_p0, r = exact().log_prior["review"][0], exact().rewards["praise"][0]
    assert float(exact().log_evidence) == pytest.approx(float((log_p0 + SCALE * r).logsumexp(0)), abs=1e-13)
