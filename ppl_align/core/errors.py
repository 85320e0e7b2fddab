"""Named errors, each one line a user can act on.

They derive from neither ``ValueError`` nor ``RuntimeError`` on purpose: Pyro rewrites those when they pass through a
trace, and appends a page of shapes to the line.

The command line turns them into an exit code: everything a user can mend before an engine starts
is an :class:`InputError` (exit 2); what goes wrong while an engine works is a :class:`RunError` (exit 1).
"""

from __future__ import annotations


class PplAlignError(Exception):
    """Root of every error this library raises on purpose."""


class InputError(PplAlignError):
    """Something the user wrote cannot be run: a value out of range, a file that is not there."""


class PromptError(InputError):
    """A prompt that the language model cannot start from: empty, too long, of an unknown kind."""


class WeightsNotFound(InputError):
    """The weights of a language model are neither on this machine nor reachable."""


class UnsupportedModelError(InputError):
    """A network that is no prior here: it writes no text, or its log-probabilities differ, and by how much."""


class ModelError(InputError):
    """A Pyro program that the engines cannot work with: no such file, dynamic structure, no completion."""


class BatchTextError(ModelError, TypeError):
    """A string habit on a batch of strings, where it would silently mean something else."""


class RunError(PplAlignError):
    """An engine started and could not go on."""


class RewardError(RunError):
    """A reward raised, or returned the wrong length, NaN or +inf. Names the reward and shows the text."""


class PredicateError(RunError):
    """A test of text raised, or said neither True nor False. Names the constraint and shows the text."""


class PartialTextError(RewardError):
    """A program, reward or twist cannot read a text that is not finished. Names the completion and its length."""


class AllDeadError(RunError):
    """Every particle has weight zero: nothing that was drawn is allowed by the program."""


class TooManyDrawsError(RunError):
    """Rejection sampling would draw, or has drawn, from the prior more often than it may. Other engines need not."""


def first_line(error: BaseException) -> str:
    """What an error says, up to the end of the line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def type_and_line(error: BaseException) -> str:
    """The same after its type."""
    name = type(error).__name__
    return f"{name}: {first_line(error)}" if str(error).strip() else name


def one_line(error: BaseException) -> str:
    """What an error says, after its type where it is not one of this library's, which say all."""
    return first_line(error) if isinstance(error, PplAlignError) else type_and_line(error)
