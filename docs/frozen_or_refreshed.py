"""Frozen or refreshed on real pairs: a table, and docs/frozen_or_refreshed.png. Some minutes on two cores.

`.venv/bin/python docs/frozen_or_refreshed.py` (needs the language model, the reviews and MiniLM: `ppl-align fetch`).
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from ppl_align import CausalLM, Completion
from ppl_align.preferences import Embedding, Remembered, RewardPosterior, film_pairs, refresh

PROMPT, DRAWS, SEEDS, FIRST, KLS = "This film is", 512, 20, 10, (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
COLOURS = {"refreshed": "tab:blue", "prior": "tab:green", "frozen": "tab:orange"}


def main() -> None:
    """Three arms on one pool of draws; averages over first pairs and labels, with standard errors."""
    torch.manual_seed(0)
    source = CausalLM("smollm2-135m").completion(PROMPT, 20).expand([DRAWS])
    pool = Completion(source.sample(), source).texts()  # a text drawn twice counts twice
    features = Remembered(Embedding())
    reader = RewardPosterior.learn(film_pairs(300), features).mean()
    found = {arm: torch.tensor([one(pool, reader, features, arm, seed) for seed in range(SEEDS)]) for arm in COLOURS}
    print(f"{len(pool)} draws after {PROMPT!r}, {SEEDS} seeds. E[r] less that of the prior:\n")
    proxy, gold = ({arm: runs[..., i] for arm, runs in found.items()} for i in (0, 1))
    table("Gold: what the reader thinks", gold)
    table("Proxy: what the learned reward believes", proxy)
    others = {f"refreshed - {arm}": gold["refreshed"] - gold[arm] for arm in ("frozen", "prior")}
    table("Gold, one arm less another, under the same seeds", others)
    figure(found).savefig(Path(__file__).with_suffix(".png"), dpi=120)


def table(title: str, columns: dict[str, torch.Tensor]) -> None:
    """Means over seeds with standard errors; a row for each distance."""
    print(title)
    print("nats" + "".join(f"{name:>22}" for name in columns))
    for row, kl in enumerate(KLS):
        cells = (
            f"{float(x.mean()):.2f} ± {float(x.std()) / SEEDS**0.5:.2f}" for x in (c[:, row] for c in columns.values())
        )
        print(f"{kl:4.2f}" + "".join(f"{cell:>22}" for cell in cells))
    print()


def one(pool, reader, features, arm, seed):
    """(proxy, gold) of every round."""
    rounds = refresh(pool, reader, film_pairs(FIRST, seed=1 + seed), features, arm=arm, kls=KLS, seed=seed)
    return [(now.proxy, now.gold) for now in rounds]


def figure(found: dict[str, torch.Tensor]) -> Figure:
    """Gold (solid) and proxy (dotted) of each arm over the distance from the prior."""
    drawn = Figure(figsize=(7, 4.2), layout="constrained")
    axes = drawn.subplots()
    for arm, runs in found.items():
        proxy, gold = runs.mean(0).unbind(-1)
        axes.errorbar(KLS, gold, 2 * runs[..., 1].std(0) / SEEDS**0.5, color=COLOURS[arm], lw=2, capsize=2, label=arm)
        axes.plot(KLS, proxy, color=COLOURS[arm], lw=1, ls=":")
    axes.set_xlabel("KL(q||p0)   [nats]")
    axes.set_ylabel("E_q[r] - E_p0[r]   [reward units]")
    axes.set_title("Gold (solid) and what the learned reward believes (dotted)")
    axes.legend()
    return drawn


if __name__ == "__main__":
    main()
