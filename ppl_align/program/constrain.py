"""``constrain``: a completion must look like this. Conditioning, written into a Pyro program."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_align.constraints.base import Constraint
from ppl_align.core.errors import InputError
from ppl_align.lm.base import LM
from ppl_align.lm.completions import Completion
from ppl_align.lm.matcher import Matcher
from ppl_align.lm.restriction import Restriction
from ppl_align.lm.spelling import goes_on_from
from ppl_align.program.notes import Notes, factor
from ppl_align.program.sketch import sketching


def constrain(name: str, constraint: Constraint, completion: Completion) -> Tensor:
    """Multiply the target by 1 where ``completion`` meets ``constraint`` and by 0 elsewhere.

    It is the *event* over token ids that is conditioned on: every way to spell an acceptable text counts, EOS only
    where the text is acceptable, and a text cut off at ``max_new_tokens`` counts if it is acceptable as it stands.

    Engines read the constraint before they write: importance sampling, SMC and SVI draw from within it and carry the
    mass that it leaves out at each step as weight, log sum over allowed v of p0(v | prefix); ``Rejection`` and
    ``Enumeration`` need no help. Of a :class:`~ppl_align.constraints.Predicate` that mass is estimated, by importance
    sampling and SMC. On unfinished text the factor is 0 once nothing acceptable can follow.

    Returns whether each element meets it (unfinished: whether it still can), bool ``[...]``.
    Raises ``InputError`` for something that is no constraint, or is put on something that is no ``completion(...)`` or
    one that is known by its beginning only (``starts_with=``).
    """
    if isinstance(constraint, type) or not isinstance(constraint, Constraint):
        got = f"the class {constraint.__name__}" if isinstance(constraint, type) else type(constraint).__name__
        raise InputError(
            f"constrain {name!r}: write a constraint such as Regex('[0-9]+') or Contains('cat'), got {got}"
        )
    if not isinstance(completion, Completion) or completion.source is None or completion.site is None:
        raise InputError(
            f"constrain {name!r}: the third argument is what completion(...) returned, got {type(completion).__name__}"
        )
    if completion.beginning:
        raise InputError(
            f"constrain {name!r}: {completion.site!r} is known by its beginning only (starts_with=), and a constraint "
            f"is met by a whole text: give the whole as obs=, or make it a latent and constrain how it begins as well"
        )
    matcher = compiled(constraint, goes_on_from(completion.lm, completion.source.prompts))
    limit = completion.source.max_new_tokens
    if not bool(matcher.viable([()], limit).all()):
        raise InputError(f"constrain {name!r}: no text of at most {limit} tokens meets {constraint!r}")
    meets = torch.ones(completion.shape, dtype=torch.bool) if sketching() else check(matcher, completion)
    log_factor = torch.where(meets, 0.0, -torch.inf).double()
    notes = Notes(prefix_closed=True, log_upper=0.0, constrains=completion.site, matcher=matcher)
    factor(name, log_factor, completion.tokens, notes)
    return meets


def compiled(constraint: Constraint, lm: LM) -> Matcher:
    """The constraint over the ids of an LM, made once per LM."""

    def compile_it() -> Matcher:
        matcher = constraint.compile(lm)
        for part in matcher.parts:
            part.constraint = constraint
        return matcher

    return lm.cached(("matcher", constraint), compile_it)


def check(matcher: Matcher, completion: Completion) -> Tensor:
    """Does each element meet it? bool ``[...]``; where a text is unfinished: can it still?"""
    source, tokens = completion.source, completion.tokens
    assert source is not None
    restriction = Restriction([matcher], source)
    width = tokens.shape[-1]
    ended = (completion.lengths.reshape(-1) < width) | source.ends_within(tokens).reshape(-1)
    finished = (ended | (width == source.max_new_tokens)).tolist()
    asked = list(zip(completion.ids, finished, strict=True))
    verdict: dict[tuple[tuple[int, ...], bool], bool] = {}
    for done, judge in ((True, restriction.accepts), (False, restriction.viable)):
        distinct = [text for text, f in dict.fromkeys(asked) if f == done]
        if distinct:
            verdict |= {(text, done): met for text, met in zip(distinct, judge(distinct).tolist(), strict=True)}
    return torch.tensor([verdict[element] for element in asked], dtype=torch.bool).reshape(completion.shape)
