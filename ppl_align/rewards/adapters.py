"""Small wrappers that turn other kinds of functions into rewards. They pickle if what they wrap does."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from ppl_align.core.errors import InputError
from ppl_align.rewards.cache import content, identity
from ppl_align.rewards.convention import plain_text, start_call


class _Adapter:
    """Wraps ``fn`` and goes by its name, by its bounds, and by the beta it was made for."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        if not callable(fn):
            raise InputError(f"{type(self).__name__}(...) wraps a function, got {type(fn).__name__}")
        self.fn = fn
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)
        self.upper, self.lower = getattr(fn, "upper", None), getattr(fn, "lower", None)  # r is fn's own
        self.for_beta = getattr(fn, "for_beta", None)

    def identity_parts(self) -> tuple[Hashable, ...]:
        """What makes two adapters the same one (see :func:`ppl_align.rewards.cache.identity`)."""
        return (identity(self.fn),)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.__name__})"


class each(_Adapter):
    """A function of one text as a reward: ``each(f)(texts) == [f(text) for text in texts]``; ``f`` may be async.

    >>> each(len)(["a", "bcd"])
    [1, 3]
    """

    def __call__(self, completions: Sequence[Any], **_: Any) -> Any:
        texts = [plain_text(c) for c in completions]
        return self._gather(texts) if inspect.iscoroutinefunction(self.fn) else [self.fn(text) for text in texts]

    async def _gather(self, texts: Sequence[str]) -> list[Any]:
        return list(await asyncio.gather(*map(self.fn, texts)))


class chat(_Adapter):
    """A TRL reward written for chat messages, which reads ``completions[i][0]["content"]``, on a prompt that is text.

    A reward in TRL's convention gets messages where the prompt is chat messages, and strings elsewhere. This wraps
    strings: every completion as one assistant message, every prompt as one user message.

    >>> def length(completions, **kwargs):
    ...     return [len(messages[0]["content"]) for messages in completions]
    >>> chat(length)(completions=["a", "bcd"])
    [1, 3]
    """

    def __call__(self, completions: Sequence[Any], **kwargs: Any) -> Any:
        if "prompts" in kwargs:
            kwargs["prompts"] = [_messages("user", prompt) for prompt in kwargs["prompts"]]
        messages = [_messages("assistant", completion) for completion in completions]
        return start_call(self.fn, {**kwargs, "completions": messages})


class columns(_Adapter):
    """A TRL reward that reads columns of a data set: gives it one value of each, repeated over the batch.

    >>> def exact_match(completions, answer, **kwargs):
    ...     return [float(text == a) for text, a in zip(completions, answer)]
    >>> columns(exact_match, answer="42")(completions=["42", "43"])
    [1.0, 0.0]
    """

    def __init__(self, fn: Callable[..., Any], **values: Any) -> None:
        super().__init__(fn)
        self.values = values

    def __call__(self, completions: Sequence[str], **kwargs: Any) -> Any:
        repeated = {name: [value] * len(completions) for name, value in self.values.items()}
        return start_call(self.fn, {**kwargs, **repeated, "completions": completions})

    def identity_parts(self) -> tuple[Hashable, ...]:
        return (*super().identity_parts(), *((k, content(v)) for k, v in sorted(self.values.items())))


def _messages(role: str, text: Any) -> Any:
    return [{"role": role, "content": text}] if isinstance(text, str) else text
