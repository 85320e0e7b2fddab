"""What a job has found, as data sets to train on: the formats of TRL."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow

from ppl_align.core.errors import InputError
from ppl_align.jobs.delivered import renamed
from ppl_align.jobs.folder import SPEC, JobFolder, write_parquet
from ppl_align.jobs.ledger import last_events, read_events
from ppl_align.jobs.results import posterior_lines
from ppl_align.jobs.spec import JobSpec

Example = dict[str, Any]


@dataclass
class Exported:
    """``examples`` of a format; ``notes``: what to know of them, a line each."""

    examples: list[Example]
    notes: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """JSONL or Parquet, by the name of the file; written beside and renamed."""
        writers: dict[str, Callable[[Path], object]] = {
            ".jsonl": lambda scratch: scratch.write_text(
                "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in self.examples), encoding="utf-8"
            ),
            ".parquet": lambda scratch: write_parquet(pyarrow.Table.from_pylist(self.examples), scratch),
        }
        if path.suffix not in writers:
            raise InputError(f"--out {path}: write a .jsonl or .parquet file")
        JobFolder(path.parent).write(path, writers[path.suffix])


def export(root: Path, form: str) -> Exported:
    """The rows of the job in ``root`` as examples of a format, one of :data:`FORMATS`.

    A prompt of chat messages stays one, with a completion of one message: TRL's conversational form. Raises
    ``InputError`` for a folder without a job or results, and an unknown format."""
    if form not in FORMATS:
        raise InputError(f"--format {form}: choose {', '.join(FORMATS)}")
    if not (root / SPEC).is_file():
        raise InputError(f"{root} holds no job: name a folder that `ppl-align run --data FILE --out DIR` wrote")
    folder = JobFolder(root)
    parts = [folder.read_part(group)[0] for group in sorted(last_events(read_events(folder.ledger)))]
    prompt = renamed(JobSpec.load(folder.spec).data["columns"])["prompt"]
    posterior, prior = (
        [_asked(line, prompt) for line in posterior_lines(parts, which).to_pylist()] for which in (False, True)
    )
    if not posterior:
        raise InputError(f"the job in {root} has no completions yet")
    found = FORMATS[form](posterior, prior)
    if not found.examples:
        raise InputError(f"--format {form} has no example: {'; '.join(found.notes)}")
    return found


def _asked(line: Example, prompt: str) -> Example:
    """A line with the prompt as the data has it: a text, or chat messages."""
    return line | {"_prompt": line[prompt] if isinstance(line[prompt], list) else line["prompt"]}


def _sft(posterior: list[Example], prior: list[Example]) -> Exported:
    """``prompt``, ``completion``: a draw of equal weight each."""
    return Exported([_prompt(line) | {"completion": _answer(line)} for line in posterior])


def _weighted(posterior: list[Example], prior: list[Example]) -> Exported:
    """``prompt``, ``completion``, ``weight``: distinct draws; the weights of a row sum to 1."""
    examples: dict[tuple[int, str], Example] = {}
    totals: dict[int, int] = {}
    for line in posterior:
        key = line["_number"], line["completion"]
        totals[key[0]] = totals.get(key[0], 0) + 1
        example = examples.setdefault(key, _prompt(line) | {"completion": _answer(line), "weight": 0.0})
        example["weight"] += 1
    for (number, _), example in examples.items():
        example["weight"] /= totals[number]
    notes = ["one draw of each row has weight 1: run the job with --draws 64, say"] if max(totals.values()) == 1 else []
    return Exported(list(examples.values()), notes)


def _preference(posterior: list[Example], prior: list[Example]) -> Exported:
    """``prompt``, ``chosen``, ``rejected``, ``margin``: a draw of the posterior against one of the prior, and by how
    many nats the program's likelihood prefers the first."""
    against = {(line["_number"], line["draw"]): line for line in prior}
    if not against:
        raise InputError(
            "no run of this job represents the prior, so that there is nothing to reject: run it with an engine that "
            "draws from the prior beside, say --engine importance"
        )
    pairs = [(line, against[at]) for line in posterior if (at := (line["_number"], line["draw"])) in against]
    margins = [chosen["_psi"] - rejected["_psi"] for chosen, rejected in pairs]
    examples = [
        _prompt(chosen) | {"chosen": _answer(chosen), "rejected": _answer(rejected), "margin": margin}
        for (chosen, rejected), margin in zip(pairs, margins, strict=True)
        if margin > 0
    ]
    left_out, alone = len(pairs) - len(examples), len(posterior) - len(pairs)
    notes = [f"{left_out} of {len(pairs)} pairs have a margin of 0 or less, and are left out"] if left_out else []
    if alone:
        notes.append(
            f"{alone} draws have no draw of the prior beside them, and are left out: run the job with an engine that "
            "draws from the prior beside, say --engine importance"
        )
    notes.append(
        "DPO on these pairs does not give the posterior back: it fits which of two texts is preferred, and how far it "
        "goes is up to its own beta; train on --format sft or weighted to come close to the posterior"
    )
    return Exported(examples, notes)


FORMATS: dict[str, Callable[[list[Example], list[Example]], Exported]] = {
    "sft": _sft,
    "preference": _preference,
    "weighted": _weighted,
}


def _prompt(line: Example) -> Example:
    return {"prompt": line["_prompt"]}


def _answer(line: Example) -> Any:
    text = line["completion"]
    return [{"role": "assistant", "content": text}] if isinstance(line["_prompt"], list) else text
