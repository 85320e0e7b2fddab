"""Writes files of every engine and what is in them: ``python tests/toys/stored_posteriors.py FOLDER``.

It ran with the code of each format that tests/data/ holds; test_stored_formats.py reads them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from ppl_align import (
    SMC,
    SVI,
    ConditionalSMC,
    Contains,
    Enumeration,
    ImportanceSampling,
    MarkovLM,
    Posterior,
    Rejection,
    TreePlanner,
    completion,
    constrain,
    environment,
    reward,
)

GENERATOR = torch.Generator().manual_seed(1)
LM = MarkovLM(
    torch.randn(4, 4, generator=GENERATOR, dtype=torch.float64),
    torch.zeros(4, dtype=torch.float64),
    eos_id=0,
    tokens=["", "good ", "bad ", "so "],
)


def good(texts: list[str]) -> list[float]:
    return [float(text.count("good")) for text in texts]


def wishes() -> None:
    """Latents up- and downstream, two completions, the second reads the first; a plate; an observation."""
    mood = pyro.sample("mood", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
    first = completion("first", LM, torch.tensor([[1], [2], [3]])[mood], max_new_tokens=2)
    second = completion("second", LM, ([1], first), max_new_tokens=2)
    reward("praise", good, second, beta=0.7, upper=2.0)
    with pyro.plate("critics", 2):
        severity = pyro.sample("severity", dist.Bernoulli(0.25))
    pyro.sample("verdict", dist.Bernoulli(0.2 + 0.3 * severity.sum(-1, keepdim=True)), obs=torch.tensor(1.0))


def told() -> None:
    """A hard constraint."""
    text = completion("text", LM, [], max_new_tokens=4)
    constrain("has it", Contains("bad "), text)
    reward("praise", good, text, upper=4.0)


def served() -> None:
    """The world answers between two turns."""
    asked = completion("asked", LM, [], max_new_tokens=1)
    heard = environment("heard", LM, asked, max_new_tokens=1)
    said = completion("said", LM, (asked, heard), max_new_tokens=1)
    reward("praise", good, heard, beta=0.5, upper=1.0)
    reward("own", good, said, beta=1.0, upper=1.0)


ENGINES = {
    "exact": Enumeration(),
    "importance": ImportanceSampling(8, 4),
    "smc": SMC(8, 4, twist="prefix", ess_threshold=0.9),
    "svi": SVI(num_steps=3, num_particles=8),
    "rejection": Rejection(2, 4),
}


def runs() -> dict[str, Posterior]:
    """By file name."""
    found = {f"wishes-{name}": engine.run(wishes, seed=3) for name, engine in ENGINES.items() if name != "exact"}
    found |= {f"told-{name}": ENGINES[name].run(told, seed=3) for name in ("exact", "importance", "smc")}
    found |= {f"served-{name}": engine.run(served, seed=3) for name, engine in ENGINES.items()}
    found["served-nested"] = TreePlanner(num_actions=2, num_outcomes=2, num_particles=2, num_replicates=4).run(
        served, seed=3
    )
    exact_draw = Rejection(2, 4).run(told, seed=4)
    found["told-conditional"] = ConditionalSMC(ENGINES["importance"], exact_draw).run(told, seed=3)
    return found


def facts(run: Posterior) -> dict[str, Any]:
    """What a version of the library says of a run."""
    table = run.table()
    return {
        "engine": run.engine,
        "shape": list(run.log_weight.shape),
        "target": run.target,
        "sites": list(run.particles),
        "log_evidence": [plain(z) for z in run.log_evidence],
        "means": {name: plain(run.mean(name).value) for name in run.rewards},
        "rows": len(table),
        "best": {str(c): v if isinstance(v, str) else plain(v) for c, v in table.iloc[0].items()},
        "scales": {name: plain(torch.as_tensor(s).double().reshape(-1)[0]) for name, s in run.scales.items()},
        "cost": {k: getattr(run.cost, k) for k in ("lm_tokens", "scored_tokens", "prompt_tokens", "reward_calls")},
        "optimism": None
        if run.optimism is None
        else {name: plain(e.value) for name, e in run.optimism.posterior_mean.items()},
    }


def plain(x: Any) -> Any:
    """A number for JSON; what is none there as a word."""
    if isinstance(x, (tuple, list)):
        return [plain(y) for y in x]
    x = float(x)
    return x if x == x and abs(x) != float("inf") else repr(x)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, run in runs().items():
        run.save(folder / f"{name}.nc")
        found[name] = facts(run)
    (folder / "facts.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
