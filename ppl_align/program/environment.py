"""``environment``: what the world answers, written into a Pyro program.

A tool, a search engine, a simulated user: something answers the language model, and later prompts and rewards depend
on the answer. Nobody here chooses it. The program says so, because two questions about one program part ways there:

    conditioning   p*(a, o | reward)    "it went well: what was said, and what did the world answer?"
    deciding       max E[r] - beta KL   "what should be said, in the world as it is?"

Conditioning on a reward tilts the environment as well (Levine 2018, arXiv:1805.00909). ``Enumeration``,
``ImportanceSampling``, ``SMC`` and ``Rejection`` condition, and report the environment tilt in nats; ``SVI`` and
``TreePlanner`` decide. Without randomness in the world the two are the same.
"""

from __future__ import annotations

import inspect
import numbers
import random
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from typing import Any, ClassVar

import numpy as np
import pyro
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_align.core.context import having
from ppl_align.core.cost import count
from ppl_align.core.errors import InputError, ModelError, PplAlignError, RunError, type_and_line
from ppl_align.core.runs import remembered
from ppl_align.core.text import Texts
from ppl_align.lm.base import LM
from ppl_align.lm.completions import Completion
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.program.execute import note_answers
from ppl_align.program.names import take_name
from ppl_align.program.notes import Notes
from ppl_align.program.sketch import sketching, stand_in
from ppl_align.rewards.cache import content, identity

Answers = dict[Hashable, str | float]
_asking: ContextVar[str | None] = ContextVar("ppl_align_asking", default=None)


def environment(
    name: str,
    world: Any,
    *inputs: Any,
    noise: Any = None,
    max_new_tokens: int | None = None,
    **sampling: Any,
) -> Any:
    """What the world answers to ``inputs``: part of the program's prior, and never chosen by an agent.

    ``world`` may be

    * a function ``world(*inputs)``, a tool: it is asked about one particle at a time with plain Python values (the
      text of a completion, the elements of ``Texts`` and tensors, anything else as it is) and returns a string or a
      number. Same inputs, same answer: it is asked once per distinct input, and once per run of an engine
      (``cost.environment_calls``). A tool with a memory of its own does not fit;
    * a function that takes ``rng``: ``world(*inputs, rng=random.Random(seed))``. The seed is a latent called ``name``,
      so that the program can be executed again with the same answer;
    * a function and ``noise``, a Pyro distribution: ``world(*inputs, z)`` with the latent z drawn from ``noise``. With
      few values of z the world can be enumerated;
    * a Pyro distribution: its draw is the answer, a latent called ``name``;
    * a language model, a simulated user: ``environment(name, lm, prompt, max_new_tokens=...)``, with the sampling
      options of ``completion``. It is only ever sampled from: guides, proposals, twists and constraints leave it alone.

    An engine that judges unfinished text (``SMC(twist="prefix")``) asks the world about it too: a tool must bear that.

    Returns ``Texts`` or a tensor with an element per particle (int64 if every answer is an int, else float64), for a
    language model a ``Completion``; a plain ``str`` or a tensor without dimensions where nothing is a batch.

    Raises ``InputError`` for something that cannot answer, ``ModelError`` for a name that another site has and for a
    function that runs sites of the program itself, ``RunError`` where it raises or answers with something else.
    """
    if _asking.get() is not None:
        raise _circular(_asking.get(), name)
    if isinstance(world, LM):
        if len(inputs) != 1 or noise is not None:
            raise InputError(
                f"environment {name!r}: a language model takes one prompt (a tuple joins parts), no noise="
            )
        source = world.completion(inputs[0], 32 if max_new_tokens is None else max_new_tokens, **sampling)
        return Completion(_sample(name, source), source, site=name)
    if max_new_tokens is not None or sampling:
        option = next(iter(sampling), "max_new_tokens")
        raise InputError(f"environment {name!r}: {option}= goes with a language model, not with {_kind(world)}")
    if isinstance(world, TorchDistributionMixin):
        if inputs or noise is not None:
            raise InputError(f"environment {name!r}: a distribution takes no inputs and no noise=: build it from them")
        value = _sample(name, world)
        return Completion(value, world, site=name) if isinstance(world, CompletionDistribution) else value
    if isinstance(world, type) or not callable(world):
        raise InputError(
            f"environment {name!r}: the world is a function, a Pyro distribution or a language model, "
            f"got {_kind(world)}"
        )
    if noise is not None and not isinstance(noise, TorchDistributionMixin):
        raise InputError(f"environment {name!r}: noise= takes a Pyro distribution, got {_kind(noise)}")
    arrays, takes_rng = [_elements(given) for given in inputs], noise is None and _takes_rng(world)
    if noise is not None:
        arrays.append(_events(_sample(name, noise), len(noise.event_shape)))
    elif takes_rng:
        arrays.append(_elements(_sample(name, Seeds(_joint_shape(name, arrays)))))
    else:
        take_name(name)
    return _ask(name, world, arrays, takes_rng)


def _sample(name: str, source: Any) -> Any:
    infer: Any = Notes(environment=True).infer()
    return pyro.sample(name, source, infer=infer)


class Seeds(TorchDistribution):
    """Seeds for random numbers, uniform. Densities are with respect to this law itself, log p = 0: which seed it was
    says nothing about how probable the answer is."""

    has_rsample = False
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, batch_shape: Any = ()) -> None:
        super().__init__(torch.Size(batch_shape), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.nonnegative_integer

    def expand(self, batch_shape: Any, _instance: object = None) -> Seeds:
        return Seeds(batch_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.randint(2**53, (*sample_shape, *self.batch_shape))  # a float64 holds each of them

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros(value.shape, dtype=torch.float64)


# -- functions -------------------------------------------------------------------------------------------------------


def _ask(name: str, world: Callable[..., Any], arrays: list[np.ndarray], takes_rng: bool) -> Any:
    """Every element's answer; distinct inputs are asked about once."""
    shape = _joint_shape(name, arrays)
    columns = [np.broadcast_to(a, shape).reshape(-1).tolist() for a in arrays]
    rows = list(zip(*columns, strict=True)) if columns else [()]
    made_up = sketching() and shape != ()  # an answer that is one for all does not hang on values that are made up
    known = {} if made_up else _known(name, world)
    keys = [tuple(map(content, row)) for row in rows]
    for key, row in zip(keys, rows, strict=True):
        if key not in known:
            known[key] = stand_in() if made_up else _answer(name, world, row, takes_rng)
    answers = [known[key] for key in keys]
    note_answers(name, answers)
    words = sum(isinstance(answer, str) for answer in answers)
    if words == len(answers):
        return Texts(answers, shape) if shape else answers[0]  # type: ignore[arg-type]
    if words:
        raise RunError(f"environment {name!r} answers now with text, now with numbers: make it one of the two")
    whole = all(isinstance(answer, int) for answer in answers)
    return torch.tensor(answers, dtype=torch.long if whole else torch.float64).reshape(shape)


def _known(name: str, world: Callable[..., Any]) -> Answers:
    """What this function has answered in the run so far."""
    tables: dict[Hashable, Answers] | None = remembered("answers of the world", dict)
    return {} if tables is None else tables.setdefault((name, identity(world)), {})


def _joint_shape(name: str, arrays: list[np.ndarray]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*(a.shape for a in arrays))
    except ValueError:
        shapes = ", ".join(str(a.shape) for a in arrays)
        raise InputError(f"environment {name!r}: its inputs have shapes {shapes}, which do not fit together") from None


def _answer(name: str, world: Callable[..., Any], row: tuple[Any, ...], takes_rng: bool) -> str | float:
    count(environment_calls=1)
    try:
        with having(_asking, name), _Closed(name):
            answer = world(*row[:-1], rng=random.Random(row[-1])) if takes_rng else world(*row)
    except PplAlignError:
        raise
    except Exception as error:
        raise RunError(f"environment {name!r} raised {type_and_line(error)}, asked about {_shown(row)}") from error
    if isinstance(answer, (Tensor, np.generic)) and np.ndim(answer) == 0:
        answer = answer.item()
    if isinstance(answer, str):
        return answer
    if isinstance(answer, numbers.Real) and answer == answer:
        return _fits(name, int(answer) if isinstance(answer, int) else answer, row)
    if inspect.iscoroutine(answer):
        answer.close()  # or Python would warn, too, that nobody awaited it
        raise RunError(
            f"environment {name!r} is asked one particle at a time, and its function is async: make it a plain one "
            "that waits for the answer, def world(*inputs): return asyncio.run(...)"
        )
    got = f"a {type(answer).__name__} of {len(answer)}" if isinstance(answer, (list, tuple)) else repr(answer)
    raise RunError(
        f"environment {name!r} must answer one particle at a time, with a string or a number; asked about "
        f"{_shown(row)} it returned {got if len(got) < 60 else type(answer).__name__}"
    )


def _fits(name: str, answer: Any, row: tuple[Any, ...]) -> float:
    """A number as tensors hold it: 64 bits, whole or not."""
    try:
        if isinstance(answer, int):
            answer.to_bytes(8, signed=True)
            return answer
        return float(answer)
    except OverflowError:
        raise RunError(
            f"environment {name!r} answers with a number that 64 bits do not hold, asked about {_shown(row)}: return "
            "a smaller one, a float, or text"
        ) from None


class _Closed(Messenger):
    """No site of the program may be run inside of the world's own function."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _pyro_sample(self, msg: Any) -> None:
        raise _circular(self.name, msg["name"])


def _circular(name: str | None, site: Any) -> ModelError:
    return ModelError(
        f"environment {name!r} is circular: its function runs {str(site)!r}, a site of the program; hand it what it "
        f"needs as inputs, environment(name, function, *inputs), and return a string or a number"
    )


def _elements(given: Any) -> np.ndarray:
    """An input as an array of plain Python values, one per particle; what is no batch has no dimensions."""
    if isinstance(given, Completion):
        given = given.text
    if isinstance(given, Texts):
        return given.array
    return _events(given, 0) if isinstance(given, Tensor) else _objects([given], ())


def _events(value: Tensor, event_dim: int) -> np.ndarray:
    """The elements of a tensor as Python values; with ``event_dim`` of its dimensions as nested lists."""
    shape = value.shape[: value.dim() - event_dim]
    return _objects(value.detach().cpu().reshape(-1, *value.shape[len(shape) :]).tolist(), shape)


def _objects(values: list[Any], shape: Any) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        array[i] = value
    return array.reshape(tuple(shape))


def _takes_rng(world: Callable[..., Any]) -> bool:
    try:
        return "rng" in inspect.signature(world).parameters
    except (TypeError, ValueError):  # a builtin that does not tell
        return False


def _kind(world: Any) -> str:
    return f"the class {world.__name__}" if isinstance(world, type) else type(world).__name__


def _shown(row: tuple[Any, ...]) -> str:
    shown = ", ".join(map(repr, row))
    return shown if len(shown) <= 80 else shown[:77] + "..."
