"""The theory of alignment as inference, as studies that could refute it: one claim, one file, one short essay.

A claim is a module of this folder. Its docstring is the essay (the first line is the statement); ``study(found)``
does the experiment with the library's public API and writes what it finds into a :class:`~.findings.Findings`;
``study_lm(found, lm)``, where there is one, does it again on a real language model; ``figure(found)`` draws one
picture. ``ppl-align claims`` runs them, ``docs/claims.md`` is written from them.
"""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType

from ppl_align.core.errors import InputError

CHAPTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "One target": (
        "Alignment asks for a distribution: the prior of the language model, reweighted by what is wanted. "
        "These claims say what that distribution is, and that everybody who optimises a KL-regularised reward is "
        "approximating it, whether they know it or not.",
        ("posterior-is-optimum", "elbo-gap", "soft-values", "moments", "f-divergences", "target-agreement"),
    ),
    "What training does": (
        "Training moves a policy through the space of distributions. Where it ends depends on the objective, on "
        "when it stops and on what it is fed.",
        (
            "collapse",
            "self-training",
            "temperature-breaks-it",
            "novelty-needs-reward",
            "early-stopping",
            "forward-reverse",
        ),
    ),
    "What sampling does": (
        "The same target can be reached at decoding time, by drawing and weighing. Here the question is how many "
        "draws it takes, and how one would notice that it took too few.",
        (
            "best-of-n",
            "quasi-rejection",
            "sandwich",
            "smc-vs-is",
            "power-sampling",
            "power-smc",
            "process-rewards",
            "hidden-mode",
        ),
    ),
    "When the reward is wrong": (
        "A reward is a belief about what is good, and beliefs can be mistaken. The prior is what tempers them.",
        ("overoptimisation", "reward-uncertainty", "prior-vs-reward", "frozen-reward"),
    ),
    "When the world is random": (
        "Conditioning on success assumes that the world will cooperate. Where the world is random, the posterior "
        "and the best policy part company.",
        ("optimism", "interaction"),
    ),
}
"""The chapters of the book: title, introduction, and claims by id, in the order in which they are best read."""

CLAIMS: tuple[str, ...] = tuple(name for _, claims in CHAPTERS.values() for name in claims)


def load(name: str) -> ModuleType:
    """The module of a claim; raises ``InputError`` for an id that does not exist."""
    if name not in CLAIMS:
        near = difflib.get_close_matches(name, CLAIMS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"there is no claim {name!r}{hint} (ppl-align claims --list names them all)")
    return importlib.import_module(f"ppl_align.claims.{name.replace('-', '_')}")


def statement(module: ModuleType) -> str:
    """The first line of the essay: what is claimed."""
    return (module.__doc__ or "").strip().splitlines()[0].strip()


def essay(module: ModuleType) -> str:
    """The essay without its first line, Markdown."""
    return "\n".join((module.__doc__ or "").strip().splitlines()[1:]).strip()
