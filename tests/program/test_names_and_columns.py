"""No name that a program gives hides or breaks a column: the same program under other names shows the same numbers.

Every word that any output uses of its own is tried (they are read off the outputs of a plainly named program), in every
output: all of them as rewards and latents, a third in each other kind of site.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from toys.rewards import lengths
from toys.worlds import HOST

from ppl_align import (
    SMC,
    SVI,
    Comparison,
    Completion,
    Contains,
    ImportanceSampling,
    Posterior,
    compare,
    completion,
    constrain,
    environment,
    label,
    reward,
)
from ppl_align.cli.check import draws
from ppl_align.core.errors import ModelError, PplAlignError
from ppl_align.lints import PriorSample
from ppl_align.posterior.groups import escape, to_groups
from ppl_align.posterior.naming import RESERVED, columns
from ppl_align.report import plots

PLAIN = "plainly"
"""A name that no output has; ``PLAIN0``, ``PLAIN1``, ... are the sites of the plain program."""


def _plated(name: str, x: Completion) -> None:
    with pyro.plate(f"over {name}", 2):
        pyro.sample(name, dist.Normal(0.0, 1.0))


Site = Callable[[str, Completion], object]
SITES: dict[str, Site] = {
    "completion": lambda name, x: completion(name, HOST, " hm", max_new_tokens=1),
    "observed completion": lambda name, x: completion(name, HOST, " hm", obs=" yes"),
    "reward": lambda name, x: reward(name, lengths, x, beta=3.0),
    "constraint": lambda name, x: constrain(name, Contains(" "), x),
    "tool": lambda name, x: environment(name, str.upper, x),
    "world with luck": lambda name, x: environment(name, lambda text, rng: text, x),
    "world of few values": lambda name, x: environment(name, dist.Categorical(torch.ones(2))),
    "world that writes": lambda name, x: environment(name, HOST, " hm", max_new_tokens=1),
    "latent": lambda name, x: pyro.sample(name, dist.Normal(0.0, 1.0)),
    "plated latent": _plated,
    "observation": lambda name, x: label(name, torch.zeros(()), 1),
    "factor": lambda name, x: pyro.factor(name, torch.zeros(())),
}


def program(kind: str, names: Iterable[str]) -> Callable[[], None]:
    def model() -> None:
        x = completion("x", HOST, " hm", max_new_tokens=2)
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        for name in names:
            SITES[kind](name, x)

    return model


@cache
def run(kind: str, names: tuple[str, ...]) -> Posterior:
    return ImportanceSampling(num_particles=8, num_replicates=4).run(program(kind, names), seed=1)


def words_of(kind: str) -> set[str]:
    """Every word by which an output calls something, in a program whose own names are plain."""
    posterior = run(kind, (f"{PLAIN}0",))
    found = {*posterior.table().columns, *posterior.draws(3).columns, *compare([posterior]).figures()}
    for group in ("posterior", "sample_stats", "weighted"):
        data = to_groups(posterior)[group]
        found |= {str(name) for name in (*data.variables, *data.dims)}
    found |= set(draws(PriorSample(program(kind, (f"{PLAIN}0",)), (), {}, 0))[0])
    return {word for word in found if word and word not in ("x", "z") and PLAIN not in word}


ODD = (
    "J",
    "_id",
    "index",
    "run",
    "seed",
    "length(x)",
    "x_dim_0",
    "z_dim_0",
    "probability_",
    "draw_",
    "a.b",
    ".",
    "a/b",
)
ODDER = ("$a$b$", "$\\frac$", "[red]", "/red", "</td>", "a,b", "naïve", "a b", "__class__", "training", "self", "E[x]")


WHOLE_FILES = ("completion", "plated latent", "reward")
"""Kinds whose sites are kept in files in ways of their own: all their words are tried there. Those of the others are
variables called ``kind.word`` like these; only what a file may not take letter by letter is tried again."""


WORDS = tuple(sorted(set().union(ODD, ODDER, RESERVED, *map(words_of, ("reward", "latent", "completion")))))
PLAINS = tuple(f"{PLAIN}{i}" for i in range(len(WORDS)))
NAMED = dict(zip(PLAINS, WORDS, strict=True))
THIRDS = [kind for kind in SITES if kind not in ("reward", "latent")]
"""Kinds that take a third of the words each, each word three or four: a name becomes a column whatever its kind."""


def names_of(kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Plain names, and the words that stand for them."""
    part = slice(THIRDS.index(kind) % 3, None, 3) if kind in THIRDS else slice(None)
    return PLAINS[part], WORDS[part]


@pytest.fixture(params=SITES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def both(kind: str) -> tuple[Posterior, Posterior, dict[str, str]]:
    """The plain run, the run under our own words, and the column that each plain name becomes."""
    plain, other = (run(kind, names) for names in names_of(kind))
    return (
        plain,
        other,
        {n: other.columns[word] for n, word in zip(*names_of(kind), strict=True) if word in other.columns},
    )


def test_there_are_words_to_try() -> None:
    assert len(WORDS) > 50
    assert {"probability", "log_prior", "log weight", "draw", "chain", "length", "z_dim_0"} <= set(WORDS)


def test_every_word_of_an_output_is_reserved(kind: str) -> None:
    posterior = run(kind, (f"{PLAIN}0",))
    ours = {*posterior.table().columns, *posterior.draws(3).columns}
    group = to_groups(posterior)["posterior"]
    ours |= {str(name) for name in (*group.variables, *group.dims)}
    ours |= {name for name in draws(PriorSample(program(kind, (f"{PLAIN}0",)), (), {}, 0))[0] if name}
    about_sites = {
        n for n in ours if PLAIN in n or n in ("x", "z", "length(x)") or n.startswith(("x_position", "z_dim_"))
    }
    assert ours - about_sites <= RESERVED


def test_tables_and_draws_show_the_same_numbers(kind: str) -> None:
    plain, other, column = both(kind)
    for frame in (lambda p: p.table(), lambda p: p.table(by="text"), lambda p: p.draws(7, seed=3)):
        expected, found = pd.DataFrame(frame(plain)).rename(columns=column), frame(other)
        assert len(set(found.columns)) == len(found.columns)
        pd.testing.assert_frame_equal(pd.DataFrame(found), expected)
        assert str(found)


def test_netcdf_and_arviz_show_the_same_numbers(kind: str, tmp_path: Path) -> None:
    import arviz as az

    plain, other, column = both(kind)
    sizes = {escape(name): escape(column[name]) for name in column}
    of_plain, of_other = to_groups(plain), to_groups(other)
    for group in ("posterior", "prior", "log_likelihood", "log_prior", "sample_stats"):
        before, after = of_plain.get(group), of_other.get(group)
        if before is None or after is None:
            assert before is None
            assert after is None
            continue
        renamed = {str(v): _renamed(str(v), sizes) for v in before.variables}
        assert {*map(str, after.variables)} == set(renamed.values())
        for was, now in renamed.items():
            assert before[was].values.tolist() == after[now].values.tolist() or before[was].isnull().all()
    saved = other if kind in WHOLE_FILES else run(kind, (*ODD, *ODDER))
    again = Posterior.load(saved.save(tmp_path / "run.nc"))
    for part in ("rewards", "factors", "log_prior", "particles"):
        assert list(getattr(again, part)) == list(getattr(saved, part)) or part != "particles"
        assert set(getattr(again, part)) == set(getattr(saved, part))
    for name, value in saved.rewards.items():
        assert torch.equal(again.rewards[name], value)
    for name, latent in saved.latents.items():
        assert torch.equal(again.latents[name], latent)
    assert again.columns == saved.columns
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ's own
        shown = az.summary(other.to_arviz(), kind="stats")
        assert len(shown) == len(az.summary(plain.to_arviz(), kind="stats"))
        stacked = az.extract(other.to_arviz())
    assert set(stacked.data_vars) == {str(name) for name in of_other["posterior"].data_vars}


def _renamed(name: str, sites: dict[str, str]) -> str:
    if name in sites:
        return sites[name]
    for was, now in sites.items():  # lengths of one among several completions
        if name == f"length({was})":
            site = next(word for plain, word in NAMED.items() if escape(plain) == was)
            return escape(f"length({site})") if now else name
    return name


def names_of_figures(compared: Comparison) -> list[str]:
    """Of all, without drawing them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw", lambda paint, height=3.0: Figure())
        return list(compared.figures())


@pytest.fixture
def fewer_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a second each: of rewards some of those that no file or typesetter takes as they are."""
    whole = plots.plot_reward
    hard = ("$a$b$", "$\\frac$", "[red]", "</td>", "a/b", ".", "naïve", "__class__")
    monkeypatch.setattr(plots, "plot_reward", lambda run, name: whole(run, name) if name in hard else None)


def test_comparisons_reports_and_means_show_the_same_numbers(kind: str, tmp_path: Path, request: Any) -> None:
    plain, other, _ = both(kind)
    before, after = compare([plain]), compare([other])
    of_a_reward = [f"{e}[{{}}]{end}" for e, end in product(("E", "se", "E_q", "se_q"), ("", "_low", "_high"))]
    expected = before.table.rename(columns={c.format(n): c.format(w) for n, w in NAMED.items() for c in of_a_reward})
    same = expected.columns.drop(["seconds", *(c for c in expected.columns if "reward_calls" in c)])
    pd.testing.assert_frame_equal(after.table[same], expected[same])
    assert after.table.columns.is_unique
    assert len(after.columns) == len(before.columns)
    assert len(names_of_figures(after)) == len(names_of_figures(before))
    request.getfixturevalue("fewer_figures")
    after.save(tmp_path)
    assert list(pd.read_csv(tmp_path / "comparison.csv").columns[1:]) == list(after.table.columns)
    assert str(after)
    for name, word in zip(*names_of(kind), strict=True):
        if name in plain.rewards or (name in plain.latents and plain.latents[name].dim() == 2):
            assert other.mean(word) == plain.mean(name) == other.mean(other.columns[word])


def test_check_shows_the_same_numbers(kind: str) -> None:
    tables = [draws(PriorSample(program(kind, names), (), {}, 0)) for names in names_of(kind)]
    (plain, numbers), (other, same) = tables
    renamed = columns(["x", "z", *names_of(kind)[1]])
    assert other == [renamed[NAMED[name]] if name in NAMED else name for name in plain]
    assert len(set(other)) == len(other)
    assert numbers == same


@pytest.mark.parametrize("kind", [kind for kind in SITES if kind != "constraint"])
def test_other_engines_take_every_name(kind: str) -> None:
    for engine in (SMC(num_particles=4, num_replicates=2), SVI(num_steps=1)):
        assert set(engine.run(program(kind, names_of(kind)[1])).columns) >= {"x"}


def test_parameters_of_a_guide_are_each_site_s_own() -> None:
    """A site called like another one's parameter is trained as well."""

    def model() -> None:
        for name in ("a", "a.b", "tilt of a", "a.tilt"):
            value = pyro.sample(name, dist.Categorical(torch.ones(2)))
            pyro.factor(f"wish {name}", 4.0 * value.double())
        completion("x", HOST, " hm", max_new_tokens=1)

    posterior = SVI(num_steps=60, learning_rate=0.2, num_particles=100).run(model)
    for name in ("a", "a.b", "tilt of a", "a.tilt"):
        draws = posterior.latents[name].double().mean()  # unweighted: what the guide itself draws
        assert float(draws) > 0.9, name


@pytest.mark.parametrize("name", ["", "\n", "a\x00b", "\ud800", "_INPUT", "_RETURN", "ppl_align_particles", 3, None])
@pytest.mark.parametrize("kind", ["reward", "latent", "completion", "tool", "factor"])
def test_what_cannot_be_a_name_is_refused_in_one_line(name: Any, kind: str) -> None:
    with pytest.raises(PplAlignError) as error:
        ImportanceSampling(4, 2).run(program(kind, (name,)))
    assert len(str(error.value).splitlines()) == 1
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("engine", [ImportanceSampling(4, 2), SVI(num_steps=1)])
@pytest.mark.parametrize("kind", ["reward", "latent", "completion", "tool"])
def test_a_plate_and_a_site_of_one_name(kind: str, engine: Any) -> None:
    def model() -> None:
        x = completion("x", HOST, " hm", max_new_tokens=2)
        with pyro.plate("both", 2):
            pyro.sample("y", dist.Normal(0.0, 1.0))
        SITES[kind]("both", x)

    with pytest.raises(ModelError, match=r"two sites are called 'both', a plate and an? "):
        engine.run(model)


def test_figures_of_rewards_with_similar_names(tmp_path: Path) -> None:
    names = ("a b", "a_b", "a/b", "A_b")
    found = compare([run("reward", names)])
    files = found.plots(tmp_path)
    assert len({path.name.casefold() for path in files}) == len(files)
    assert sum(path.name.startswith("reward_") for path in files) == len(names)


def test_datasets_have_no_hidden_variables() -> None:
    """The reward called like a dimension, by hand: what netCDF holds under the renamed column is the reward."""
    posterior = run("reward", ("chain", "draw", "log_prior"))
    group: xr.Dataset = to_groups(posterior)["posterior"]
    assert {"chain_", "draw_", "log_prior_", "log_prior"} <= set(map(str, group.data_vars))
    assert not (group["log_prior"] == group["log_prior_"]).all()
