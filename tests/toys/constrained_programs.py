"""Programs with hard constraints, small enough to enumerate: each kind of constraint, with and without EOS."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from ppl_align import MarkovLM, Prompted, completion, constrain, reward
from ppl_align.constraints import Contains, EndsWith, Grammar, JsonSchema, LengthLimit, Regex


def spelling(tokens, eos=True, seed=0):
    """A random Markov chain whose tokens spell text; "</s>" is added as EOS."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [*tokens, "</s>"] if eos else list(tokens)
    logits = torch.randn(len(tokens), len(tokens), generator=generator, dtype=torch.float64)
    initial = torch.randn(len(tokens), generator=generator, dtype=torch.float64)
    return MarkovLM(logits, initial, eos_id=len(tokens) - 1 if eos else None, tokens=tokens, name="spelling")


LETTERS = spelling(["a", "b", "ab"])
WORDS = spelling(["a", " ", "b "], seed=3)
FIXED = spelling(["a", "b", "ab"], eos=False, seed=1)
JSON = spelling(['{"a": ', '{"', 'a": ', "1", "2", "}"], seed=2)
VALUES = torch.tensor([0.9, -0.6, 0.4, 0.2, -0.3, 0.5, 0.1], dtype=torch.float64)


def taste(tokens):
    """A sum over tokens: defined on prefixes too, and different for every spelling."""
    return VALUES[tokens].sum(-1)


def regex_eos():
    x = completion("x", LETTERS, [], max_new_tokens=4)
    constrain("format", Regex("a*b(ab)?"), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=4.0)


def regex_fixed():
    """No EOS: only texts of three tokens can be cut off at the limit."""
    x = completion("x", FIXED, [0], max_new_tokens=3)
    constrain("format", Regex("(ab|b)+a?"), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=3.0)


def regex_stop():
    """A stop token is text, and ends it: no other end is acceptable before the limit."""
    x = completion("x", FIXED, [0], max_new_tokens=4, stop=1)
    constrain("format", Regex("a(ab|a)*b?"), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=4.0)


def grammar():
    x = completion("x", LETTERS, [], max_new_tokens=4)
    constrain("balanced", Grammar('start: "a" start "b" start | ""'), x)
    reward("taste", taste, x.tokens, beta=0.7, upper=4.0)


def json_cut_off():
    """A record takes three or four tokens; the limit cuts some off before EOS, which counts."""
    x = completion("x", JSON, [], max_new_tokens=4)
    schema = {"properties": {"a": {"type": "integer", "maximum": 20}}, "required": ["a"], "additionalProperties": False}
    constrain("record", JsonSchema({"type": "object", **schema}), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=4.0)


def contains():
    x = completion("x", FIXED, [1], max_new_tokens=4)
    constrain("has it", Contains("bab"), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=4.0)


def words():
    x = completion("x", WORDS, [], max_new_tokens=4)
    constrain("short", LengthLimit(min_words=2, max_words=2, min_tokens=3), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=4.0)


def two_constraints():
    """Neither sees the dead ends that the other makes."""
    x = completion("x", LETTERS, [], max_new_tokens=4)
    constrain("letters", Regex("(a|bb)*b?"), x)
    constrain("ends", EndsWith("ba"), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=4.0)


def joined():
    x = completion("x", LETTERS, [], max_new_tokens=4)
    constrain("both", Regex("(a|bb)*b?") & EndsWith("ba"), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=4.0)


def text_reward():
    x = completion("x", LETTERS, [], max_new_tokens=3)
    constrain("format", Regex("[ab]{2,4}"), x)
    reward("ends", lambda texts: [1.0 if t.endswith("b") else -0.5 for t in texts], x, beta=0.8, upper=1.0)


def second_completion():
    """The second text is constrained, its prompt is the first."""
    first = completion("first", LETTERS, [], max_new_tokens=2)
    reward("a", taste, first.tokens, beta=1.2, upper=2.0)
    second = completion("second", FIXED, ([0], first), max_new_tokens=3)
    constrain("format", Regex("b?(ab)+"), second)
    reward("b", taste, second.tokens, beta=1.2, upper=3.0)


def both_completions():
    """A latent above, a constraint on each of two texts."""
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
    first = completion("first", FIXED, z[..., None], max_new_tokens=2)
    constrain("one", Contains("b"), first)
    second = completion("second", LETTERS, ([1], first), max_new_tokens=3)
    constrain("two", Regex("(ab)*"), second)
    pyro.factor("tie", 0.5 * (z == second.tokens[..., 0]).double())


def plated():
    """A constraint inside a plate: each element has to meet it."""
    with pyro.plate("pair", 2):
        x = completion("x", LETTERS, [[0], [1]], max_new_tokens=2)
        constrain("format", Regex("a+b?|b"), x)
        reward("taste", taste, x.tokens, beta=0.9, upper=2.0)


def cut_by_top_k():
    """The declared prior leaves out what the constraint would need: dead ends that no reader can see."""
    x = completion("x", LETTERS, [], max_new_tokens=3, top_k=2)
    constrain("format", Regex("b?a*|ab"), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=3.0)


def for_some_only():
    """Pyro's way to condition on a constraint where a latent says so: engines must not draw within it everywhere."""
    z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
    x = completion("x", LETTERS, [], max_new_tokens=3)
    with pyro.poutine.mask(mask=z == 1):
        constrain("format", Regex("a*b"), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=3.0)


def made_anew():
    """A language model that the program makes at each execution."""
    x = completion("x", Prompted(FIXED, before=[1]), [0], max_new_tokens=3)
    constrain("has it", Contains("ba"), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=3.0)


PROGRAMS = {
    program.__name__: program
    for program in (
        regex_eos,
        regex_fixed,
        regex_stop,
        grammar,
        json_cut_off,
        contains,
        words,
        two_constraints,
        joined,
        text_reward,
        second_completion,
        both_completions,
        plated,
        cut_by_top_k,
        for_some_only,
        made_anew,
    )
}
