"""What the rows of a group ask for: rewards that are waited for, and the network."""

from __future__ import annotations

from collections.abc import Sequence

from ppl_align.core.turns import Asked
from ppl_align.lm import meeting
from ppl_align.rewards import waiting


def serve(asked: Sequence[Asked]) -> None:
    """Rewards first, all of them at once, so that as many rows as possible go on together at the network: who shares a
    forward with whom does not depend on how long a service takes."""
    rewards = [one for one in asked if isinstance(one.question, waiting.Waiting)]
    if rewards:
        waiting.serve(rewards)
    else:
        meeting.serve(asked)
