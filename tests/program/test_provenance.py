"""What a run was made from: kept, saved, shown, and compared."""

import getpass
import json
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch
from toys.tiny import tiny_llama, tiny_tokenizer

import ppl_align
from ppl_align import (
    SMC,
    SVI,
    CallableLM,
    CausalLM,
    Enumeration,
    ImportanceSampling,
    MarkovLM,
    Mixture,
    Posterior,
    Prompted,
    Rejection,
    compare,
    completion,
    expert,
    reward,
)
from ppl_align.cli import main
from ppl_align.core.digests import digest
from ppl_align.program.provenance import Provenance, command, differences, versions

ENGINES = [Enumeration(), ImportanceSampling(8, 2), SMC(8, 2), Rejection(4, 2), SVI(2, 4, 2)]


def markov(shift=0.0, name="chain"):
    return MarkovLM(torch.arange(9.0).reshape(3, 3) / 9 + shift * torch.eye(3), torch.zeros(3), name=name)


def twos(tokens):
    return (tokens == 2).sum(-1).double()


def make(lm, strength=1.0):
    def program(prompt=(0,)):
        x = completion("x", lm, list(prompt), max_new_tokens=3)
        reward("twos", twos, x.tokens, beta=1.0 / strength, upper=3.0, lower=0.0)
        return x

    return program


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
def test_every_run_notes_what_it_was_made_from(engine, tmp_path):
    lm = markov()
    posterior = engine.run(make(lm), seed=3)
    held = posterior.provenance
    assert {"ppl-align", "python", "torch", "transformers", "pyro", "arviz"} <= set(held.versions)
    assert held.versions["torch"] == torch.__version__
    assert held.versions["ppl-align"] == ppl_align.__version__
    assert held.threads == torch.get_num_threads()
    assert held.seed == 3
    (record,) = held.lms
    assert (record.name, record.kind, record.fingerprint) == ("chain", "MarkovLM", lm.fingerprint)
    assert (record.device, record.dtype) == ("cpu", "float32")
    assert re.fullmatch(r"[0-9a-f]{16}", held.program)
    # It round-trips, as one attribute of the file.
    again = Posterior.load(posterior.save(tmp_path / "p.nc"))
    assert again.provenance == held
    with h5py.File(tmp_path / "p.nc") as file:
        assert json.loads(file.attrs["provenance"]) == json.loads(held.to_json())
    assert f"chain {lm.fingerprint}" in repr(posterior)
    assert f"torch {torch.__version__}" in repr(posterior)
    assert lm.fingerprint in str(held)


def test_files_without_it_are_read(tmp_path):
    path = Enumeration().run(make(markov())).save(tmp_path / "old.nc")
    with h5py.File(path, "r+") as file:
        del file.attrs["provenance"]
    old = Posterior.load(path)
    assert old.provenance is None
    assert "Made with" not in repr(old)
    compare({"old": old, "new": Enumeration().run(make(markov(1.0)))})  # nothing is known, nothing is said


def test_fields_of_later_versions_are_left_out():
    held = Enumeration().run(make(markov())).provenance
    later = json.loads(held.to_json()) | {"mood": "good"}
    later["lms"][0]["colour"] = "red"
    assert Provenance.from_json(json.dumps(later)) == held


def test_a_guide_knows_what_it_was_trained_on():
    lm = markov()

    def own(prompt=(0,)):
        completion("x", lm, list(prompt), max_new_tokens=3)

    for guide in ("table", own):
        posterior = SVI(2, 4, 2, guide=guide).run(make(lm))
        assert posterior.guide.provenance == posterior.provenance


def test_mixtures_say_who_their_members_are():
    mixed = Mixture([markov(name="a"), Prompted(markov(1.0, name="b"), [1])])
    (record,) = ImportanceSampling(4, 1).run(make(mixed)).provenance.lms
    assert [member.name for member in record.members] == ["a", "b[1]"]
    assert [member.name for member in record.members[1].members] == ["b"]
    assert len({record.fingerprint, *(member.fingerprint for member in record.members)}) == 3


def test_lms_that_only_judge_are_noted():
    writer, judge, seen = markov(name="writer"), markov(1.0, name="judge"), markov(2.0, name="seen")

    def program():
        x = completion("x", writer, [0], max_new_tokens=2)
        expert("style", judge, x, 1.0)
        completion("y", seen, [0], max_new_tokens=1, obs=[1])

    for engine in ENGINES[:3]:
        named = {lm.name: lm.fingerprint for lm in engine.run(program).provenance.lms}
        assert named == {lm.name: lm.fingerprint for lm in (writer, judge, seen)}


def test_no_folder_of_this_machine_is_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bin" / "ppl-align"), "run", "x.py"])
    network, tokenizer = tiny_llama(), tiny_tokenizer()
    network.save_pretrained(tmp_path / "my-model")
    tokenizer.save_pretrained(tmp_path / "my-model")
    lm = CausalLM(str(tmp_path / "my-model"))
    for prior in (lm, Prompted(lm, "the"), Mixture([lm, Prompted(lm, "film")])):
        held = SVI(1, 2, 1).run(make(prior), prompt=(1,)).provenance
        text = held.to_json() + str(held) + held.line
        assert "my-model" in text
        for private in (str(tmp_path), str(Path.home()), getpass.getuser() + "/", str(Path.cwd())):
            assert private not in text


def test_command(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    for argv, said in [
        (["/home/me/.venv/bin/ppl-align", "run", "a b.py", "--seed", "1"], "ppl-align run 'a b.py' --seed 1"),
        (["/home/me/train.py", "--fast"], "python train.py --fast"),
        (["-c"], "python -c"),
        ([""], "python"),
    ]:
        monkeypatch.setattr(sys, "argv", argv)
        assert command() == said
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    assert command() == ""


# -- digests of programs and arguments --------------------------------------------------------------------


def program_of(posterior):
    return posterior.provenance.program, posterior.provenance.data


def run(program, *args, **kwargs):
    return program_of(ImportanceSampling(4, 1).run(program, *args, **kwargs))


def test_the_same_program_has_the_same_digest():
    assert run(make(markov())) == run(make(markov()))
    assert run(make(markov())) == run(make(markov(1.0)))  # of language models the fingerprint tells


def test_another_number_in_it_is_another_program():
    assert run(make(markov(), 1.0))[0] != run(make(markov(), 2.0))[0]


def test_what_it_calls_is_part_of_it(monkeypatch):
    before = run(make(markov()))
    monkeypatch.setitem(globals(), "twos", lambda tokens: (tokens == 1).sum(-1).double())
    assert run(make(markov()))[0] != before[0]


def test_arguments_are_data():
    program = make(markov())
    assert run(program, (0,))[1] != run(program, (1,))[1]
    assert run(program, (0,)) == run(program, (0,))
    assert run(program, (0,))[0] == run(program, (1,))[0]


def test_what_changes_while_it_runs_is_no_part_of_it():
    lm, log, calls = markov(), [], 0

    def counted(tokens):
        nonlocal calls
        calls += 1
        log.append(calls)
        return twos(tokens)

    def program():
        x = completion("x", lm, [0], max_new_tokens=2)
        reward("twos", counted, x.tokens)

    assert run(program) == run(program)
    assert calls > 1


class Wanted:
    """A reward that is an object: what it wants, and what it notes while it is asked."""

    def __init__(self, token, inner=None):
        self.token, self.inner, self.calls, self.seen = token, inner, 0, []

    def __call__(self, tokens):
        self.calls += 1
        self.seen.append(len(tokens))
        return (tokens == self.token).sum(-1).double()


WANTED = Wanted(1)


def with_global():
    x = completion("x", markov(), [0], max_new_tokens=2)
    reward("r", WANTED, x.tokens)


def with_closure(wanted):
    def program():
        x = completion("x", markov(), [0], max_new_tokens=2)
        reward("r", wanted, x.tokens)

    return program


def test_a_reward_that_is_an_object_is_part_of_the_program(monkeypatch):
    one = run(with_closure(Wanted(1)))
    assert run(with_closure(Wanted(1))) == one
    assert run(with_closure(Wanted(2))) != one
    assert run(with_closure(Wanted(1, Wanted(2)))) not in (one, run(with_closure(Wanted(1, Wanted(3)))))
    before = run(with_global)
    assert run(with_global) == before, "it counts its calls, and stays what it is"
    monkeypatch.setattr(sys.modules[__name__], "WANTED", Wanted(2))
    assert run(with_global) != before
    round_ = Wanted(1)
    round_.inner = round_
    assert run(with_closure(round_)) == run(with_closure(round_))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        ("a", b"a"),
        ([1, 2], [2, 1]),
        ([[1], 2], [1, [2]]),
        ({"a": 1}, {"a": 2}),
        (torch.zeros(2), torch.zeros(2, 1)),
        (torch.zeros(2), torch.zeros(2).double()),
        (None, "None"),
        (make, run),
    ],
)
def test_digests_tell_apart(one, other):
    assert digest(one) != digest(other)
    assert digest(one) == digest(one)


def test_digests_of_odd_values_are_steady(tmp_path):
    import numpy as np
    import pandas as pd

    loop: list = []
    loop.append(loop)
    frame = {"t": ["a", "b"], "n": [1, 2]}
    for make_value in (
        lambda: {3, "x", 2.0},
        lambda: pd.DataFrame(frame),
        lambda: np.array(["a", None], dtype=object),
        object,
        lambda: loop,
        lambda: "\udcff",
        lambda: tmp_path / "data.csv",
        lambda: len,
        lambda: torch.nn.Linear,
    ):
        assert digest(make_value()) == digest(make_value())
    assert digest(pd.DataFrame(frame)) != digest(pd.DataFrame(frame | {"n": [1, 3]}))


# -- comparing --------------------------------------------------------------------------------------------


def one(program):
    return ImportanceSampling(8, 4).run(program)


def said(**runs):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = compare(runs)
    lines = [str(w.message) for w in heard if w.category is UserWarning and "different targets" in str(w.message)]
    assert all("\n" not in line for line in lines)
    return lines, found


def test_other_weights_under_the_same_name_are_warned_of():
    lines, found = said(a=one(make(markov())), b=one(make(markov())), c=one(make(markov(1.0))))
    (line,) = lines
    assert "'a' and 'c'" in line
    assert "'chain' differs" in line
    assert line in " ".join(str(found).split())
    assert json.loads(found.to_json())["reference"]["differ"] == line


def test_what_differs_is_named():
    network = tiny_llama()
    line = said(a=one(make(CausalLM(network))), b=one(make(CausalLM(tiny_llama(1)))))[0][0]
    assert "differs in its weights" in line
    line = said(a=one(make(CausalLM(network))), b=one(make(CausalLM(tiny_llama().to(torch.bfloat16)))))[0][0]
    assert "weights (float32 and bfloat16)" in line
    chatty = tiny_tokenizer()
    chatty.chat_template = "{{ messages }}"
    lms = [CausalLM(network, tokenizer) for tokenizer in (tiny_tokenizer(), chatty)]
    line = said(a=one(make(lms[0])), b=one(make(lms[1])))[0][0]
    assert "differs in its tokenizer" in line


def test_another_program_or_other_arguments_are_warned_of():
    a, other = one(make(markov())), one(make(markov()))
    edited = replace(other, provenance=replace(other.provenance, program="0" * 16))
    assert "program's source differs" in said(a=a, b=edited)[0][0]
    edited = replace(other, provenance=replace(other.provenance, data="0" * 16))
    assert "program's arguments differ" in said(a=a, b=edited)[0][0]


def test_runs_of_one_target_are_not_warned_of():
    program = make(markov())
    lines, _ = said(**{engine.name: engine.run(program) for engine in ENGINES[:3]})
    assert lines == []


def test_an_lm_that_only_one_run_has_asked_is_no_difference():
    held = one(make(markov())).provenance
    more = replace(held, lms=(*held.lms, replace(held.lms[0], fingerprint="0" * 16)))
    assert differences({"a": held, "b": more}) is None


@pytest.mark.filterwarnings("always")
def test_the_command_line_warns_in_one_line(tmp_path, capsys):
    for name, shift in (("a", 0.0), ("b", 1.0)):
        one(make(markov(shift))).save(tmp_path / f"{name}.nc")
    assert main(["compare", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert [line for line in err.splitlines() if line] == [line for line in err.splitlines() if "different" in line]
    assert err.startswith("warning: 'a' and 'b' may be runs of different targets")


def test_it_is_in_the_report():
    from ppl_align.report.html import render

    text = render(compare({"a": one(make(markov()))}))
    assert "Provenance" in text
    assert markov().fingerprint in text


def test_versions_are_read_once():
    assert versions() is versions()
    assert all(isinstance(v, str) and v for v in versions().values())


def test_a_callable_lm_of_its_own():
    lm = CallableLM(3, lambda prefix: torch.zeros(prefix.shape[0], 3))
    assert ImportanceSampling(4, 1).run(make(lm)).provenance.lms[0].fingerprint == lm.fingerprint
