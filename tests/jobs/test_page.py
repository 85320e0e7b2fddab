"""The top page of a job in a browser: a thousand rows, searched and sorted."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from ppl_align.report import job_page
from ppl_align.report.job_page import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCRIPT = """
<script>
  const shown = () => [...document.querySelectorAll("#rows tbody tr")].filter(line => !line.hidden);
  const first = () => shown()[0].cells[0].textContent.trim();
  const said = [shown().length];
  const box = document.querySelector("#search");
  box.value = "FILM 77"; box.dispatchEvent(new Event("input"));
  said.push(shown().length, first(), document.querySelector("#shown").textContent);
  box.value = ""; box.dispatchEvent(new Event("input"));
  document.querySelector("button[data-standing=failed]").click();
  said.push(shown().length, first());
  document.querySelector("button[data-standing=failed]").click();
  const heads = document.querySelectorAll("#rows th");
  heads[3].click(); said.push(first());
  heads[3].click(); said.push(first());
  said.push(document.querySelector("a").getAttribute("href"));
  said.push(document.documentElement.scrollWidth <= window.innerWidth);
  document.body.dataset.said = said.join("|");
</script>
"""


def page(count: int) -> str:
    rows = [
        {
            "number": i,
            "row": str(i),
            "prompt": f"Write about film {i} <b>&",
            "standing": ("sound", "unconfirmed", "unsound")[i % 3],
            "verdict": "Importance sampling is enough here (importance: 200 effective draws in all).",
            "completion": f"It was film {i}, and I liked every minute of it. " * 4,
            "rewards": {"praise": [0.1, ((i * 7) % count) / 10]},
            "effective_draws": 10.0 + i,
        }
        if i % 100 != 50
        else {"number": i, "row": str(i), "prompt": f"film {i}", "error": "error: row 50: the service was away"}
        for i in range(count)
    ]
    return render("praise", "films.jsonl", count, ["importance"], rows, {0: "rows/000/report.html"})


def test_text_is_text() -> None:
    html = page(3)
    assert "film 1 &lt;b&gt;&amp;" in html
    assert "http" not in re.sub(r"<!doctype html>", "", html), "nothing is loaded from elsewhere"


def test_of_very_many_rows_the_gravest_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_page, "MOST", 5)
    html = page(300)
    assert html.count("<tr data-standing=") == html.count('<tr data-standing="failed"') + 2 == 5
    assert "300 of 300 rows" in html
    assert "Here are 5 of them, the gravest." in html
    assert re.search(r">sound 99<", html), "counts are those of all"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_a_thousand_rows_in_a_browser(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page(1000).replace("</body>", SCRIPT + "</body>"))
    (tmp_path / "empty.html").write_text("<!doctype html><title>nothing</title>")

    def opened(name: str) -> tuple[str, float]:
        options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}")
        started = time.perf_counter()
        dom = subprocess.run(
            [str(CHROMIUM), *options, "--window-size=1280,900", "--dump-dom", (tmp_path / name).as_uri()],
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        return dom, time.perf_counter() - started

    _, nothing = opened("empty.html")
    dom, whole = opened("report.html")
    found = re.search(r'data-said="([^"]*)"', dom)
    assert found is not None
    lines, hits, hit, shown, failed, first_failed, least, most, link, fits = found[1].split("|")
    assert (lines, hits, hit, shown) == ("1000", "11", "77", "11 of 1000 rows")
    assert (failed, first_failed) == ("10", "50")
    assert (least, most) == ("0", "857")  # 7 * 857 = 5999
    assert link == "rows/000/report.html"
    assert fits == "true"
    assert whole - nothing < 2.0, "seconds to open, search and sort"
