"""Looking ahead in a strict pattern: what is proposed, how prefixes are weighed, and how the pool is drawn.

Draws of the prior leave a pattern at the first token, so the pool is drawn from within it, in rounds: each leans to
what those before it have taught, first to nothing but the automaton. So the paths that matter are followed to their
ends, and what looked better than it was is found out. No draw within a mask weighs more than 1, so that masks alone
have a relative variance of at most 1/Z - 1: where the first draws weigh ``LIKELY`` or more (their geometric mean, which
one lucky draw does not raise; Z is larger still), the rest of the pool is saved, and masks steer alone.

Success is never thought impossible where it is possible, and one token in ten is drawn from the confined prior:
E[Zhat] = Z whatever the pool.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ppl_align.constraints.foreseen import Foreseen
from ppl_align.core.errors import InputError
from ppl_align.lm.base import Ids
from ppl_align.lm.decoding import Population, Rows
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.leaning import Leaning
from ppl_align.lm.matcher import Matcher
from ppl_align.lm.transfer import CPU, Resident, upload
from ppl_align.twists.context_model import ContextModel
from ppl_align.twists.seen_prefixes import Seen
from ppl_align.twists.site_lookahead import DEFENSIVE, SiteLookAhead

LIKELY = 0.05


class ContextLookAhead(SiteLookAhead):
    """psi of one constraint on one completion of at most ``max_new_tokens`` tokens, by contexts.

    It is made of what the LM said after one prompt; after another it is only less good. Raises ``InputError`` where it
    is used on a completion with other stop tokens or stop strings."""

    def __init__(self, matcher: Matcher, model: ContextModel) -> None:
        self.matcher, self.model = matcher, model
        self.foreseen, self.ends = model.foreseen, model.seen.ends
        self._kind = Resident(torch.from_numpy(self.foreseen.kind.astype(np.int64)))

    def __repr__(self) -> str:
        return f"ContextLookAhead({len(self.model.seen)} prefixes)"

    @property
    def constraint(self) -> Matcher:
        return self.matcher

    def checked(self, source: CompletionDistribution) -> ContextLookAhead:
        if self.ends.stop_ids != source.stop_ids:
            raise InputError(
                "this look ahead was made for other stop tokens or strings: make it with the stop= of the completion"
            )
        prompt = only_prompt(source)
        if (source.max_new_tokens, prompt) == (self.model.max_new_tokens, self.model.prompt):
            return self
        return ContextLookAhead(self.matcher, ContextModel(self.model.seen, source.max_new_tokens, prompt))

    def now(self, prefixes: Sequence[Ids], left: int) -> Tensor:
        places = self.foreseen.places(prefixes)
        known = {x: self.model.now(x, place, left) for x, place in zip(prefixes, places, strict=True)}
        return torch.tensor([known[x] for x in prefixes], dtype=torch.float64).log()

    def then(self, prefixes: Sequence[Ids], left: int, device: torch.device = CPU) -> Tensor:
        places = self.foreseen.places(prefixes)
        kinds = [self.model.by_kind(p, left) if p[0] >= 0 else np.zeros(self.foreseen.moves.shape[1]) for p in places]
        with np.errstate(divide="ignore"):
            log_kinds = torch.from_numpy(np.log(np.stack(kinds))).float()
            psi = upload(log_kinds, device)[:, self._kind.on(device)]
            better = [
                [*self.model.by_token(x, place, left), *self._ending(x, place, left)] if place[0] >= 0 else []
                for x, place in zip(prefixes, places, strict=True)
            ]
            for level in range(max(map(len, better), default=0)):
                some = [(i, *one[level]) for i, one in enumerate(better) if level < len(one) and len(one[level][0])]
                if some:
                    row = np.concatenate([np.full(len(tokens), i) for i, tokens, _ in some])
                    column = np.concatenate([tokens for _, tokens, _ in some])
                    value = torch.from_numpy(np.log(np.concatenate([v for _, _, v in some]))).float()
                    psi[upload(row, device), upload(column, device)] = upload(value, device)
        return psi

    def _ending(self, prefix: Ids, place: tuple[int, int], left: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """1 or 0 after tokens that end the text. They come last: nothing may overrule them."""
        f, (state, n), t = self.foreseen, place, len(prefix)
        stops, here = self.ends.completing(prefix), self.ends.here
        kinds = f.kind[stops]
        to, after = f.moves[state][kinds], np.minimum(n + f.counts[state][kinds], f.most)
        good = (to >= 0) & f.ends_well(t + 1)[after, to]
        known = bool(f.ends_well(t)[n, state])
        return [(stops, good.astype(float)), (here, np.full(len(here), float(known)))]


def learn_contexts(
    source: CompletionDistribution, matcher: Matcher, foreseen: Foreseen, num_pool: int, whole: bool = False
) -> ContextLookAhead | None:
    """psi from ``num_pool`` draws; spends at most ``num_pool * T`` LM tokens.

    None where masks alone are good enough, as the first draws say (``whole``: do not ask)."""
    seen, horizon, prompt = Seen(foreseen, source), source.max_new_tokens, only_prompt(source)
    look = ContextLookAhead(matcher, ContextModel(seen, horizon, prompt))
    flat = source.index.reshape(-1)
    spread = flat[torch.linspace(0, len(flat) - 1, num_pool).round().long().to(flat.device)]
    for k, part in enumerate(spread.split(rounds_of(num_pool))):
        weights = _draw(source.with_index(part), look, seen)
        if k == 0 and not whole and float(weights.log().mean().exp()) >= LIKELY:
            return None
        look = ContextLookAhead(matcher, ContextModel(seen, horizon, prompt))
    return look


def rounds_of(num_pool: int) -> list[int]:
    """How many draws each round has: an eighth, an eighth, a quarter and the rest, but two where there are two."""
    sizes: list[int] = []
    for part in (8, 8, 4, 1):
        left = num_pool - sum(sizes)
        sizes.append(left if part == 1 else min(left, max(2, num_pool // part)))
    return [size for size in sizes if size]


def only_prompt(source: CompletionDistribution) -> Ids | None:
    """None where texts go on from several: a prefix alone then does not say what comes next."""
    used = source.index.unique().tolist()
    return source.prompts[used[0]] if len(used) == 1 else None


def _draw(source: CompletionDistribution, look: ContextLookAhead, seen: Seen) -> Tensor:
    """One round of the pool; p0 / q of each draw [m], 0 where it came to nothing. Their mean is an estimate of Z."""
    population = Population(source, lean=_Explore(look, source.max_new_tokens))
    lost = np.zeros(len(population.alive), dtype=bool)
    while not population.done:
        prefixes = population.row_prefixes()
        p = source.warp(population.decoder.log_probs).double().exp().cpu().numpy()
        prompts = [population.prompts[i] for i in population.row_prompt]
        for prompt, x, place, row in zip(prompts, prefixes, look.foreseen.places(prefixes), p, strict=True):
            seen.note(prompt, x, place, row)
        population.step()
        running = population.alive.copy()
        after = look.foreseen.places([tuple(row) for row in population.written[:, : population.t].tolist()])
        lost |= running & np.array([state < 0 for state, _ in after])
        population.alive &= ~lost
        population.advance()
    ratio = (population.log_p - population.log_q).exp().cpu()
    return torch.where(torch.from_numpy(lost), 0.0, ratio)


class _Explore:
    """Draws of the pool lean to what is known so far."""

    proposes = True
    by_ids = True

    def __init__(self, look: ContextLookAhead, max_new_tokens: int) -> None:
        self.look, self.max_new_tokens = look, max_new_tokens

    def leaning(self, rows: Rows) -> Leaning:
        assert rows.ids is not None
        left = self.max_new_tokens - len(rows.ids[0]) - 1
        return Leaning(log_psi=self.look.then(rows.ids, left, rows.log_probs.device), defensive=DEFENSIVE)
