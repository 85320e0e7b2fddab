"""``ppl-align run``: one target, several engines, one comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_align.cli.console import interrupted, note, progress, report, show, user_code
from ppl_align.cli.output import OutputFolder, output_folder
from ppl_align.cli.plan import load_plan
from ppl_align.cli.results import Results
from ppl_align.core.errors import AllDeadError, TooManyDrawsError
from ppl_align.jobs.plan import DEFAULT_ENGINES, Asked, Plan, Target

if TYPE_CHECKING:
    from ppl_align.posterior import Posterior


def run(asked: Asked, engines: Sequence[str], out: Path | None, force: bool, as_json: bool) -> int:
    """Check everything, then run; returns the exit code."""
    folder = output_folder(out, force)
    plan = load_plan(asked, engines or DEFAULT_ENGINES)
    (target,) = plan.targets()
    if folder is not None:
        folder.open(_manifest(plan, target))
    session = _Session(plan, target, folder)
    session.run()
    if session.runs:
        try:
            with user_code():
                results = Results(session.runs)
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
    """Runs the engines of a plan one after the other and keeps whatever was finished.

    Where one engine lost all its particles, or would have to draw too often, the others go on: they may fare better.
    Any other failure would meet the other engines too, and ends the run."""

    def __init__(self, plan: Plan, target: Target, folder: OutputFolder | None) -> None:
        self.plan, self.target, self.folder = plan, target, folder
        self.runs: dict[str, Posterior] = {}
        self.code = 0

    def run(self) -> None:
        try:
            for name, engine in self.plan.engines.items():
                if not self._one(name, engine):
                    return
        except KeyboardInterrupt:
            kept, total = len(self.runs), len(self.plan.engines)
            self.code = interrupted(f"{kept} of {total} runs were finished{' and are kept' if kept else ''}")

    def _one(self, name: str, engine: Any) -> bool:
        """One engine; False when there is no point in going on."""
        target = self.target
        try:
            with user_code(), progress(name) as tell:
                posterior = engine.run(self.plan.model, *target.args, seed=target.seed, progress=tell, **target.kwargs)
            self.runs[name] = posterior
            if self.folder is not None:
                self.folder.write(f"{name}.nc", posterior.save)
        except Exception as error:
            code = report(error, self.plan.asked.debug, self.plan.explain(target, error))
            self.code = 1 if self.runs or self.code else code
            return isinstance(error, (AllDeadError, TooManyDrawsError))
        note(f"{name}: done in {posterior.cost.seconds:.1f} s")
        return True


def _manifest(plan: Plan, target: Target) -> dict[str, Any]:
    """What was asked for, so that a folder explains itself."""
    from ppl_align import __version__

    return {
        "ppl_align": __version__,
        "model": plan.asked.model,
        "seed": target.seed,
        "engines": {name: repr(engine) for name, engine in plan.engines.items()},
        "args": target.args,
        "kwargs": target.kwargs,
    }
