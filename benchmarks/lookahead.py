"""What looking ahead is worth: a word that the prior writes about once in a thousand texts.

Importance sampling needs no run: with hard constraint 1[x contains the word] its relative variance is exactly
(1 - p) / (N p). SMC's is measured over replicates; the tokens of the pool that its twist was learned from count.
Both are compared in LM tokens at the relative variance that SMC's pooled estimate has reached:

    gain = N_IS * (tokens of one prior draw) / (tokens of SMC),     N_IS = (1 - p) / (p relvar)

A prior pool checks the formula once: its share of texts with the word, and the tokens of one draw.

    python benchmarks/lookahead.py [--words funny arguably ...] [--particles 16] [--replicates 64] [--pool 2048]
"""

from __future__ import annotations

import argparse
import math

from ppl_align import SMC, CausalLM, Contains, completion, constrain
from ppl_align.core.cost import measure
from ppl_align.core.seeds import isolated

PROMPT, LENGTH = "The movie was", 16


def model(lm: CausalLM, word: str) -> None:
    """A beginning of a review that contains a word."""
    review = completion("review", lm, PROMPT, max_new_tokens=LENGTH)
    constrain("word", Contains(word), review)


def prior_pool(lm: CausalLM, size: int, batch: int = 512) -> tuple[list[str], float]:
    """Texts of the prior, and LM tokens per draw (prefixes that draws share are read once)."""
    texts: list[str] = []
    with isolated(1), measure() as cost:
        for first in range(0, size, batch):
            source = lm.completion(PROMPT, LENGTH)
            tokens = source.sample((min(batch, size - first),))
            texts += lm.decode_batch([[t for t in row if t != lm.eos_id] for row in tokens.tolist()])
    return texts, cost.lm_tokens / size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", nargs="+", default=["funny", "arguably", "masterpiece", "popcorn"])
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--replicates", type=int, default=64)
    parser.add_argument("--pool", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lm = CausalLM("smollm2-135m")
    texts, per_draw = prior_pool(lm, options.pool)
    print(f"prior: {options.pool} draws, {per_draw:.2f} LM tokens each")
    print(f"{'word':>12}  {'p':>8}  {'se':>8}  {'in pool':>12}  {'relvar':>7}  {'SMC':>7}  {'IS':>11}  gain")
    for word in options.words:
        engine = SMC(num_particles=options.particles, num_replicates=options.replicates, twist="lookahead")
        run = engine.run(model, lm, word, seed=options.seed)
        z = run.log_evidence.exp()
        p, each = float(z.mean()), float(z.var() / z.mean() ** 2)
        pooled = each / len(z)
        hits = sum(word in text for text in texts)
        expected = f"{hits} ({p * len(texts):.1f})"
        equivalent = (1 - p) / (p * pooled) * per_draw
        error = math.sqrt(pooled) * p
        print(
            f"{word:>12}  {p:8.2e}  {error:8.1e}  {expected:>12}  {each:7.2f}  {run.cost.lm_tokens:7,}  "
            f"{equivalent:11,.0f}  {equivalent / run.cost.lm_tokens:.0f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
