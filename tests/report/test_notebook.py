"""What a notebook shows of a posterior and of a comparison: everything escaped, no script, the page's own colours."""

import re
from html.parser import HTMLParser

import pytest
import torch
from toys.synthetic import exact, importance, smc, svi, weigh

from ppl_align import SVI, CallableLM, Enumeration, ImportanceSampling, compare, completion, environment, reward

EVIL = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "{{ 7 * 7 }}", "&lt;b&gt;", "\x00"]
LM = CallableLM(5, lambda prefix: torch.zeros(len(prefix), 5), tokens=EVIL, name="<b>lm</b>")


class Matcher(HTMLParser):
    """Tags, their attributes, and whether they are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(text):
    read = Matcher(text)
    assert read.open == [], "every tag is closed"
    assert set(read.tags) <= {"div", "style", "b", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"} | {
        "details",
        "summary",
        "pre",
    }
    assert set(read.attributes) <= {"class", "title"}, "nothing is loaded, nothing is run"
    text.encode("utf-8")
    style = re.search(r"<style>(.*?)</style>", text, re.S).group(1)
    for line in style.splitlines():
        if "{" in line:
            assert line.startswith(".ppl-align"), "no rule reaches beyond it"
    # The ground is not painted, and text has the colour of the page.
    assert not re.search(r"(?<!-)color: (?!inherit)", style.replace("border-left-color", "edge"))
    assert set(re.findall(r"background: ([^;]+);", style)) == {"transparent", "rgba(128, 128, 128, .1)"}
    return text


def program():
    x = completion("<i>site</i>", LM, [0], max_new_tokens=2)
    reward("<u>r</u>", lambda tokens: (tokens == 1).sum(-1).double(), x.tokens)


def test_everything_is_escaped():
    runs = {"<h1>run</h1>": ImportanceSampling(16, 4).run(program), "exact": Enumeration().run(program)}
    for shown in (*(run._repr_html_() for run in runs.values()), compare(runs)._repr_html_()):
        text = check(shown)
        assert "&lt;b&gt;lm&lt;/b&gt;" in text
        assert "E[&lt;u&gt;r&lt;/u&gt;]" in text
        assert "49" not in re.findall(r"<td[^>]*>([^<]*)", text)
    assert "&lt;h1&gt;run&lt;/h1&gt;" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in runs["exact"]._repr_html_()


@pytest.mark.parametrize(
    "make", [exact, importance, smc, svi, lambda: smc(replicates=1)], ids=["exact", "importance", "smc", "svi", "lone"]
)
def test_a_posterior_says_what_its_summary_says(make):
    posterior = make()
    text = check(posterior._repr_html_())
    assert f"<td>{posterior.mean('praise')}</td>" in text
    assert "log Z" in text
    best = posterior.table(by="text").iloc[0]
    assert f"<td>{best['probability']:.4f}</td>" in text
    assert str(best["review"]).strip() in text
    if "± ?" in text:
        assert "num_replicates=4 gives one" in text


def test_a_comparison_says_what_its_table_says():
    found = compare({"is": importance(), "smc": smc(), "exact": exact()})
    text = check(found._repr_html_())
    assert f"ppl-{found.advice.standing}" in text
    for row in found.rows.values():
        for column in found.columns:
            assert f"<td>{column.text(row).replace('>', '&gt;')}</td>" in text
    assert all(f'title="{c.meaning.split(",")[0][:12]}' in text for c in found.columns)


def test_decisions_and_latents_are_shown():
    import pyro
    import pyro.distributions as dist

    def world():
        pyro.sample("mood", dist.Bernoulli(0.5))
        x = completion("x", LM, [0], max_new_tokens=1)
        y = environment("y", LM.completion(x.tokens, 1))
        reward("r", lambda texts: [float(len(t)) / 10 for t in texts], y)

    decided = SVI(2, 4, 2, guide="table").run(world)
    text = check(decided._repr_html_())
    assert "Decision of world by svi" in text
    assert "mood" in text
    check(Enumeration().run(world)._repr_html_())
    check(compare({"a": decided})._repr_html_())


def test_provenance_is_folded_away():
    text = Enumeration().run(program)._repr_html_()
    assert f"{LM.fingerprint}" in text
    assert text.index("<details>") < text.index(LM.fingerprint)


def test_a_posterior_made_by_hand_is_shown():
    index = torch.zeros(1, 2, dtype=torch.long)
    check(weigh("mine", index, torch.zeros(1, 2), 0.8)._repr_html_())
