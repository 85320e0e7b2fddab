"""``ppl-align run``: one model, several engines, one comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppl_align.cli.console import exit_code, note, progress, report, user_code, waiting
from ppl_align.cli.output import OutputFolder
from ppl_align.cli.plan import DEFAULT_ENGINES, Job, Plan, make_plan
from ppl_align.cli.results import Group, Results
from ppl_align.errors import AllDeadError, TooManyDrawsError
from ppl_align.loading import source_file


def run(
    model: str,
    engines: Sequence[str],
    prompt: str | None,
    data: Path | None,
    settings: Sequence[str],
    seed: int,
    out: Path | None,
    force: bool,
    as_json: bool,
    debug: bool,
) -> int:
    """Check everything, then run; returns the exit code."""
    folder = None if out is None else OutputFolder(out, force)
    if folder is not None:
        folder.check()
    with user_code(), waiting(f"loading {model}"):
        plan = make_plan(model, engines or DEFAULT_ENGINES, prompt, data, settings, seed)
    if plan.ignored:
        note(f"columns that {plan.spec} has no argument for are ignored: {', '.join(plan.ignored)}")
    if folder is not None:
        folder.open(_manifest(plan, seed))
    session = _Session(plan, folder, debug)
    session.run()
    done = [group for group in session.groups if group.runs]
    if done:
        try:
            with user_code():
                results = Results(done)
        except Exception as error:
            report(error, debug)
            return session.code or 1
        if folder is not None:
            saved = _save(results, folder, debug)
            session.code = session.code or saved
        if as_json:
            print(results.to_json())
        else:
            results.show()
    return session.code


def _save(results: Results, folder: OutputFolder, debug: bool) -> int:
    """Save the comparison; what goes wrong here must not cost the user the table on the screen."""
    try:
        results.save(folder)
    except Exception as error:
        report(error, debug)
        return 1
    note(f"saved in {folder.root}")
    return 0


class _Session:
    """Runs the jobs of a plan one after the other and keeps whatever was finished.

    Where one engine lost all its particles, or would have to draw too often, the others go on: they may fare better.
    Any other failure would meet the other engines too, and ends the run."""

    def __init__(self, plan: Plan, folder: OutputFolder | None, debug: bool) -> None:
        self.plan, self.folder, self.debug = plan, folder, debug
        self.groups: list[Group] = []
        self.code = 0
        self.source = source_file(plan.model)

    def run(self) -> None:
        total = len(self.plan.jobs) * len(self.plan.engines)
        try:
            for job in self.plan.jobs:
                group = Group(job.row, job.prompt, {})
                self.groups.append(group)
                for name, engine in self.plan.engines.items():
                    if not self._one(group, job, name, engine):
                        return
        except KeyboardInterrupt:
            self.code = 130
            kept = self._finished()
            note(f"interrupted: {kept} of {total} runs were finished{' and are kept' if kept else ''}")

    def _one(self, group: Group, job: Job, name: str, engine: Any) -> bool:
        """One engine on one job; False when there is no point in going on."""
        label = name if not job.row else f"row {job.row}: {name}"
        try:
            with user_code(), progress(label) as tell:
                posterior = engine.run(self.plan.model, *job.args, seed=job.seed, progress=tell, **job.kwargs)
            group.runs[name] = posterior
            if self.folder is not None:
                self.folder.write(f"{job.row}/{name}.nc" if job.row else f"{name}.nc", posterior.save)
        except Exception as error:
            report(error, self.debug, self.source)
            started = self._finished() > 0 or self.code
            self.code = 1 if started else exit_code(error)
            return isinstance(error, (AllDeadError, TooManyDrawsError))
        note(f"{label}: done in {posterior.cost.seconds:.1f} s")
        return True

    def _finished(self) -> int:
        return sum(len(group.runs) for group in self.groups)


def _manifest(plan: Plan, seed: int) -> dict[str, Any]:
    """What was asked for, so that a folder explains itself."""
    from ppl_align import __version__

    return {
        "ppl_align": __version__,
        "model": plan.spec,
        "seed": seed,
        "engines": {name: repr(engine) for name, engine in plan.engines.items()},
        "jobs": [
            {"row": job.row, "prompt": job.prompt, "args": job.args, "kwargs": job.kwargs, "seed": job.seed}
            for job in plan.jobs
        ],
    }
