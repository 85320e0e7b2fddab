"""The errors that a user may want to catch, under their public address."""

from __future__ import annotations

from ppl_align.core.errors import (
    AllDeadError,
    BatchTextError,
    InputError,
    ModelError,
    PartialTextError,
    PplAlignError,
    PredicateError,
    PromptError,
    RewardError,
    RunError,
    TooManyDrawsError,
    UnsupportedModelError,
    WeightsNotFound,
)

__all__ = [
    "AllDeadError",
    "BatchTextError",
    "InputError",
    "ModelError",
    "PartialTextError",
    "PplAlignError",
    "PredicateError",
    "PromptError",
    "RewardError",
    "RunError",
    "TooManyDrawsError",
    "UnsupportedModelError",
    "WeightsNotFound",
]
