"""Masked decoding against the posterior, in numbers: rewrites the tables of masked-decoding.md (a minute on two cores).

`python docs/masked_decoding.py`; every law below is computed by enumeration, nothing is simulated.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ppl_align import CausalLM, Enumeration, MarkovLM, completion, constrain
from ppl_align.constraints import Regex
from ppl_align.guides.tokens import forced_rows
from ppl_align.lm import LM
from ppl_align.lm.restriction import Restriction

PAGE = Path(__file__).with_name("masked-decoding.md")
TOKENS = ["yes", "no", "perhaps", ", of course", ", never", "<eos>"]
NEXT = {  # what the toy says next, in percent
    "": [60, 25, 15, 0, 0, 0],
    "yes": [0, 0, 0, 2, 8, 90],
    "no": [0, 0, 0, 10, 20, 70],
    "perhaps": [0, 0, 0, 0, 10, 90],
    ", of course": [0, 10, 10, 0, 0, 80],
    ", never": [5, 0, 5, 0, 0, 90],
    "<eos>": [100, 0, 0, 0, 0, 0],
}
TOY_ANSWERS = ("yes, of course", "no", "no, never")
QUESTION = "Question: Do you like winter?\nAnswer:"
ANSWERS = (" Yes, really.", " No.", " I hate it.", " Not at all.")
PARTICLES = (1, 4, 16, 64)


class Laws:
    """Every id sequence that spells one of the answers, and what three laws say of it.

    ``log_prior``, ``log_masked``, ``log_posterior``  [n] nats; ``texts``: n"""

    def __init__(self, lm: LM, prompt: str, answers: tuple[str, ...], max_new_tokens: int, stop: str | None) -> None:
        constraint = Regex("|".join(re.escape(answer) for answer in answers))

        def model() -> None:
            constrain("format", constraint, completion("x", lm, prompt, max_new_tokens=max_new_tokens, stop=stop))

        source = lm.completion(prompt, max_new_tokens, stop=stop)
        restriction = Restriction([constraint.compile(lm)], source)
        exact = Enumeration(candidates={"x": sentences(restriction, source.terminal)}).run(model)
        tokens = exact.particles["x"].tokens.reshape(-1, max_new_tokens)
        self.texts = exact.particles["x"].texts()
        self.log_prior = exact.log_prior["x"].reshape(-1)
        self.log_posterior = exact.weights.reshape(-1).log()
        self.log_evidence = float(exact.log_evidence)
        self.log_masked = torch.zeros_like(self.log_prior)
        ended = source.ended_before(tokens)
        confined = source.within(restriction).with_index(source.index.reshape(-1).expand(len(tokens)))
        for t, (rows, where) in enumerate(forced_rows(confined, tokens)):
            step = rows.log_probs[where, tokens[:, t]].double()
            self.log_masked += torch.where(ended[:, t], 0.0, step)

    def by_answer(self, log_law: Tensor) -> dict[str, float]:
        """The probability of each text, whatever its tokens."""
        found = dict.fromkeys(self.texts, 0.0)
        for text, p in zip(self.texts, log_law.exp().tolist(), strict=True):
            found[text] += p
        return found


def sentences(restriction: Restriction, terminal: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every id sequence that a restriction allows."""
    finished: list[tuple[int, ...]] = []
    running: list[tuple[int, ...]] = [()]
    for _ in range(restriction.max_new_tokens):
        grown = [
            (*prefix, token)
            for prefix, row in zip(running, restriction.allowed(running), strict=True)
            for token in row.nonzero()[:, 0].tolist()
        ]
        finished += [ids for ids in grown if ids[-1] in terminal]
        running = [ids for ids in grown if ids[-1] not in terminal]
        if not running:
            break
    meets = restriction.accepts(running).tolist() if running else []
    return finished + [ids for ids, ok in zip(running, meets, strict=True) if ok]


def resampled(masked: Tensor, posterior: Tensor, num_particles: int) -> Tensor:
    """The law of one draw out of importance sampling with N particles, [n]: exact, a sum over how often each outcome
    is among them. Particles are drawn by masked decoding and weigh p* / q."""
    ratio = posterior / masked
    law = torch.zeros_like(masked)
    for cut in itertools.combinations(range(num_particles + len(masked) - 1), len(masked) - 1):
        edges = (-1, *cut, num_particles + len(masked) - 1)
        counts = torch.tensor([b - a - 1 for a, b in itertools.pairwise(edges)], dtype=torch.float64)
        log_p = math.lgamma(num_particles + 1) - torch.lgamma(counts + 1).sum() + (counts * masked.log()).sum()
        law += log_p.exp() * counts * ratio / (counts * ratio).sum()
    return law


def distance(one: dict[str, float], other: dict[str, float]) -> float:
    """Total variation."""
    return sum(abs(one[text] - other[text]) for text in one) / 2


def kl(log_p: Tensor, log_q: Tensor) -> float:
    """Kullback-Leibler divergence of two laws [n], nats."""
    return float((log_p.exp() * (log_p - log_q)).sum())


def table(laws: Laws) -> str:
    """The three laws by answer, and how far apart they are."""
    columns = [laws.by_answer(law) for law in (laws.log_prior, laws.log_masked, laws.log_posterior)]
    lines = ["| answer | prior | masked decoding | posterior |", "|---|---:|---:|---:|"]
    for text in columns[2]:
        prior, masked, posterior = (column[text] for column in columns)
        lines.append(f"| `{text.strip()}` | {prior:.3g} | {masked:.3f} | {posterior:.3f} |")
    lines += [
        "",
        f"{len(laws.texts)} id sequences, log Z = {laws.log_evidence:.2f} nats. Masked decoding is "
        f"{distance(columns[1], columns[2]):.2f} away from the posterior in total variation; "
        f"KL(masked || posterior) = {kl(laws.log_masked, laws.log_posterior):.2f}, "
        f"KL(posterior || masked) = {kl(laws.log_posterior, laws.log_masked):.2f} nats.",
    ]
    return "\n".join(lines)


def toy_lm() -> MarkovLM:
    """The chain of ``NEXT``."""
    logits = torch.tensor([NEXT[token] for token in TOKENS], dtype=torch.float64).log()
    start = torch.tensor(NEXT[""], dtype=torch.float64).log()
    return MarkovLM(logits, start, eos_id=5, tokens=TOKENS, name="toy")


def toy() -> Laws:
    """Three answers of a Markov chain."""
    return Laws(toy_lm(), "", TOY_ANSWERS, max_new_tokens=4, stop=None)


def toy_block() -> str:
    """The toy's table."""
    return table(toy())


def particles_block() -> str:
    """The law of one draw out of N weighted particles, and its distance from the posterior."""
    laws = toy()
    masked, posterior = laws.log_masked.exp(), laws.log_posterior.exp()
    lines = ["| particles | " + " | ".join(f"`{text}`" for text in laws.texts) + " | total variation |"]
    lines.append("|---|" + "---:|" * (len(laws.texts) + 1))
    for n in PARTICLES:
        law = resampled(masked, posterior, n)
        away = (law - posterior).abs().sum() / 2
        name = f"{n} (masked decoding)" if n == 1 else str(n)
        lines.append(f"| {name} | " + " | ".join(f"{p:.3f}" for p in law.tolist()) + f" | {away:.3f} |")
    lines.append("| posterior | " + " | ".join(f"{p:.3f}" for p in posterior.tolist()) + " | 0 |")
    return "\n".join(lines)


def smollm2_block() -> str:
    """A language model's table."""
    laws = Laws(CausalLM("smollm2-135m"), QUESTION, ANSWERS, max_new_tokens=16, stop=".")
    return table(laws)


BLOCKS: dict[str, Callable[[], str]] = {"toy": toy_block, "particles": particles_block, "smollm2": smollm2_block}


def in_page(name: str) -> re.Match[str]:
    """Where a block stands in the page."""
    found = re.search(rf"(<!-- {name} -->\n)(.*?)(\n<!-- end -->)", PAGE.read_text(encoding="utf-8"), re.S)
    assert found, f"{PAGE.name} has no place for {name}"
    return found


def main() -> None:
    """Every block, computed anew."""
    for name, block in BLOCKS.items():
        found = in_page(name)
        page = found.string[: found.start(2)] + block() + found.string[found.end(2) :]
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
