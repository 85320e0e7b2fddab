"""What a person sees: 80 columns, whole texts, figures without global state, one self-contained page."""

import itertools
import re

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from toys.synthetic import WORDS, exact, importance, smc, svi

from ppl_align.core.printed import with_error
from ppl_align.core.text import Texts
from ppl_align.diagnostics import compare
from ppl_align.diagnostics.columns import reward_column
from ppl_align.lm.completions import Completion
from ppl_align.report import html, plots, terminal


@pytest.fixture(scope="module")
def compared():
    return compare({"exact": exact(), "importance": importance(), "smc": smc(), "svi": svi()})


def test_a_comparison_fits_80_columns_and_ends_in_advice(compared):
    lines = str(compared).splitlines()
    assert max(map(len, lines)) <= 80
    for run in compared.runs:
        assert sum(line.startswith(run + " ") for line in lines) >= 4
    verdict = next(i for i, line in enumerate(lines) if line.startswith("=> "))
    assert verdict > max(i for i, line in enumerate(lines) if line.startswith("svi "))
    assert repr(compared) == str(compared)


def test_long_names_and_many_rewards_split_into_more_tables(compared):
    runs = {f"a-run-with-a-long-name-{i}": importance(seed=i) for i in range(3)}
    for run in runs.values():
        r = run.rewards["praise"]
        run.rewards = {f"reward-number-{k}": r * k for k in range(6)}
        run.scales = dict.fromkeys(run.rewards, 0.1)
    text = str(compare(runs))
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"E[reward-number-{k}]" in text for k in range(6))


def test_a_dash_where_a_number_has_no_meaning(compared):
    row = next(line for line in str(compared).splitlines() if line.startswith("exact ") and line.count(" - ") > 3)
    assert "nan" not in str(compared).lower()
    assert "None" not in row


def test_a_rich_console_uses_its_own_width(compared):
    console = Console(width=130, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(compared)
    assert "=>" in console.export_text()


def test_best_completions_are_the_most_probable_texts():
    run = exact()
    shown = str(terminal.best_completions(run, 3))
    for _, row in run.table(by="text").head(3).iterrows():
        assert f"{row['probability']:.4f}" in shown
        assert row["review"].strip() in shown


def test_texts_are_not_markup_and_stay_on_their_rows():
    run = importance(replicates=1, particles=2)
    run.particles = {"x": Completion(torch.tensor([[[1], [2]]]), text=Texts(["[bold]loud[/bold]\nnext", "  "], (1, 2)))}
    shown = str(terminal.best_completions(run, 2))
    assert "[bold]loud[/bold]⏎ next" in shown
    assert "(empty)" in shown


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (1.23456, 0.0123, "1.235 ± 0.012"),
        (-300.4, 25.0, "-300 ± 25"),
        (0.5, float("nan"), "0.5 ± ?"),
        (0.5, float("inf"), "0.5 ± ?"),
        (8.0000000000000007e-7, 3e-16, "8e-07 ± 0"),
        (0.99999999763, 2.4e-9, "1.000000 ± 2.4e-09"),
        (1.234e-7, 5e-9, "1.234e-07 ± 5e-09"),
        (1e9, 3e7, "1e+09 ± 3e+07"),
        (0.0, 3e-8, "0 ± 3e-08"),
        (1e-9, 3e-8, "1e-09 ± 3e-08"),
    ],
)
def test_errors_decide_on_the_digits(value, error, shown):
    assert with_error(value, error) == shown


def test_a_value_and_its_error_fit_a_column_at_any_size():
    """What is shown is the value to within its error, or to the digits there is room for."""
    for value, error in itertools.product((1.23456789, -9.87654321), repeat=2):
        for size, small in itertools.product(range(-13, 13), repeat=2):
            v, e = value * 10.0**size, abs(error) * 10.0**small
            shown = with_error(v, e)
            assert len(shown) <= 20, shown
            told, off = map(float, shown.split(" ± "))
            assert abs(told - v) <= max(0.6 * e, 1e-3 * abs(v)), (v, e, shown)
            assert off == pytest.approx(e, rel=0.1) or (off == 0 and e <= max(1e-9 * abs(v), 1e-12))


def test_columns_of_rewards_that_hardly_vary_stay_narrow():
    column = reward_column("rare")
    assert column.text({"E[rare]": 7.437e-7, "se[rare]": 3.1e-8}) == "7.44e-07 ± 3.1e-08"
    assert column.text({"E[rare]": 0.1 + 0.2, "se[rare]": 1e-17}) == "0.3 ± 0"


def test_figures_leave_no_global_state(compared):
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    found = compared.figures()
    assert set(found) == {"evidence", "cost", "weights", "reward_praise", "smc", "svi"}
    assert all(isinstance(figure, Figure) for figure in found.values())
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_plots_are_written(compared, tmp_path):
    paths = compared.plots(tmp_path)
    assert {p.suffix for p in paths} == {".png"}
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)


def test_plots_only_where_there_is_something_to_show():
    found = plots.figures(compare({"exact": exact()}))
    assert set(found) == {"evidence", "reward_praise"}


def test_odd_rewards_can_be_plotted():
    run = importance()
    constant, rejected = torch.ones(4, 64).double(), run.rewards["praise"].clone()
    rejected[:, :32] = -torch.inf
    run.rewards = {"constant": constant, "none": constant * torch.nan, "rejected": rejected}
    run.scales = dict.fromkeys(run.rewards, 0.0)
    assert set(plots.figures(compare({"is": run}))) >= {"reward_constant", "reward_rejected"}
    assert "reward_none" not in plots.figures(compare({"is": run}))


def test_the_page_is_self_contained_and_says_everything(compared):
    page = html.render(compared)
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert compared.advice.verdict in page
    for column in compared.columns:
        assert f">{column.header}<" in page
    assert page.count("data:image/svg+xml;base64,") == 6
    assert "sees only what was visited" in page
    assert all(word.strip() in page for word in WORDS[1:3])
    assert "&#34;num_particles&#34;: 64" in page


def test_the_page_escapes_what_a_model_wrote():
    run = importance(replicates=1, particles=2)
    evil = "<script>alert(1)</script>"
    run.particles = {"x": Completion(torch.tensor([[[1], [2]]]), text=Texts([evil, ""], (1, 2)))}
    page = html.render(compare({"<b>run": run}))
    assert evil not in page
    assert "&lt;script&gt;" in page
    assert "<b>run" not in page
    assert "(empty)" in page


def test_the_same_comparison_gives_the_same_page(compared):
    assert html.render(compared) == html.render(compared)


def test_text_comes_before_diagnostics_and_chats_look_like_chats():
    from ppl_align import ImportanceSampling, MarkovLM, completion, reward

    class Chatting(MarkovLM):
        def chat_ids(self, messages, *_, **__):
            return [0]

    lm = Chatting(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), tokens=["a", "b", "c"])
    messages = [{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": "Which letter?"}]

    def program():
        reward("r", lambda t: (t == 1).double().sum(-1), completion("x", lm, messages, max_new_tokens=2).tokens)

    page = html.render(compare([ImportanceSampling(8, 2).run(program)]))
    places = [page.index(part) for part in ("Be &lt;brief&gt;.", "Which letter?", "<h2>Estimates", "<h2>Plots")]
    assert places == sorted(places)
    assert '<div class="message user"><span class="role">user</span>Which letter?</div>' in page
