"""What a job was asked to do: what may not change while it goes on, and what has changed if it did.

It is written down when the job begins (``job.json``). The same command, started again, makes it anew and compares: of
another model, language model, engine, data file or library version the rest of the rows would be of another target, or
by other means, and nobody could tell from the results.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ppl_align.core.digests import digest
from ppl_align.core.errors import InputError
from ppl_align.jobs.plan import Plan
from ppl_align.lm.base import LM
from ppl_align.program.compiled import Program
from ppl_align.program.provenance import public_name, versions
from ppl_align.program.sketch import sketch


@dataclass(frozen=True)
class JobSpec:
    """``model``: what it was called by; ``program``: digest of its source and of what that refers to; ``lms``: the
    language models that it can see, and those that write a row's completions, by fingerprint; ``arguments``: those that
    are the same for all rows, as digests; ``engines``: by name, their options, and a digest of each; ``data``: of the
    file, its name, digest, number of rows, key column and columns; ``threads`` of torch; ``max_batch_tokens``: what
    groups of rows are made by; ``draws``, ``all_runs``: what is delivered of each row; ``escalate``: how many times the
    particles a row may take; ``versions`` of the libraries."""

    model: str
    program: str
    lms: Mapping[str, str]
    arguments: Mapping[str, str]
    engines: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, Any]
    seed: int
    threads: int
    max_batch_tokens: int
    draws: int
    all_runs: bool
    escalate: int
    versions: Mapping[str, str]

    @classmethod
    def of(
        cls, plan: Plan, threads: int, max_batch_tokens: int, draws: int, all_runs: bool, escalate: int = 1
    ) -> JobSpec:
        """Of a plan with a data file."""
        header = plan.header
        assert header is not None
        data = {
            "file": header.path.name,
            "digest": hashlib.sha256(header.path.read_bytes()).hexdigest()[:16],
            "rows": header.count,
            "key": header.key,
            "columns": list(header.columns),
        }
        return cls(
            model=plan.asked.model,
            program=digest(plan.model),
            lms={lm.fingerprint: public_name(lm) for lm in _language_models(plan)},
            arguments={name: digest(value) for name, value in plan.values.items()},
            engines={
                name: {"engine": engine.name, **engine.describe(), "digest": digest(engine)}
                for name, engine in plan.engines.items()
            },
            data=data,
            seed=plan.asked.seed,
            threads=threads,
            max_batch_tokens=max_batch_tokens,
            draws=draws,
            all_runs=all_runs,
            escalate=escalate,
            versions=dict(versions()),
        )

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> JobSpec:
        """Raises ``InputError`` for a file that says nothing of a job."""
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{f.name: held[f.name] for f in fields(cls)})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} says nothing of a job of this version ({type(error).__name__})") from None


def differences(old: JobSpec, new: JobSpec) -> list[str]:
    """What the job was asked before, and is not any more; a few words for each."""
    return [*_different(json.loads(json.dumps(asdict(old))), json.loads(json.dumps(asdict(new))))]


def _different(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    if old["model"] != new["model"]:
        yield f"the model is {new['model']}, it was {old['model']}"
    elif old["program"] != new["program"]:
        yield f"the source of {new['model']}, or of what it calls"
    for fingerprint, name in new["lms"].items():
        if fingerprint not in old["lms"]:
            yield f"the language model {name} ({fingerprint})"
    if not set(old["lms"]) <= set(new["lms"]) and set(new["lms"]) <= set(old["lms"]):
        yield "a language model, which is gone"
    yield from _by_name("--set", old["arguments"], new["arguments"])
    for name in dict.fromkeys([*old["engines"], *new["engines"]]):
        before, now = old["engines"].get(name), new["engines"].get(name)
        if before is None or now is None:
            yield f"the engine {name} {'is new' if before is None else 'is missing'}"
        elif before != now:
            changed = [
                f"{key} {before.get(key)!r} -> {now.get(key)!r}"
                for key in {**before, **now}
                if before.get(key) != now.get(key) and key != "digest"
            ]
            yield f"the engine {name} ({', '.join(changed) or 'what it holds'})"
    if old["data"]["digest"] != new["data"]["digest"]:
        rows = f": {old['data']['rows']} -> {new['data']['rows']} rows"
        yield f"the data file {new['data']['file']}{rows if old['data']['rows'] != new['data']['rows'] else ''}"
    if old["data"]["key"] != new["data"]["key"]:
        yield f"--key ({old['data']['key']} -> {new['data']['key']})"
    for name in ("seed", "threads", "max_batch_tokens", "draws", "all_runs", "escalate"):
        if old[name] != new[name]:
            yield f"--{name.replace('_', '-')} ({old[name]} -> {new[name]})"
    for name in dict.fromkeys([*old["versions"], *new["versions"]]):
        before, now = old["versions"].get(name, "none"), new["versions"].get(name, "none")
        if before != now:
            yield f"{name} ({before} -> {now})"


def _by_name(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield f"{what} {name}"


def _language_models(plan: Plan) -> Iterator[LM]:
    """Of the module that the program is in, and of the first row that it can be called with."""
    around = getattr(inspect.unwrap(plan.model), "__globals__", {})
    yield from (value for value in around.values() if isinstance(value, LM))
    for number, row in plan.rows.select(None) if plan.rows is not None else ():
        try:
            target = plan.target(number, row)
        except InputError:
            continue
        yield from sketch(Program(plan.model, target.args, target.kwargs)).lms
        return
