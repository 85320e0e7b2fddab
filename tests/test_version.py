"""One version everywhere, and a changelog that knows it."""

import re
import tomllib
from pathlib import Path

import ppl_align

ROOT = Path(__file__).parents[1]


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == ppl_align.__version__
    first, heading = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[:2]
    assert first == "Unreleased"
    assert re.fullmatch(rf"{re.escape(ppl_align.__version__)} - \d{{4}}-\d\d-\d\d", heading)


def test_every_extra_is_tried():
    """`make dist` knows what each extra is for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names: dict = {}
    exec(
        compile((ROOT / "tools" / "try_wheel.py").read_text(), str(ROOT / "tools" / "try_wheel.py"), "exec"),
        {"__name__": "try_wheel", "__file__": str(ROOT / "tools" / "try_wheel.py"), "__doc__": ""} | names,
        names,
    )
    assert set(names["USES"]) == set(project["optional-dependencies"])
