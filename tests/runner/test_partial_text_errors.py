"""What cannot read a prefix is one line: which completion, at which length, what to do; the original is chained."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_align import SMC, Enumeration, ImportanceSampling, completion, reward
from ppl_align.core.errors import PartialTextError, RewardError
from ppl_align.lints import lint
from ppl_align.testing.programs import FIXED, count_score


class Odd(Exception):
    pass


def fifth_token():
    x = completion("x", FIXED, [0], max_new_tokens=5)
    pyro.factor("f", 0.1 * (x.tokens[..., 4] == 1).double())


def fifth_token_in_a_plate():
    with pyro.plate("pair", 2):
        x = completion("x", FIXED, [0], max_new_tokens=5)
        pyro.factor("f", 0.1 * (x.tokens[..., 4] == 1).double())


def fifth_token_of_a_reward():
    x = completion("x", FIXED, [0], max_new_tokens=5)
    reward("r", lambda t: (t[..., 4] == 1).double(), x.tokens)


def a_text_of_five():
    x = completion("x", FIXED, [0], max_new_tokens=5)

    def needs_five(texts):
        return [float(text.split()[4]) for text in texts]

    reward("r", needs_five, x, weight=0.1)


def weights_of_five():
    x = completion("x", FIXED, [0], max_new_tokens=5)
    pyro.factor("f", (x.tokens * torch.arange(5)).sum(-1) * 0.01)


def a_latent_of_the_fifth():
    x = completion("x", FIXED, [0], max_new_tokens=5)
    pyro.sample("y", dist.Bernoulli(0.2 + 0.2 * x.tokens[..., 4].double()), obs=torch.tensor(1.0))


def its_own(error):
    def program():
        x = completion("x", FIXED, [0], max_new_tokens=5)
        if x.tokens.shape[-1] < 5:
            raise error
        reward("r", count_score, x.tokens)

    return program


PROGRAMS = [
    (fifth_token, IndexError),
    (fifth_token_in_a_plate, IndexError),
    (fifth_token_of_a_reward, IndexError),
    (a_text_of_five, IndexError),
    (weights_of_five, RuntimeError),
    (a_latent_of_the_fifth, IndexError),
    *((its_own(error), type(error)) for error in (Odd("odd"), KeyError("k"), ValueError("two\nlines"), TypeError())),
]


def original(error):
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@pytest.mark.parametrize(("program", "kind"), PROGRAMS)
def test_it_is_one_line_with_site_and_length(program, kind):
    with pytest.raises(PartialTextError, match=r"'x' after [12] of its 5 tokens.*twist=None") as caught:
        SMC(8, 2, twist="prefix").run(program)
    assert "\n" not in str(caught.value)
    assert type(original(caught.value)) is kind
    with pytest.raises(PartialTextError, match="after 2 of its 5 tokens"):
        SMC(8, 2, twist="prefix", every=2).run(program)
    for engine in (Enumeration(), ImportanceSampling(8, 2), SMC(8, 2)):  # nobody else asks about prefixes
        engine.run(program)


def test_what_fails_on_whole_texts_is_not_blamed_on_the_prefix():
    def broken():
        x = completion("x", FIXED, [0], max_new_tokens=5)
        reward("r", lambda texts: [1 / 0 for _ in texts], x)

    with pytest.raises(RewardError, match="reward 'r' raised ZeroDivisionError") as caught:
        SMC(8, 2, twist="prefix").run(broken)
    assert not isinstance(caught.value, PartialTextError)


def test_a_twist_that_fails_is_named():
    def twist(prefixes):
        return prefixes.tokens[..., 4].double()

    def program():
        x = completion("x", FIXED, [0], max_new_tokens=5)
        reward("r", count_score, x.tokens)

    with pytest.raises(PartialTextError, match="the twist failed on unfinished texts of 'x' after 1 token: IndexError"):
        SMC(8, 2, twist=twist).run(program)


@pytest.mark.parametrize("program", [fifth_token, its_own(Odd("odd"))])
def test_the_lint_says_so_beforehand(program):
    (found,) = (finding for finding in lint(program) if finding.lint == "program on partial text")
    assert "'x' cannot be read" in found.text
    assert "\n" not in str(found)
