"""``ppl-align new``: a project with the same two folders as the library's galleries."""

from __future__ import annotations

import shutil
from pathlib import Path

from ppl_align import gallery
from ppl_align.cli.console import note, show
from ppl_align.core.errors import InputError

MODEL = "positive_review"
ENGINE = "smc"

README = """\
# {title}

`models/` says *what* to infer: one readable file for each model, a Pyro program with `completion(...)` (the prior)
and `reward(...)` (the likelihood). `inference/` says *how*: one file for each engine, `engine = SMC(...)`.

    ppl-align check models/{model}.py
    ppl-align run models/{model}.py --engine inference/{engine}.py --engine importance --out runs/first
    ppl-align compare runs/first

`ppl-align models` and `ppl-align engines` list what else can be run, or copied from.
"""


def new(folder: Path) -> int:
    """Write the project; prints the files."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "not empty" if folder.is_dir() else "a file"
        raise InputError(f"{folder} is {what}: name a folder that does not exist yet")
    examples: list[tuple[gallery.Kind, str]] = [("models", MODEL), ("inference", ENGINE)]
    sources = [(kind, gallery.find(kind, name)) for kind, name in examples]
    try:
        for kind, source in sources:
            assert source is not None, f"the gallery of {kind} lacks its example"
            target = folder / kind / source.name
            target.parent.mkdir(parents=True)
            shutil.copyfile(source, target)
            show(target)
        readme = folder / "README.md"
        title = folder.resolve().name
        readme.write_text(README.format(title=title, model=MODEL, engine=ENGINE), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    show(readme)
    note(f"next: cd {folder} && ppl-align check models/{MODEL}.py")
    return 0
