"""Looking ahead must not depend on luck with the pool: stop tokens, what no draw of the pool has met, tiny masses.

E[Zhat] = Z holds for every psi, so a bad one does not show in means over many runs: it shows in what most runs find.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import SEED
from toys.constrained_programs import spelling

from ppl_align import (
    SMC,
    CallableLM,
    Contains,
    EndsWith,
    Enumeration,
    ImportanceSampling,
    LookAhead,
    MarkovLM,
    completion,
    constrain,
    look_ahead,
)
from ppl_align.core.errors import InputError
from ppl_align.lm.leaning import Leaning
from ppl_align.program.constrain import compiled
from ppl_align.testing import check_engine
from ppl_align.twists.site_lookahead import DEFENSIVE
from ppl_align.twists.stop_states import stop_strings_of
from ppl_align.twists.transition_model import UNSEEN, observe

CHAINS = {seed: spelling(["a", "b", "ab", "."], seed=seed) for seed in (0, 4, 7)}


def shares(model, engine, seeds):
    """Zhat / Z, [seeds, R]: every seed draws a pool of its own."""
    log_z = Enumeration().run(model).log_evidence
    return torch.stack([(engine.run(model, seed=SEED + seed).log_evidence - log_z).exp() for seed in seeds]).double()


def ending(lm: MarkovLM, prompt=(), **declared):
    """A program whose text ends with "b.", of which the dot is a stop token."""

    def model() -> None:
        x = completion("x", lm, list(prompt), max_new_tokens=4, stop=".", **declared)
        constrain("ending", EndsWith("b."), x)

    return model


@pytest.mark.parametrize("declared", [{}, {"stop": "."}, {"stop": ["b", "."]}, {"top_k": 3}])
@pytest.mark.parametrize("constraint", [EndsWith("b."), Contains("ba")])
def test_the_moves_that_were_seen_are_the_exact_ones(declared, constraint):
    """Averaged over pools, the weighted mass from each state is that of the prior's prefixes; ends lead nowhere."""
    lm = CHAINS[7]
    matcher, source = compiled(constraint, lm), lm.completion([0], 3, **declared)
    automaton, moves, size = matcher.automaton, matcher.automaton.transitions, matcher.automaton.num_states
    expected = torch.zeros(size, size + 1, dtype=torch.float64)
    living: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        after: dict[tuple[int, ...], float] = {}
        for prefix, p in living.items():
            state = int(matcher.states([prefix])[0])
            if automaton.accepting[state] and bool((moves[state] == state).all()):
                continue  # it has succeeded for good
            step = source.warp(lm.start([(0, *prefix)]).log_probs).exp()[0]
            for v, mass in enumerate(step.tolist()):
                to = state if v == lm.eos_id else int(moves[state, v])
                if v not in source.terminal:
                    expected[state, to] += p * mass
                    after[(*prefix, v)] = p * mass
                elif automaton.accepting[to]:
                    expected[state, size] += p * mass
        living = after
    totals = []
    for seed in range(60):
        torch.manual_seed(seed)
        found = observe(source.expand([8]), matcher, 8)
        total = torch.zeros_like(expected)
        totals.append(total.index_add_(0, found.states, found.weights[:, None] * found.masses) / 8)
    stack = torch.stack(totals)
    error = stack.std(0) / len(stack) ** 0.5
    z = (stack.mean(0) - expected)[error > 1e-12] / error[error > 1e-12]
    assert z.abs().max() < 4
    assert torch.allclose(stack.mean(0)[error <= 1e-12], expected[error <= 1e-12], atol=1e-6)


@pytest.mark.parametrize("stop", [(), (3,), (0, 3)])
@pytest.mark.parametrize("constraint", [EndsWith("b."), Contains("ab.")])
def test_psi_knows_where_a_text_ends(stop, constraint):
    """Where the next token hangs on nothing, the mean says all, and psi is exact: a stop token is the last."""
    row = CHAINS[4].log_initial
    lm = MarkovLM(row.repeat(5, 1), row, eos_id=4, tokens=CHAINS[4].tokens)
    look = look_ahead(lm, constraint, [0], 4, num_pool=64, stop=list(stop))
    automaton, accepting = look.matcher.automaton, look.matcher.automaton.accepting.double()
    exact = [accepting]
    for _ in range(4):
        new = torch.zeros_like(accepting)
        for s, v in itertools.product(range(automaton.num_states), range(5)):
            to = s if v == lm.eos_id else int(automaton.transitions[s, v])
            new[s] += row[v].exp() * (accepting if v == lm.eos_id or v in stop else exact[-1])[to]
        exact.append(new)
    start = automaton.start
    for left in range(5):
        assert float(look.success[left, start]) == pytest.approx(float(exact[left][start]), rel=1e-9)
        for v in range(5):
            to, ends = (start if v == lm.eos_id else int(automaton.transitions[start, v])), v == lm.eos_id or v in stop
            expected = float((accepting if ends else exact[left])[to])
            assert float(look.after(left)[start, v]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("stop", ["ab", "bb", ["a.", "bab"], ["ab", 3]])
@pytest.mark.parametrize("constraint", [EndsWith("b."), Contains("b."), Contains("bb")])
def test_psi_knows_where_a_text_ends_with_a_string(stop, constraint):
    """As above, against all texts of at most four tokens."""
    row = CHAINS[4].log_initial
    tokens = ["a", "b", "c", ".", "</s>"]
    lm = MarkovLM(row.repeat(5, 1), row, eos_id=4, tokens=tokens)
    source = lm.completion([0], 4, stop=stop)
    look = look_ahead(lm, constraint, [0], 4, num_pool=64, stop=stop)
    assert stop_strings_of(look.matcher) == source.stop_ids.text
    matcher = constraint.compile(lm)

    def success(prefix, left):
        """P(the text meets the constraint in the end | prefix, which has not ended)."""
        if left == 0:
            return float(matcher.accepts([prefix])[0])
        total = float(row[4].exp()) * float(matcher.accepts([prefix])[0])
        for v in range(4):
            text = (*prefix, v)
            over = bool(source.ended_before(torch.tensor([[*text, 0]]))[0, -1])
            total += float(row[v].exp()) * (float(matcher.accepts([text])[0]) if over else success(text, left - 1))
        return total

    for prefix in [(), (0,), (1,), (2, 1), (1, 0)]:
        if prefix and bool(source.ended_before(torch.tensor([[*prefix, 0]]))[0, -1]):
            continue
        state = int(look.matcher.states([prefix])[0])
        for left in range(5 - len(prefix)):
            assert float(look.success[left, state]) == pytest.approx(success(prefix, left), abs=1e-9), (prefix, left)


def test_stop_strings_of_another_completion_are_refused():
    lm = MarkovLM(CHAINS[4].log_initial.repeat(5, 1), eos_id=4, tokens=["a", "b", "c", ".", "</s>"])
    look = look_ahead(lm, Contains("b."), [0], 4, stop="ab")
    assert look.checked(lm.completion([0], 4, stop=["ab", 3])).stop_ids[:] == (3,)
    for other in (None, "ba", 3):
        with pytest.raises(InputError, match="foresees that 'ab' ends a text") as caught:
            look.checked(lm.completion([0], 4, stop=other))
        assert "\n" not in str(caught.value)
    look_ahead(lm, Contains("b."), [0], 4).checked(lm.completion([0], 4, stop="ab"))  # not foreseen: no bias


@pytest.mark.parametrize(("seed", "prompt"), [(4, [0]), (4, [1]), (0, [])])
def test_a_stop_token_is_foreseen(seed, prompt):
    """The spread of Zhat over pools and runs is a small part of that of importance sampling."""
    model = ending(CHAINS[seed], prompt, top_p=0.9)
    ahead = shares(model, SMC(64, 8, twist="lookahead", num_pool=16), range(8))
    blind = shares(model, ImportanceSampling(64, 8), range(8))
    assert ((ahead - 1) ** 2).mean() < 0.3 * ((blind - 1) ** 2).mean()


@pytest.mark.statistical
def test_no_pool_of_few_draws_misses_most_of_the_evidence():
    """top_p leaves few ways to the end, and of eight draws perhaps none shows them all."""
    for declared in ({"top_p": 0.95}, {"top_p": 0.9}, {"top_k": 3}):
        found = shares(ending(CHAINS[7], **declared), SMC(64, 4, twist="lookahead", num_pool=8), range(24)).mean(-1)
        assert found.median() > 0.9
        assert found.min() > 0.7, "one pool in 24 found less"


def test_a_lookahead_made_for_other_ends_is_only_less_good():
    """It is told the stop tokens of the completion that it is used on."""
    lm = CHAINS[4]
    look = look_ahead(lm, EndsWith("b."), [0], 4, num_pool=64)
    assert look.stop_ids == ()
    model = ending(lm, [0])
    check_engine(SMC(num_particles=24, twist=look), {"ending": model}, num_replicates=150).raise_if_failed()
    dot = lm.tokens.index(".")
    checked = look.checked(lm.completion([0], 4, stop="."))
    assert checked.stop_ids == (dot,)
    assert checked.after(2)[look.matcher.automaton.start, dot] == 0, "a text that ends with a dot alone has failed"
    assert look.after(2)[look.matcher.automaton.start, dot] > 0


# -- what no draw of the pool has met -----------------------------------------------------------------------------

LETTERS = ["a", "b", "c", "x", "</s>"]


def secret(tiny: float) -> CallableLM:
    """Writes a b after an a in texts that begin with a c, which is one in three hundred; elsewhere a b is ``tiny``."""

    def fn(prefix: torch.Tensor) -> torch.Tensor:
        p = torch.full((len(prefix), len(LETTERS)), tiny, dtype=torch.float64)
        for i, row in enumerate(prefix.tolist()):
            p[i, [0, 3, 4]] = torch.tensor([0.3, 0.3, 0.01], dtype=torch.float64)
            p[i, 2] = tiny if row else 0.003
            if 2 in row and row[-1] == 0:
                p[i, 1] = 0.5
        return p.log()

    return CallableLM(len(LETTERS), fn, eos_id=4, tokens=LETTERS)


@pytest.mark.parametrize("tiny", [1e-300, pytest.param(1e-6, marks=pytest.mark.statistical)])
def test_success_that_hangs_on_what_the_pool_has_not_met(tiny):
    """Most pools show that the word never comes. The first particle that has it must not replace those that may yet:
    with psi alone as the weight, half of the pools find less than 0.4 Z, and replicates agree on it."""
    lm = secret(tiny)

    def model() -> None:
        constrain("word", Contains("ab"), completion("x", lm, [], max_new_tokens=7))

    found = shares(model, SMC(1000, 16, twist="lookahead"), range(12)).mean(-1)
    assert found.median() > 0.65


def test_what_is_unseen_weighs_and_does_not_propose():
    """psi+ counts UNSEEN prefixes more than the pool has: never much above psi where the pool says much."""
    lm = secret(1e-9)
    look = look_ahead(lm, Contains("ab"), [], 7, num_pool=64)
    start = look.matcher.automaton.start
    torch.manual_seed(0)
    moves = observe(lm.completion([], 7).expand([64]), look.matcher, 64)
    visits = float((moves.states != start).sum())
    half = int(look.matcher.states([(0,)])[0])
    done = int(look.matcher.states([(0, 1)])[0])
    assert look.success[7, start] < 1e-6
    assert look.smoothed[7, start] > UNSEEN / 1000
    assert UNSEEN / (4 * visits) < float(moves.smoothed[half, done]) < 3 * UNSEEN / visits
    assert look.now([(0,)], 5) > look.now([(3,)], 5) > -12
    common = look_ahead(CHAINS[7], Contains("ba"), [0], 6, num_pool=64)
    ratio = common.smoothed[6] / common.success[6]
    assert ratio.min() > 0.8
    assert ratio.max() < 1.3


# -- masses that float32 does not hold ----------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [9.0, 12.0])
def test_tiny_masses_are_as_exact_as_any(cost):
    """At temperature 0.1 the only token that is left has e^-90 or e^-120: float32 holds no such number."""
    row = torch.tensor([0.0, -cost, -0.1])
    lm = MarkovLM(row.repeat(3, 1), row, eos_id=2, tokens=["a", "b", "</s>"])

    def model() -> None:
        constrain("word", Contains("ab"), completion("x", lm, [], max_new_tokens=2, temperature=0.1))

    exact = float(Enumeration().run(model).log_evidence)
    assert exact < -9 * cost
    for engine in (ImportanceSampling(8, 2), SMC(8, 2, twist="lookahead")):
        assert engine.run(model, seed=SEED).log_evidence.tolist() == pytest.approx([exact] * 2, abs=1e-4)


def test_a_dead_end_is_drawn_from_like_any_other():
    lm = MarkovLM(torch.zeros(2, 2), tokens=["a", "b"])
    matcher = compiled(Contains("b"), lm)
    look = LookAhead(matcher, torch.full((4, 2), 0.5).double())
    log_p = torch.tensor([[0.3, 0.7], [0.3, 0.7], [1.0, 0.0]]).log()
    allowed = torch.tensor([[False, False], [False, True], [False, True]])
    q = Leaning(allowed, look.then([(0, 0)] * 3, 0), defensive=DEFENSIVE).support(log_p).exp()
    assert q.tolist() == [pytest.approx([0.3, 0.7]), [0.0, 1.0], pytest.approx([1.0, 0.0])]
