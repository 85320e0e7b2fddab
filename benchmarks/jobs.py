"""Rows of a data set that share their batches, beside one row after the other: 50 short prompts, SmolLM2-135M.

    python benchmarks/jobs.py [--particles 4 16 64] [--tokens 16] [--max-batch-tokens 16384]

Both ways do the same runs (SMC, a reward of text at every token), in turns within one process: a group by itself, then
its rows together. Printed are the seconds inside the network and the rewards, which is what sharing is about, the whole
time, forwards, and how many rows have the same ids either way, with the largest difference of a log-probability per
token among those.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch

from ppl_align import SMC, CausalLM, Posterior, completion, reward
from ppl_align.core.cost import Cost, measure
from ppl_align.core.turns import Turns
from ppl_align.jobs.groups import in_groups
from ppl_align.jobs.serving import serve

NOUNS = [
    "movie",
    "book",
    "song",
    "play",
    "dog",
    "cat",
    "car",
    "house",
    "tree",
    "river",
    "city",
    "war",
    "king",
    "queen",
    "boy",
    "girl",
    "day",
    "night",
    "game",
    "story",
    "teacher",
    "doctor",
    "storm",
    "ship",
    "horse",
    "train",
    "road",
    "bridge",
    "garden",
    "kitchen",
    "window",
    "door",
    "table",
    "letter",
    "phone",
    "camera",
    "picture",
    "idea",
    "plan",
    "trip",
    "party",
    "dance",
    "meal",
    "drink",
    "shop",
    "market",
    "school",
    "church",
    "bank",
    "office",
]


def main() -> None:
    """A line for each number of particles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--max-batch-tokens", type=int, default=16_384)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    lm = CausalLM("smollm2-135m")

    def program(prompt: str) -> None:
        x = completion("x", lm, prompt, max_new_tokens=asked.tokens)
        reward("e", lambda texts: [text.count("e") for text in texts], x, beta=4.0)

    prompts = [f"The {noun} was" for noun in NOUNS]
    print(f"{torch.get_num_threads()} threads; seconds of {len(prompts)} rows, one by one and together")
    print("particles  group  network and rewards   ratio         whole   ratio  forwards  same ids  log p a token")
    for particles in asked.particles:
        engine = SMC(particles, 1, twist="prefix")
        engine.run(program, prompts[0])
        sizes = [particles * (len(lm.encode(prompt)) + asked.tokens) for prompt in prompts]
        alone, together = _Side(), _Side()
        for group in in_groups(sizes, asked.max_batch_tokens):
            works = [partial(engine.run, program, prompts[row], seed=row) for row in group.rows]
            alone.add(lambda works=works: [work() for work in works])
            together.add(lambda works=works: [one.get() for one in Turns(serve).run(works)])
        print(_line(particles, len(in_groups(sizes, asked.max_batch_tokens)[0].rows), alone, together), flush=True)


class _Side:
    """What one way of doing it took, and gave."""

    def __init__(self) -> None:
        self.cost, self.runs = Cost(), list[Posterior]()

    def add(self, work: Callable[[], Sequence[Posterior]]) -> None:
        with measure() as cost:
            self.runs += work()
        self.cost += cost

    @property
    def shared(self) -> float:
        return self.cost.lm_seconds + self.cost.reward_seconds


def _line(particles: int, group: int, alone: _Side, together: _Side) -> str:
    same, most = 0, 0.0
    for one, other in zip(alone.runs, together.runs, strict=True):
        if torch.equal(one.completions["x"].tokens, other.completions["x"].tokens):
            same += 1
            per_token = (one.log_prior["x"] - other.log_prior["x"]).abs() / one.completions["x"].lengths
            most = max(most, float(per_token.max()))
    return (
        f"{particles:9} {group:6} {alone.shared:9.1f} {together.shared:9.1f} {alone.shared / together.shared:7.2f} "
        f"{alone.cost.seconds:8.1f} {together.cost.seconds:5.1f} {alone.cost.seconds / together.cost.seconds:7.2f} "
        f"{alone.cost.lm_forwards:5}/{together.cost.lm_forwards:<3} {same:5}/{len(alone.runs)}  {most:.1e}"
    )


if __name__ == "__main__":
    main()
