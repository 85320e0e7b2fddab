"""``ppl-align check``: is this spec sound? Runs the model on a few particles and says what it saw."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ppl_align.cli.console import exit_code, note, report, show, user_code, waiting
from ppl_align.cli.plan import Plan, make_plan
from ppl_align.loading import source_file

if TYPE_CHECKING:
    from torch import Tensor

    from ppl_align.program import Execution

PARTICLES = 8
WIDE = 12.0  # nats from the typical draw to the best one: beyond this the prior hardly ever finds the posterior


def check(model: str, prompt: str | None, settings: Sequence[str], seed: int, debug: bool) -> int:
    """Print sites, draws from the prior with their rewards, and warnings; returns the exit code."""
    with user_code(), waiting(f"loading {model}"):
        plan = make_plan(model, [], prompt, None, settings, seed)
    try:
        with user_code(), waiting("drawing from the prior"):
            draws = Draws(plan)
    except Exception as error:
        report(error, debug, source_file(plan.model))
        return exit_code(error)
    out = Console(markup=False, highlight=False, emoji=False)
    arguments = ", ".join(f"{name}={value!r}" for name, value in _arguments(plan).items())
    show(f"{model}({textwrap.shorten(arguments, 200)})\n")
    out.print(_grid(["site", "what", "shape", "from"], draws.sites()))
    show(f"\n{PARTICLES} draws from the prior (log weight: nats, what the program says of a draw)")
    out.print(_grid(*draws.table()))
    cost = draws.cost
    show(f"\n{cost.seconds:.1f} s: {cost.lm_tokens} LM tokens, {cost.reward_calls} reward calls")
    warnings = draws.warnings()
    for warning in warnings:
        show(f"warning: {warning}")
    note(f"{model} runs" + (f", with {len(warnings)} warning{'s'[: len(warnings) != 1]}" if warnings else ""))
    return 0


class Draws:
    """``PARTICLES`` draws from the prior of a program, and what the program says of them.

    The program is executed twice on the same draws: a reward that then changes its mind is not a likelihood."""

    def __init__(self, plan: Plan) -> None:
        from pyro import poutine

        from ppl_align.cost import measure
        from ppl_align.engines.base import isolated
        from ppl_align.program import Program
        from ppl_align.rewards.cache import reward_cache

        job = plan.jobs[0]
        traced = poutine.trace(plan.model)
        program = Program(traced, job.args, job.kwargs, PARTICLES)
        self.values: dict[str, Tensor] = {}
        self.completions: list[str] = []
        with isolated(job.seed):
            with measure() as self.cost, reward_cache():
                while True:
                    self.execution: Execution = program.run(self.values, draw=True)
                    self.values.update(self.execution.drawn)
                    if self.execution.pending is None:
                        break
                    name = self.execution.pending.name
                    self.values[name] = self.execution.pending.fn.sample()
                    self.completions.append(name)
            self.nodes: Mapping[str, Any] = traced.trace.nodes
            with reward_cache():
                self.again: Execution = program.run(self.values, draw=True)

    def sites(self) -> list[list[str]]:
        """Name, kind, shape for one particle, and distribution of every site."""
        rows = []
        for name, node in self.nodes.items():
            if node["type"] != "sample" or type(node["fn"]).__name__ == "_Subsample":
                continue
            if node["infer"].get("_deterministic"):
                continue
            fn = node["fn"]
            kind, source = type(fn).__name__, ""
            if name in self.execution.rewards:
                kind, source = "reward", f"one unit is worth {self.execution.scales[name]:.3g} nats"
            elif kind == "Unit":
                kind, source = "factor", "pyro.factor"
            elif kind == "CompletionDistribution":
                one = textwrap.shorten(repr(fn.lm.decode(fn.prompts[0])), 40, placeholder="...")
                prompt = f"{len(fn.prompts)} different prompts" if len(fn.prompts) > 1 else f"prompt {one}"
                kind, most = ("observed completion", "") if node["is_observed"] else ("completion", "at most ")
                source = f"{fn.lm.name}, {prompt}, {most}{fn.max_new_tokens} tokens"
            else:
                kind, source = "observed" if node["is_observed"] else "latent", kind
            plates = [f.size for f in node["cond_indep_stack"] if f.dim is not None and f.name[:9] != "ppl_align"]
            shape = [*plates, *fn.event_shape] if source != "pyro.factor" and kind != "reward" else plates
            rows.append([name, kind, str(shape), source])
        return rows

    def table(self) -> tuple[list[str], list[list[str]]]:
        """One line for each draw: rewards (raw), other factors (nats), log weight, first completion."""
        run = self.execution
        scores = {**run.rewards, **{name: f for name, f in run.factors.items() if name not in run.rewards}}
        texts = self._texts()
        rows = []
        for i in range(PARTICLES):
            numbers = [_number(float(column[i])) for column in (*scores.values(), run.log_potential)]
            rows.append([*numbers, repr(texts[i])[1:-1] if texts else ""])
        return [*scores, "log weight", self.completions[0] if self.completions else ""], rows

    def _texts(self) -> list[str]:
        if not self.completions:
            return []
        from ppl_align.completions import Completion

        name = self.completions[0]
        return Completion(self.values[name], self.nodes[name]["fn"]).texts()[:PARTICLES]

    def warnings(self) -> list[str]:
        """What is legal but probably not meant."""
        run, found = self.execution, []
        if not self.completions:
            found.append("no completion is left to infer: the language model only scores what is observed")
        if not run.factors:
            found.append("nothing is observed or rewarded: the posterior is the prior")
        for name, r in run.rewards.items():
            applies = r[~r.isnan()]
            if not len(applies):
                found.append(f"reward {name!r} applies to none of the draws")
            elif len(applies) > 1 and bool((applies == applies[0]).all()):
                found.append(f"reward {name!r} is {_number(float(r[0]))} on every draw: it does not tell them apart")
            if not bool((r == self.again.rewards[name]).logical_or(r.isnan()).all()):
                found.append(f"reward {name!r} gave other values when asked again: it is not a likelihood")
        weights = run.log_potential
        alive = weights[~weights.isneginf()]
        if len(alive) == 0:
            found.append(f"all {PARTICLES} draws are rejected: acceptable completions are rare under the prior")
        elif float(alive.max() - alive.median()) > WIDE:
            gap = float(alive.max() - alive.median())
            found.append(f"the best draw outweighs the typical one by {gap:.0f} nats: expect few effective particles")
        return found


def _arguments(plan: Plan) -> dict[str, Any]:
    from ppl_align.cli.settings import Arguments

    job = plan.jobs[0]
    bound = Arguments(plan.model, plan.spec).signature.bind(*job.args, **job.kwargs)
    return dict(bound.arguments)


def _grid(header: list[str], rows: list[list[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(header))]
    for name, right in zip(header, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left", no_wrap=right)
    for row in rows:
        table.add_row(*row)
    return table


def _number(value: float) -> str:
    return "n/a" if value != value else f"{value:.3g}"


def _is_number(text: str) -> bool:
    try:
        float(text.replace("n/a", "nan"))
    except ValueError:
        return False
    return True
