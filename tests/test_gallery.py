"""Every file in ``models/`` is one short, runnable model."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import textwrap
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch

import ppl_align
from ppl_align.core.errors import WeightsNotFound
from ppl_align.lm.completions import Completion
from ppl_align.particles.particles import Particles
from ppl_align.program import Program
from ppl_align.runner.known_constraints import known_constraints
from ppl_align.runner.runner import Runner

MODELS = sorted((Path(__file__).parent.parent / "models").glob("*.py"))
PARTICLES = 12
LESS = {  # what models do at their first call; so much of it shows that it works
    "critic": ("_critic", {"num_steps": 1, "batch": 2}),
    "frozen_or_refreshed": ("_rounds", {"num_draws": 32}),
}
WHOLE = {
    "plan_then_story",
    "json_record",
    "date",
    "twenty_four",
    "mentions",
    "ends_with",
}  # that a short text does not do
DEAD_ENDS = {"python_function"}  # where a test of a beginning does not know how many tokens are left
SHORT = 5  # tokens
DEAR = {
    "frozen_or_refreshed",
    "learned_taste",
    "plan_then_story",
    "critic",
}  # train, or write at length, before they run
each_model = pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)


def test_the_gallery_is_there():
    assert {path.stem for path in MODELS} >= {"positive_review", "less_toxic", "infill", "topic"}


@each_model
def test_a_file_is_one_short_documented_model(path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    assert [f.name for f in functions] == [path.stem]
    assert ast.get_docstring(functions[0])
    arguments = functions[0].args
    assert len(arguments.defaults) == len(arguments.args), "a gallery model runs with no argument"
    assert len(source.splitlines()) <= 40
    first = ast.get_docstring(tree).splitlines()[0]
    assert first.endswith(".")
    assert len(first) <= 58, "`ppl-align models` has one line of 80 columns for it"


@pytest.fixture(scope="module")
def lm():
    try:
        return ppl_align.CausalLM("smollm2-135m")
    except WeightsNotFound as error:
        pytest.skip(str(error))


@pytest.fixture
def load(lm, monkeypatch):
    """The model of a gallery file, on the one language model of this test run."""
    real = ppl_align.CausalLM
    monkeypatch.setattr(ppl_align, "CausalLM", lambda name, **kwargs: real(name, **kwargs) if kwargs else lm)

    def model_in(path):
        spec = importlib.util.spec_from_file_location(f"gallery_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if path.stem in LESS:
            name, less = LESS[path.stem]
            setattr(module, name, lru_cache(partial(getattr(module, name).__wrapped__, **less)))
        if path.stem == "balanced_biographies":
            module.half_women.num_pool = 64
        return getattr(module, path.stem)

    return model_in


@pytest.fixture(autouse=True)
def _fixed_random_numbers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.lm
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # between peft and transformers
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.statistical] * (p.stem in DEAR)) for p in MODELS],
    ids=[path.stem for path in MODELS],
)
def test_a_model_compiles_into_a_program(path, load):
    model = load(path)
    room = inspect.signature(model).parameters.get("max_new_tokens")
    shorter = {} if room is None or path.stem in WHOLE else {"max_new_tokens": min(SHORT, room.default)}
    program = Program(model, (), shorter)
    known = known_constraints(program)
    runner = Runner(program, constraints=known, tests=True)
    execution = runner.finish(Particles(PARTICLES))
    assert runner.advance(Particles(PARTICLES)).pending.is_completion, "it stops at its completion"
    assert execution.factors, "a model without reward or observation is its prior"
    for factor in execution.factors.values():
        assert factor.shape == (PARTICLES,)
        if path.stem in DEAD_ENDS:
            factor = factor[factor.isfinite()]
        assert factor.isfinite().all()
        met = bool(known.matchers) and factor.unique().tolist() == [0]  # a constraint that every particle keeps
        assert met or factor.unique().numel() > 1, "the particles differ"


@pytest.mark.lm
def test_less_toxic_says_which_prompt_it_takes(load):
    model = load(next(path for path in MODELS if path.stem == "less_toxic"))
    execution = Program(model).run(Particles(1), draw=True)
    source = execution.pending.fn
    assert source.lm.decode(source.prompts[0]) in model.__doc__


@pytest.mark.lm
def test_infill_prefers_the_middle_that_leads_to_the_ending(load, lm):
    model = load(next(path for path in MODELS if path.stem == "infill"))
    middles = [" ate a whole roast chicken", " of the of the of"]
    ids = [lm.encode(text) for text in middles]
    width = max(map(len, ids))
    eos = lm.eos_id
    tokens = torch.tensor([[*row, *[eos] * (width + 1 - len(row))] for row in ids])
    fits, does_not = (
        Program(model, (), {"max_new_tokens": width + 1})
        .run(Particles(2, {"middle": tokens}), draw=True)
        .factors["ending"]
    )
    assert fits > does_not + 3


@pytest.mark.lm
def test_the_topic_is_part_of_the_prompt(load):
    model = load(next(path for path in MODELS if path.stem == "topic"))
    topics = torch.tensor([0, 3])
    source = Program(model).run(Particles(2, {"topic": topics}), draw=True).pending.fn
    first, second = Completion(source.sample(), source).texts("prompt")
    assert "weather" in first
    assert "war" in second


PIECES = [
    "    try:\n        a\n    except A:\n        b\n",
    "    \"\"\"doc\n    more\"\"\"\n    x = 1 + \\\n  2\n    return f'''\n{x}'''\n",
    "    if a:\n        b\n    elif c:\n        d\n    else:\n        e\n@dec\nasync def f(): await g\n",
    "    x = {\n 'a': (1,\n     2),\n # c\n }\n    match x:\n        case 1:\n            pass\n",
    "    with a as b, \\\n   c as d:\n        x = 'a\\\nb'\n    # a comment \\\n    return 'it\\'s'\n",
    "".join(f"    {line}" for line in inspect.getsource(textwrap.TextWrapper._split).splitlines(True)),
]


@pytest.mark.lm
@pytest.mark.parametrize("piece", PIECES)
def test_a_function_that_compiles_could_always_become_one(piece, load, monkeypatch):
    """The no of the gallery's test is final: it never says it of the beginning of what compiles."""
    model = load(next(path for path in MODELS if path.stem == "python_function"))
    found = []
    monkeypatch.setitem(model.__globals__, "completion", lambda *args, **settings: None)
    monkeypatch.setitem(model.__globals__, "constrain", lambda name, predicate, x: found.append(predicate))
    model("def f():\n")
    (predicate,) = found
    assert predicate.accepts(piece)
    assert all(predicate.viable(piece[:end]) for end in range(len(piece) + 1))
    for wrong in ("  return )\n", "```\n", "    x = 3\nreturn x\n", "    a\n  b\n"):
        assert predicate.viable(wrong.rstrip())
        assert not predicate.viable(wrong)
        assert not predicate.accepts(wrong)
