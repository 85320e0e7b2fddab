"""A language model as a judge: the log-odds of its yes over its no, read off and never sampled.

r = log p(yes | question about the text) - log p(no | the same), nats. Nothing is generated, so a judgement is a number
and not a draw: the same text has the same r, as a likelihood must. ``exp(r / beta)`` with ``beta=1`` multiplies the
prior by the judge's odds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.lm.base import LM, Ids, WholeIds
from ppl_align.rewards.convention import plain_text

Question = str | Sequence[Mapping[str, str]]
_BATCH = 32  # questions per forward


@dataclass(frozen=True)
class Judge:
    """r = log p(``yes``) - log p(``no``) after ``question``, in nats; no bound is known.

    ``lm``        any LM, the prior itself too. Its tokens are counted as prompt (or scored) tokens
    ``question``  text that ends where the answer begins, or chat messages; ``{completion}`` stands for the text that is
                  judged, ``{prompt}`` for what it answers
    ``yes``, ``no``  how an answer begins, each one spelling or several, whose probabilities are added. After a text
                  a word begins with its space, after a chat template it does not: ``Judge(lm, messages, "Yes", "No")``

    All texts of a call are scored together, without decoding; an answer of several tokens is scored by teacher
    forcing. Raises ``InputError`` for a question without ``{completion}``, or answers that are empty or the same.

    >>> from ppl_align import MarkovLM
    >>> lm = MarkovLM(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), tokens=["a", "b"])
    >>> [round(r, 4) for r in Judge(lm, "{completion}", yes="b", no="a")(["ba", "ab"])]  # the last token decides
    [2.0, -1.0]
    """

    lm: LM
    question: Question
    yes: str | Sequence[str] = " yes"
    no: str | Sequence[str] = " no"

    __name__ = "judge"

    def __post_init__(self) -> None:
        _freeze(self, ("completion",), ("prompt",), "yes", "no")

    def __call__(self, completions: Sequence[Any], prompts: Sequence[Any] | None = None, **_: Any) -> list[float]:
        texts = [plain_text(completion) for completion in completions]
        pairs = zip(_prompts(self, prompts, len(texts)), texts, strict=True)
        asked = [_fill(self.question, prompt=p, completion=x) for p, x in pairs]
        return _log_odds(self.lm, asked, self.yes, self.no).tolist()


@dataclass(frozen=True)
class PairwiseJudge:
    """r = log-odds that the text beats ``opponent``, in nats, averaged over both orders; no bound is known.

    ``question``         with ``{first}`` and ``{second}`` for the two texts, and perhaps ``{prompt}``
    ``opponent``         the text to beat: r(opponent) = 0
    ``first, second``    how the judge names them, each one spelling or several

    A judge that likes whatever stands first adds the same to one order as it takes from the other: averaged, r of two
    texts against each other is exactly antisymmetric. Otherwise as :class:`Judge`.
    """

    lm: LM
    question: Question
    opponent: str
    first: str | Sequence[str] = " A"
    second: str | Sequence[str] = " B"

    __name__ = "pairwise_judge"

    def __post_init__(self) -> None:
        _freeze(self, ("first", "second"), ("prompt",), "first", "second")
        if not isinstance(self.opponent, str):
            raise InputError(f"PairwiseJudge(opponent=...) is a text, got {type(self.opponent).__name__}")

    def __call__(self, completions: Sequence[Any], prompts: Sequence[Any] | None = None, **_: Any) -> list[float]:
        texts = [plain_text(completion) for completion in completions]
        asked = []
        for p, x in zip(_prompts(self, prompts, len(texts)), texts, strict=True):
            asked.append(_fill(self.question, prompt=p, first=x, second=self.opponent))
            asked.append(_fill(self.question, prompt=p, first=self.opponent, second=x))
        ahead, behind = _log_odds(self.lm, asked, self.first, self.second).reshape(-1, 2).unbind(-1)
        return ((ahead - behind) / 2).tolist()


def _freeze(judge: Any, needed: Sequence[str], allowed: Sequence[str], *answers: str) -> None:
    """Check the fields and make them hashable: a judge that is written in a model's body is the same one every time."""
    name = type(judge).__name__
    if not isinstance(judge.lm, LM):
        raise InputError(f"{name}(lm, question): the first is a language model, got {type(judge.lm).__name__}")
    if not isinstance(judge.question, str):
        turns = tuple(
            (str(m["role"]), str(m["content"])) if isinstance(m, Mapping) else tuple(m) for m in judge.question
        )
        object.__setattr__(judge, "question", turns)
    text = judge.question if isinstance(judge.question, str) else "\n".join(content for _, content in judge.question)
    for field in needed:
        if f"{{{field}}}" not in text:
            raise InputError(f"{name}: the question has no {{{field}}}, so it would be the same for every text")
    sides: list[Ids] = []
    for side in answers:
        given = getattr(judge, side)
        spellings = (given,) if isinstance(given, str) else tuple(given)
        object.__setattr__(judge, side, spellings)
        ids = _ids(judge.lm, spellings)
        if not ids or () in ids:
            raise InputError(f"{name}({side}=...): an answer has at least one token, got {given!r}")
        sides += ids
    for i, one in enumerate(sides):
        if any(other[: len(one)] == one for j, other in enumerate(sides) if i != j):
            shown = judge.lm.decode(one)
            raise InputError(f"{name}: one answer begins with another ({shown!r}), so they cannot be told apart")


def _ids(lm: LM, spellings: Sequence[str]) -> list[Ids]:
    """The token ids of each spelling; two that are the same tokens are one."""
    return list(dict.fromkeys(tuple(lm.encode(spelling)) for spelling in spellings))


def _prompts(judge: Any, prompts: Sequence[Any] | None, size: int) -> list[str]:
    if prompts is not None:
        return [plain_text(prompt) for prompt in prompts]
    parts = [judge.question] if isinstance(judge.question, str) else [content for _, content in judge.question]
    if any("{prompt}" in part for part in parts):
        raise InputError(f"the question of {type(judge).__name__} has a {{prompt}}: give it the completion, not a text")
    return [""] * size


def _fill(question: Any, **values: str) -> Any:
    """The question with its fields filled in, all at once: a text that contains ``{prompt}`` keeps it."""
    if not isinstance(question, str):
        return [{"role": role, "content": _fill(content, **values)} for role, content in question]
    return re.sub(r"\{(\w+)\}", lambda field: values.get(field[1], field[0]), question)


@torch.no_grad()
def _log_odds(lm: LM, questions: Sequence[Any], one: Any, other: Any) -> Tensor:
    """``log p(one) - log p(other)`` after each question, ``[n]`` float64."""
    prompts = [lm.begin(lm.encode(q) if isinstance(q, str) else WholeIds(lm.chat_ids(q))) for q in questions]
    for_it, against = _ids(lm, one), _ids(lm, other)
    answers = for_it + against
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # questions of one length share a forward
    log_p = torch.empty(len(prompts), len(answers), dtype=torch.float64)
    for start in range(0, len(order), _BATCH):
        chunk = order[start : start + _BATCH]
        log_p[chunk] = _answers(lm, [prompts[i] for i in chunk], answers)
    split = len(for_it)
    return log_p[:, :split].logsumexp(-1) - log_p[:, split:].logsumexp(-1)


def _answers(lm: LM, prompts: Sequence[Ids], answers: Sequence[Ids]) -> Tensor:
    """log p of each answer after each prompt, ``[prompts, answers]``."""
    if all(len(answer) == 1 for answer in answers):
        return lm.start(prompts).log_probs[:, [answer[0] for answer in answers]].double().cpu()
    columns = []
    for answer in answers:
        tokens = torch.tensor([answer] * len(prompts), device=lm.device)
        columns.append(lm.token_log_probs(prompts, tokens).double().sum(-1).cpu())
    return torch.stack(columns, -1)
