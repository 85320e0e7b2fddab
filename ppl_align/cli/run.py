"""``ppl-align run``: one model, several engines, one comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppl_align.cli.console import interrupted, note, progress, report, show, user_code
from ppl_align.cli.output import OutputFolder, output_folder
from ppl_align.cli.plan import DEFAULT_ENGINES, Asked, Job, Plan, load_plan
from ppl_align.cli.results import Group, Results
from ppl_align.core.errors import AllDeadError, TooManyDrawsError


def run(asked: Asked, engines: Sequence[str], out: Path | None, force: bool, as_json: bool) -> int:
    """Check everything, then run; returns the exit code."""
    folder = output_folder(out, force)
    plan = load_plan(asked, engines or DEFAULT_ENGINES)
    if folder is not None:
        folder.open(_manifest(plan, asked.seed))
    session = _Session(plan, folder, asked.debug)
    session.run()
    if any(group.runs for group in session.groups):
        try:
            with user_code():
                results = Results(session.groups)
        except Exception as error:
            report(error, asked.debug)
            return session.code or 1
        if folder is not None:
            saved = _save(results, folder, asked.debug)
            session.code = session.code or saved
        show(results, as_json)
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
        self.groups = [Group(job.row, job.prompt, {}) for job in plan.jobs]
        self.code = 0

    def run(self) -> None:
        total = len(self.plan.jobs) * len(self.plan.engines)
        try:
            for job, group in zip(self.plan.jobs, self.groups, strict=True):
                for name, engine in self.plan.engines.items():
                    if not self._one(group, job, name, engine):
                        return
        except KeyboardInterrupt:
            kept = self._finished()
            self.code = interrupted(f"{kept} of {total} runs were finished{' and are kept' if kept else ''}")

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
            code = self.plan.failed(job, error, self.debug)
            started = self._finished() > 0 or self.code
            self.code = 1 if started else code
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
