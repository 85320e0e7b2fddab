"""Looking ahead: psi against the exact probability of success, E[Zhat] = Z whatever psi is, and what it is worth."""

from __future__ import annotations

import itertools

import pyro
import pytest
import torch
from conftest import SEED
from toys.constrained_programs import taste
from toys.contracts import contract_of
from toys.lms import chain

from ppl_align import (
    SMC,
    AcceptedBy,
    Contains,
    EndsWith,
    ImportanceSampling,
    LookAhead,
    MarkovLM,
    completion,
    constrain,
    look_ahead,
    reward,
)
from ppl_align.core.errors import InputError
from ppl_align.engines.smc.twisted import TwistedSMC
from ppl_align.program import Program
from ppl_align.program.constrain import compiled
from ppl_align.program.sketch import sketch
from ppl_align.rewards import Automaton
from ppl_align.testing import check_engine
from ppl_align.twists.twist import Prefixes

TOKENS = ["a", "b", "ab", "c", "."]


def letters(eos: bool = True, rare: float = 0.0) -> MarkovLM:
    """A Markov chain over letters; ``rare``: nats taken from every token with a b in it."""
    cost = torch.tensor([0.0, rare, rare, 0.0, 1.0], dtype=torch.float64)
    return chain(5, 4, 4 if eos else None, scale=0.7, initial=0.7, cost=cost, tokens=TOKENS)


LM = letters()


def word() -> None:
    x = completion("x", LM, [], max_new_tokens=4)
    constrain("word", Contains("ba"), x)
    reward("r", lambda t: 0.7 * (t == 3).sum(-1), x.tokens, upper=2.8)


def ending() -> None:
    x = completion("x", LM, [0], max_new_tokens=4)
    constrain("ending", EndsWith("bc"), x)


def fixed() -> None:
    x = completion("x", letters(eos=False), [1], max_new_tokens=4)
    constrain("ids", AcceptedBy(Automaton.contains([2, 3], 5)), x)


def later() -> None:
    """The second completion is constrained, and its prompts differ."""
    first = completion("first", LM, [], max_new_tokens=2)
    second = completion("second", LM, ([0], first), max_new_tokens=3)
    constrain("word", Contains("cab"), second)


PROGRAMS = {program.__name__: program for program in (word, ending, fixed, later)}


@pytest.mark.parametrize(
    "engine",
    [
        SMC(num_particles=24, twist="lookahead", num_pool=16),
        SMC(num_particles=24, twist="lookahead", num_pool=1),  # a poor psi costs variance, not truth
        SMC(num_particles=24, twist="lookahead", every=2, resampling="multinomial", ess_threshold=1.0),
    ],
    ids=["learned", "hardly learned", "resampled all the time"],
)
def test_every_psi_keeps_the_contract(engine):
    report = contract_of(engine, PROGRAMS, num_replicates=150)
    report.raise_if_failed()
    assert all(result.status != "refused" for result in report.results)


def test_any_given_psi_keeps_the_contract():
    """Deliberately wrong: success seems likely exactly where it is not."""
    matcher = compiled(Contains("ba"), LM)
    size = matcher.automaton.num_states
    wrong = torch.tensor([[0.9, 0.2, 0.5][s % 3] for s in range(size)]).double().expand(5, -1)
    check_engine(SMC(num_particles=48, twist=LookAhead(matcher, wrong)), {"word": word}).raise_if_failed()


def success(lm: MarkovLM, matcher, length: int) -> torch.Tensor:
    """P(success | state s, last token v, l tokens left), [T + 1, S, V], by brute force over the next tokens."""
    automaton, vocab = matcher.automaton, lm.vocab_size
    p = lm.start([(v,) for v in range(vocab)]).log_probs.exp()
    value = automaton.accepting.double()[:, None].expand(-1, vocab)
    found = [value]
    for _ in range(length):
        new = torch.zeros_like(value)
        for s, v, w in itertools.product(range(automaton.num_states), range(vocab), range(vocab)):
            ends = w == lm.eos_id
            new[s, v] += p[v, w] * (automaton.accepting[s] if ends else found[-1][automaton.transitions[s, w], w])
        found.append(new)
    return torch.stack(found)


def test_psi_is_learned_without_seeing_the_word():
    """A word of probability 1e-4 does not occur in a pool of 64 draws; its psi is right within a factor of two."""
    lm = letters(rare=6.5)
    look = look_ahead(lm, Contains("cba"), [0], 6, num_pool=64, seed=1)
    matcher = look.matcher
    exact = success(lm, matcher, 6)
    start = matcher.automaton.start
    for left in (3, 4, 6):
        for token in (0, 3):
            learned = float(look.table(left)[start, token])
            assert 0.5 < learned / float(exact[left, start, token]) < 2, (left, token)


def test_a_rare_word_is_worth_thirty_times_the_tokens():
    """On a chain, IS would need (1 - p) / (p relvar) draws for the same relative variance; the pool counts."""
    lm = letters(rare=6.5)

    def rare() -> None:
        x = completion("x", lm, [0], max_new_tokens=12)
        constrain("word", Contains("cba"), x)

    run = SMC(num_particles=16, num_replicates=64, twist="lookahead").run(rare)
    z = run.log_evidence.exp()
    relvar = float(z.var() / z.mean() ** 2) / len(z)
    p = float(z.mean())
    assert 1e-4 < p < 3e-3
    draws = (1 - p) / (p * relvar)
    prior = ImportanceSampling(num_particles=2048, num_replicates=1).run(lambda: completion("x", lm, [0], 12))
    equivalent = draws * float(prior.particles["x"].lengths.double().mean())  # no LM rows: a chain shares most of them
    spent = float(run.particles["x"].lengths.sum()) + 64 * 12
    assert equivalent > 30 * spent


# -- together with rewards --------------------------------------------------------------------------------------------


def liked() -> None:
    x = completion("x", LM, [], max_new_tokens=4)
    constrain("word", Contains("ba"), x)
    reward("taste", taste, x.tokens, beta=0.6, upper=4.0)


def liked_pair() -> None:
    """Two texts in a plate, each with its word: a particle may run in one lane and have ended in the other."""
    with pyro.plate("pair", 2):
        x = completion("x", LM, [[0], [1]], max_new_tokens=2)
        constrain("word", Contains("b"), x)
        reward("taste", taste, x.tokens, beta=0.6, upper=2.0)


def liked_later() -> None:
    """Nothing to look ahead to on the first completion; a prefix of it has a taste."""
    first = completion("first", LM, [], max_new_tokens=2)
    reward("early", taste, first.tokens, beta=0.6, upper=2.0)
    second = completion("second", LM, ([0], first), max_new_tokens=3)
    constrain("word", EndsWith("b"), second)
    reward("late", lambda t: -0.5 * taste(t), second.tokens, beta=0.6, upper=1.0)


def tasting(prefixes: Prefixes) -> torch.Tensor:
    return taste(prefixes.tokens).reshape(len(prefixes.tokens), -1).sum(-1)


LIKED = {program.__name__: program for program in (liked, liked_pair, liked_later)}


@pytest.mark.parametrize(
    "engine",
    [
        SMC(num_particles=24, twist=("prefix", "lookahead"), num_pool=16, ess_threshold=0.9),
        SMC(num_particles=24, twist=("lookahead", "prefix"), num_pool=8, every=2, resampling="multinomial"),
        SMC(num_particles=24, twist=(tasting, "lookahead"), num_pool=8, ess_threshold=0.9),
    ],
    ids=["prefix", "prefix, now and then", "function"],
)
def test_a_judgement_of_the_text_and_a_look_ahead_keep_the_contract(engine):
    report = contract_of(engine, LIKED, num_replicates=150)
    report.raise_if_failed()
    assert all(result.status != "refused" for result in report.results)


@pytest.mark.parametrize("soft", ["prefix", tasting])
def test_the_two_parts_of_a_twist_are_added(soft, monkeypatch):
    """Of a running text: its taste and the log-probability of success. Of one that has ended: what the program says."""
    look, seen, scale = look_ahead(LM, Contains("ba"), [], 7, num_pool=8), [], 1 / 0.6

    def model() -> None:
        x = completion("x", LM, [], max_new_tokens=7)
        constrain("word", Contains("ba"), x)
        reward("taste", taste, x.tokens, beta=0.6)

    inner = TwistedSMC.potential

    def spy(self, decode, chosen, running):
        psi = inner(self, decode, chosen, running)
        tokens = decode.prefix(decode.t)[chosen]
        ended = torch.isin(tokens, torch.tensor(LM.eos_id)).any(-1)
        for ids, value, over in zip(tokens, psi.tolist(), ended.tolist(), strict=True):
            prefix = tuple(ids.tolist())
            ahead = 0.0 if over else look.now([prefix], 7 - len(prefix)).item()
            if over and callable(soft):  # the program sees what has ended as it will be: padded to its full length
                ids = torch.cat([ids, ids.new_full((7 - len(ids),), LM.eos_id)])
            liking = taste(ids).item() * (scale if over or soft == "prefix" else 1.0)
            seen.append((over, value - liking - ahead))
        return psi

    monkeypatch.setattr(TwistedSMC, "potential", spy)
    SMC(num_particles=32, num_replicates=2, twist=(soft, look), ess_threshold=0.9).run(model, seed=SEED)
    assert {over for over, _ in seen} == {True, False}
    assert max(abs(difference) for _, difference in seen) < 1e-6


def test_both_parts_are_worth_more_than_one():
    """A rare word, and a strong reward on one of its letters: relative spread of Zhat, same number of particles."""
    lm = letters(rare=3.0)

    def rare() -> None:
        x = completion("x", lm, [0], max_new_tokens=10)
        constrain("word", Contains("cba"), x)
        reward("c", lambda t: (t == 3).double().sum(-1), x.tokens, beta=0.5)

    spread = {}
    for name, twist in {"both": ("prefix", "lookahead"), "ahead": "lookahead", "prefix": "prefix"}.items():
        run = SMC(num_particles=32, num_replicates=256, twist=twist).run(rare, seed=SEED)
        spread[name] = float(run.log_evidence.exp().std() / run.log_evidence.exp().mean())
    assert spread["both"] < 0.8 * spread["ahead"]
    assert spread["both"] < 0.8 * spread["prefix"]


def test_what_is_no_twist():
    for twist in ((tasting, tasting), ("lookahead", "lookahead")):
        with pytest.raises(InputError, match="one is there twice"):
            SMC(twist=twist)
    with pytest.raises(InputError, match="got float"):
        SMC(twist=("prefix", 0.5))


def unconstrained() -> None:
    x = completion("x", LM, [], max_new_tokens=3)
    reward("taste", taste, x.tokens, beta=0.6)


@pytest.mark.parametrize(
    ("twist", "says"),
    [
        ("lookahead", "to look ahead to; SMC is importance"),
        (("prefix", "lookahead"), "to look ahead to; SMC goes on without it"),
        (None, "SMC had no weights before the end (twist=None): this run is importance sampling"),
        ("given", "no completion has the constraint that it was made for; SMC is importance sampling"),
        ("prefix", None),
    ],
)
def test_nothing_to_look_ahead_to(twist, says, caplog):
    given = look_ahead(LM, Contains("ba"), [], 3, num_pool=8) if twist == "given" else twist
    SMC(8, 2, twist=given).run(unconstrained, seed=SEED)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (says is not None)
    assert says is None or says in warnings[0]


def test_what_cannot_look_ahead_says_so():
    with pytest.raises(InputError, match="needs \\[5, "):
        SMC(twist=LookAhead(compiled(Contains("ba"), LM), torch.ones(2, 3).double())).run(word)
    with pytest.raises(InputError, match="did you mean 'lookahead'"):
        SMC(twist="look-ahead")


def test_each_part_of_a_conjunction_looks_ahead():
    """``Contains`` is asked as well when it stands beside another constraint."""

    def both() -> None:
        x = completion("x", LM, [], max_new_tokens=4)
        constrain("both", Contains("ba") & Contains("c"), x)

    found = sketch(Program(both)).matchers["x"]
    assert [type(matcher).__name__ for matcher in found] == ["AutomatonMatcher"] * 2
    check_engine(SMC(num_particles=32, twist="lookahead"), {"both": both}, num_replicates=150).raise_if_failed()
