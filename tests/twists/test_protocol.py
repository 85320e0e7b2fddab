"""One protocol: tables that propose and weigh, judgements of prefixes, hard zeros, and sums, against enumeration."""

from __future__ import annotations

import pytest
import torch
from conftest import SEED
from toys.lms import ABCD, chain

from ppl_align import SMC, Enumeration, ImportanceSampling, completion, constrain, reward
from ppl_align.constraints import Contains
from ppl_align.core.errors import InputError, RunError
from ppl_align.lm.decoding import Rows
from ppl_align.lm.leaning import Leaning
from ppl_align.rewards import TokenSum
from ppl_align.testing import PROGRAMS, ChainOracle, Oracle, check_engine
from ppl_align.testing.statistics import mean_z
from ppl_align.twists import HardConstraint, PowerRamp, Prefixes, PrefixReward, Sum, Twist

ENDING = chain(4, 1, eos_id=3, dtype=torch.float32)
SUM = TokenSum(torch.tensor([0.5, -1.0, 0.3, 0.0]), terminal=(3,))


class Table(Twist):
    """log psi of the next token by the last one, any numbers at all; ``of``: which tokens are told apart."""

    def __init__(self, seed: int, strength: float = 0.5) -> None:
        self.seed, self.strength = seed, strength

    def next_token(self, rows: Rows) -> torch.Tensor:
        size = rows.log_probs.shape[1]
        table = self.strength * torch.randn(size, size, generator=torch.Generator().manual_seed(self.seed))
        last = [
            (*prompt, *ids, 0)[-2] if prompt or ids else 0 for prompt, ids in zip(rows.prompts, rows.ids, strict=True)
        ]
        return table[torch.tensor(last)]


class Weighing(Table):
    """Proposes by its table, weighs by something else."""

    def prefix(self, prefixes: Prefixes) -> torch.Tensor:
        return 0.3 * (prefixes.tokens == 1).double().flatten(1).sum(-1)


def judgement(prefixes: Prefixes) -> torch.Tensor:
    return 0.2 * prefixes.tokens.double().flatten(1).mean(-1)


TWISTS = {
    "table": lambda: Table(0),
    "a strong table": lambda: Table(1, 1.0),
    "proposes by one, weighs by another": lambda: Weighing(2),
    "two tables": lambda: (Table(0), Table(3)),
    "table and prefix reward": lambda: (Table(0), PrefixReward(-1.0)),
    "table and function": lambda: (Table(0), judgement),
    "three": lambda: ("prefix", judgement, Table(4)),
    "a ramp of powers": lambda: PowerRamp(2.0, tokens=3),
    "a ramp and a table": lambda: (PowerRamp(0.5, tokens=2), Table(0)),
    "nothing": lambda: Twist(),
}


@pytest.mark.parametrize("name", TWISTS)
def test_any_twist_keeps_the_contract(name):
    engine = SMC(160, twist=TWISTS[name](), ess_threshold=0.9)  # a table may suit a program badly
    programs = {n: PROGRAMS[n] for n in ("with_eos", "two_completions", "plated")}
    check_engine(engine, programs, num_replicates=120).raise_if_failed()


def confined():
    x = completion("x", ABCD, [0], max_new_tokens=4)
    constrain("word", Contains("ba"), x)
    reward("r", lambda t: (t == 2).double().sum(-1), x.tokens, beta=0.7)


@pytest.mark.parametrize(
    "twist",
    [Table(0), (Table(0), "lookahead"), (Table(1), "prefix"), (judgement, "lookahead")],
    ids=["table", "table and lookahead", "table and prefix", "function and lookahead"],
)
@pytest.mark.parametrize("every", [1, 2])
def test_hard_constraints_go_together_with_any_twist(twist, every):
    run = SMC(24, 400, twist=twist, ess_threshold=0.9, every=every, num_pool=8).run(confined, seed=SEED)
    exact = Enumeration().run(confined)
    assert abs(float(mean_z((run.log_evidence - float(exact.log_evidence)).exp(), 1.0))) < 4.5
    value, error = run.mean("r")
    assert abs(value - exact.mean("r").value) < 4.5 * error


def summed():
    x = completion("x", ENDING, [0], max_new_tokens=5)
    reward("r", SUM, x.tokens, beta=0.8)


def test_a_table_of_soft_values_leaves_no_variance():
    """The best twist proposes and weighs: every replicate is exact, whatever the number of particles."""

    oracle = ChainOracle(summed)

    class SoftValue(Twist):
        def next_token(self, rows):
            return torch.tensor(
                [[oracle.soft_value([*ids, v]) if self.possible(ids, v) else 0.0 for v in range(4)] for ids in rows.ids]
            )

        @staticmethod
        def possible(ids, v):
            return len(ids) < 5 and 3 not in ids

    run = SMC(3, 8, twist=SoftValue(), ess_threshold=1.0).run(summed, seed=SEED)
    assert run.log_evidence.tolist() == pytest.approx([oracle.log_evidence] * 8, abs=1e-4)
    plain = ImportanceSampling(3, 8).run(summed, seed=SEED)
    assert float(plain.log_evidence.std()) > 0.05


def test_a_table_sees_hidden_states(tiny_llama):
    seen = []

    class Looking(Twist):
        def next_token(self, rows):
            seen.append(tuple(rows.hidden.shape))
            return 0.1 * rows.hidden.float() @ torch.ones(16, 7)

    def program():
        x = completion("x", tiny_llama, [0], max_new_tokens=3)
        reward("r", lambda t: (t == 1).double().sum(-1), x.tokens, beta=0.7)

    run = SMC(50, 60, twist=Looking(), ess_threshold=0.9).run(program, seed=SEED)
    assert {shape[1] for shape in seen} == {16}
    exact = Oracle(program).log_evidence
    assert abs(float(mean_z((run.log_evidence - exact).exp(), 1.0))) < 4.5


def test_what_next_tokens_lean_to():
    log_p = torch.tensor([[0.5, 0.3, 0.2]]).log()
    psi = torch.tensor([[1.0, 2.0, 0.0]]).log()
    assert Leaning(log_psi=psi).support(log_p).exp().tolist() == [pytest.approx([5 / 11, 6 / 11, 0.0])]
    allowed = torch.tensor([[True, False, True]])
    assert Leaning(allowed).support(log_p).exp().tolist() == [pytest.approx([5 / 7, 0.0, 2 / 7])]
    mixed = Leaning(allowed, psi, defensive=0.1).support(log_p).exp()
    assert mixed.tolist() == [pytest.approx([0.9 + 0.1 * 5 / 7, 0.0, 0.1 * 2 / 7])]
    nothing = Leaning(torch.zeros(1, 3, dtype=torch.bool), psi)
    assert nothing.support(log_p).exp().tolist() == [pytest.approx([0.5, 0.3, 0.2])], (
        "a dead end is drawn from like any"
    )
    assert Leaning().support(log_p) is log_p


def test_sums_ask_each_part_once_and_forget_those_that_know_nothing():
    class Silent(Twist):
        def at(self, scene):
            return None

    scene = None
    assert Sum([Silent()]).at(scene) is None
    (kept,) = Sum([Silent(), Table(0)]).at(scene).parts
    assert isinstance(kept, Table)
    assert HardConstraint().of_constraints


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda rows: torch.zeros(1, 2), r"next_token returned shape \[1, 2\]"),
        (lambda rows: torch.zeros(len(rows.log_probs)), "next_token returned shape"),
    ],
)
def test_a_table_of_another_shape_is_one_line(broken, says):
    class Broken(Twist):
        def next_token(self, rows):
            return broken(rows)

    with pytest.raises(RunError, match=says) as caught:
        SMC(4, 1, twist=Broken()).run(PROGRAMS["with_eos"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [3, ("prefix", 2.0), ["lookahead", None]])
def test_what_is_no_twist(given):
    with pytest.raises(InputError, match="twist must be"):
        SMC(twist=given)


def test_a_twist_has_a_name_in_the_configuration_of_a_run():
    assert SMC(twist=Table(0)).describe()["twist"] == "Table()"
    assert SMC(twist=(judgement, "lookahead")).describe()["twist"] == "(judgement, 'lookahead')"
