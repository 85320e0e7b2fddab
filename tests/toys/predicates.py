"""Programs whose hard constraints are tests of text, small enough to enumerate."""

from __future__ import annotations

import pyro

from ppl_align import Contains, Predicate, Prompted, Regex, completion, constrain, reward
from toys.constrained_programs import FIXED, LETTERS, taste

GOOD = ["b", "bb", "aab", "abba"]


def good(text):
    return text in GOOD


def begins_well(text):
    return any(one.startswith(text) for one in GOOD)


def no_bb(text):
    return "bb" not in text


def even(text):
    return text.count("a") % 2 == 0 and text.count("b") <= 2


def few(text):
    return text.count("b") <= 2


NO_BB = Predicate(accepts=no_bb, viable=no_bb)


def without_bb():
    """No dead ends: an "a" may always follow."""
    x = completion("x", LETTERS, [], max_new_tokens=4)
    constrain("calm", NO_BB, x)
    reward("taste", taste, x.tokens, beta=0.9, upper=4.0)


def with_dead_ends():
    """A beginning does not know how many tokens are left: "a", "b" is too late for "abba"."""
    x = completion("x", LETTERS, [], max_new_tokens=3)
    constrain("form", Predicate(accepts=good, viable=begins_well), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=4.0)


def stop_string():
    """What ends the text belongs to it, and may be cut into tokens in several ways."""
    x = completion("x", FIXED, [0], max_new_tokens=4, stop="ba")
    constrain("even", Predicate(accepts=even, viable=few), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=4.0)


def and_regex():
    """A mask and a test; the test is a lambda, made anew at each execution."""
    x = completion("x", LETTERS, [], max_new_tokens=4)
    constrain("both", Regex("(a|bb)*b?") & Predicate(lambda t: len(t) % 2 == 0, viable=lambda t: len(t) <= 4), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=4.0)


def two_tests():
    x = completion("x", LETTERS, [], max_new_tokens=3)
    constrain("calm", NO_BB, x)
    constrain("even", Predicate(accepts=even, viable=few), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=4.0)


def in_a_plate():
    with pyro.plate("pair", 2):
        x = completion("x", LETTERS, [[0], [1]], max_new_tokens=2)
        constrain("calm", NO_BB, x)
        reward("taste", taste, x.tokens, beta=0.9, upper=2.0)


def second_site():
    first = completion("first", LETTERS, [], max_new_tokens=2)
    reward("a", taste, first.tokens, beta=1.2, upper=2.0)
    second = completion("second", FIXED, ([0], first), max_new_tokens=3)
    constrain("calm", NO_BB, second)
    reward("b", taste, second.tokens, beta=1.2, upper=3.0)


def cut_by_top_k():
    """What passes may be what the declared prior leaves out."""
    x = completion("x", LETTERS, [], max_new_tokens=3, top_k=2)
    constrain("form", Predicate(accepts=good, viable=begins_well), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=3.0)


def contains_and_test():
    """Something to look ahead to, and a test."""
    x = completion("x", FIXED, [1], max_new_tokens=4)
    constrain("both", Contains("bab") & Predicate(accepts=few, viable=few), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=4.0)


def made_anew():
    """A language model that the program makes at each execution."""
    x = completion("x", Prompted(FIXED, before=[1]), [0], max_new_tokens=3)
    constrain("calm", NO_BB, x)
    reward("taste", taste, x.tokens, beta=0.9, upper=3.0)


def at_the_end():
    x = completion("x", LETTERS, [], max_new_tokens=3)
    constrain("form", Predicate(accepts=good), x)
    reward("taste", taste, x.tokens, beta=0.9, upper=4.0)


PROGRAMS = {
    program.__name__: program
    for program in (
        without_bb,
        with_dead_ends,
        stop_string,
        and_regex,
        two_tests,
        in_a_plate,
        second_site,
        cut_by_top_k,
        contains_and_test,
        made_anew,
        at_the_end,
    )
}
