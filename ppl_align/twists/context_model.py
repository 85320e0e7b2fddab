"""The probability of success after any prefix, from what the LM said of a few: exact where they were seen, by context
elsewhere.

Under a strict pattern the automaton alone tells little: "1" and "2" lead into the same state of a date, and only after
"2" is the LM about to write one. So prefixes are told apart by *contexts* c = (state, the last k tokens), k = 0, 1, 2,
and by the whole prefix where the pool has met it (Willems et al. 1995, context trees; Kneser & Ney 1995, backing off):

    V(x)     = sum_v p(v | x) V(x v)                                     a prefix that was seen: its row is exact
    raw_l(c) = sum_v p(v | c) W_{l-1}(longest known context of c v),     p(. | c) the mean over prefixes with c
    W_l(c)   = (n raw_l(c) + k W_l(c without its first token)) / (n + k)     n prefixes were seen with c

with l the tokens left, an end worth 1 or 0, W_0 whether the text is acceptable, and V(x v) = W(its longest context)
where x v was not seen. A state that was never met goes on like this: each different move is as likely as failure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from ppl_align.constraints.foreseen import Place
from ppl_align.lm.base import Ids
from ppl_align.twists.seen_prefixes import OTHERS, Seen

PARENT = 1.0  # k: prefixes that a shorter context counts as
UNSEEN = 0.3  # the same of what is assumed of a state that was never met
RELATIVE_FLOOR = 0.05  # the least that a context may be worth, as a share of the shorter one
LEAST = 1e-280  # the least that a success which is possible may seem worth: zero would rule it out


class _Level:
    """Contexts of one order by their keys, sorted. ``first``: the number of the first one among all contexts."""

    def __init__(self, keys: np.ndarray, first: int) -> None:
        self.keys, self.first = np.unique(keys), first

    def find(self, keys: Any) -> np.ndarray:
        """Their numbers, -1 for a context that is not known."""
        if not len(self.keys):
            return np.full(np.shape(keys), -1)
        at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.first + at, -1)


class ContextModel:
    """``values`` [T + 1, n, C] of contexts by tokens left (n: what is counted), the first S of them the bare states;
    ``of_prefix`` [m] of the prefixes that were seen, which are known by themselves after ``prompt``; after any other,
    or where there are several (None), by their contexts."""

    def __init__(self, seen: Seen, max_new_tokens: int, prompt: Ids | None) -> None:
        self.seen, self.foreseen, self.max_new_tokens, self.prompt = seen, seen.foreseen, max_new_tokens, prompt
        size, vocab = self.foreseen.num_states, len(self.foreseen.kind)
        self.size, self.vocab = size, vocab
        last = np.array([prefix[-1] if prefix else -1 for prefix in seen.prefixes], dtype=np.int64)
        before = np.array([prefix[-2] if len(prefix) > 1 else -1 for prefix in seen.prefixes], dtype=np.int64)
        states = np.array([state for state, _ in seen.places], dtype=np.int64)
        one, two = states * vocab + last, (states * vocab + before) * vocab + last
        self.one = _Level(one[last >= 0], size)
        self.two = _Level(two[before >= 0], size + len(self.one.keys))
        self.num_contexts = self.two.first + len(self.two.keys)
        self._index_tokens()
        self._edges(last)
        orders = [states, np.where(last >= 0, self.one.find(one), -1), np.where(before >= 0, self.two.find(two), -1)]
        self._contexts(orders)
        self.values = self._run()
        self.of_prefix = self._back_up()

    def _index_tokens(self) -> None:
        """``state_of`` [C]; the last tokens of contexts of order 1, and by the token before, those of order 2."""
        keys1, keys2 = self.one.keys, self.two.keys
        self.state_of = np.concatenate([np.arange(self.size), keys1 // self.vocab, keys2 // self.vocab // self.vocab])
        self.token1, self.token2, self.before2 = (
            keys1 % self.vocab,
            keys2 % self.vocab,
            keys2 // self.vocab % self.vocab,
        )
        order = np.argsort(self.before2, kind="stable")
        cuts = np.flatnonzero(np.diff(self.before2[order])) + 1
        groups = np.split(order, cuts) if len(order) else []
        self.by_before = {int(self.before2[group[0]]): group for group in groups}
        shorter = self.one.find(keys2 // self.vocab // self.vocab * self.vocab + self.token2)
        self.parent = np.concatenate([np.arange(self.size), keys1 // self.vocab, shorter])

    def _edges(self, last: np.ndarray) -> None:
        """All edges, flat: ``at`` the prefix; ``target0``, ``target`` the context, knowing one token and two."""
        edges, seen = self.seen.edges, self.seen
        self.at = np.repeat(np.arange(len(edges)), [len(one[0]) for one in edges])
        columns = [np.concatenate(column) for column in zip(*edges, strict=True)] if edges else [np.zeros(0)] * 5
        token, to, growth = (column.astype(np.int64) for column in columns[:3])
        self.token, self.to, self.growth, self.mass, self.over = token, to, growth, columns[3], columns[4].astype(bool)
        kept = token != OTHERS
        one = np.where(kept, self.one.find(to * self.vocab + token), -1)
        before = last[self.at]
        two = np.where(kept & (before >= 0), self.two.find((to * self.vocab + before) * self.vocab + token), -1)
        self.target0 = np.where(one >= 0, one, to)
        self.target = np.where(two >= 0, two, self.target0)
        pairs = zip(self.at.tolist(), token.tolist(), strict=True)
        numbers = (seen.find(self.prompt, (*seen.prefixes[i], v)) for i, v in pairs)
        self.child = np.fromiter(numbers, np.int64, len(token))

    def _contexts(self, orders: list[np.ndarray]) -> None:
        """``count`` [C], ``here`` [C], and by growth of the count the mean masses: to contexts, and to ends."""
        member = np.concatenate([np.arange(len(order))[order >= 0] for order in orders])
        context = np.concatenate([order[order >= 0] for order in orders])
        shape = (self.num_contexts, len(self.seen))
        belongs = csr_array((np.ones(len(member)), (context, member)), shape=shape)
        bare = csr_array((np.ones(len(orders[0])), (orders[0], np.arange(len(orders[0])))), shape=shape)
        self.count = np.asarray(belongs.sum(1)).reshape(-1)
        scale = 1 / np.maximum(self.count, 1)
        self.here = (belongs @ np.array(self.seen.here, dtype=float)) * scale
        self.runs: dict[int, csr_array] = {}
        self.stops: dict[int, csr_array] = {}
        for g in np.unique(self.growth).tolist():
            for over, found in ((False, self.runs), (True, self.stops)):
                some = (self.growth == g) & (self.over == over)
                if not some.any():
                    continue
                rows, p, n = self.at[some], self.mass[some], len(self.seen)
                if over:
                    total = belongs @ csr_array((p, (rows, self.to[some])), shape=(n, self.size))
                else:
                    wide = (n, self.num_contexts)
                    total = (belongs - bare) @ csr_array((p, (rows, self.target[some])), shape=wide)
                    total = total + bare @ csr_array((p, (rows, self.target0[some])), shape=wide)
                found[g] = csr_array(total.multiply(scale[:, None]))

    def _run(self) -> np.ndarray:
        """W, from the end backwards."""
        f, horizon = self.foreseen, self.max_new_tokens
        numbers = np.arange(f.most + 1)
        source, target, growth = f.distinct_moves
        outcomes = np.bincount(source, minlength=self.size) + 2  # success as it is, and failure, besides the moves
        trust = self.count / (self.count + np.where(np.arange(self.num_contexts) < self.size, UNSEEN, PARENT))
        values = np.zeros((horizon + 1, f.most + 1, self.num_contexts))
        values[0] = f.ends_well(horizon)[:, self.state_of]
        unmet = values[0, :, : self.size].copy()
        for left in range(1, horizon + 1):
            good, later = f.ends_well(horizon - left), f.ends_well(horizon - left + 1)
            assumed = good.astype(float)
            for n in numbers:
                assumed[n] += np.bincount(source, unmet[np.minimum(n + growth, f.most), target], self.size)
            unmet = assumed / outcomes
            raw = self.here * good[:, self.state_of]
            for g, moves in self.runs.items():
                raw += (moves @ values[left - 1][np.minimum(numbers + g, f.most)].T).T
            for g, moves in self.stops.items():
                raw += (moves @ later[np.minimum(numbers + g, f.most)].T.astype(float)).T
            possible = f.possible(horizon - left, left)
            found = values[left]
            for first, behind in ((0, self.one.first), (self.one.first, self.two.first), (self.two.first, None)):
                part = slice(first, behind)
                shorter = unmet if first == 0 else found[:, self.parent[part]]
                mixed = trust[part] * raw[:, part] + (1 - trust[part]) * shorter
                mixed = np.maximum(mixed, RELATIVE_FLOOR * shorter)
                found[:, part] = np.where(possible[:, self.state_of[part]], np.maximum(mixed, LEAST), 0.0)
        return values

    def _back_up(self) -> np.ndarray:
        """V of the prefixes that were seen, the longest first."""
        f, horizon = self.foreseen, self.max_new_tokens
        found = np.zeros(len(self.seen))
        lengths = np.array([len(prefix) for prefix in self.seen.prefixes], dtype=np.int64)
        states, numbers = np.array(self.seen.places, dtype=np.int64).reshape(-1, 2).T
        here = np.array(self.seen.here)
        for t in range(int(lengths.max(initial=-1)), -1, -1):
            if t >= horizon:
                continue
            edge = np.flatnonzero(lengths[self.at] == t)
            after = np.minimum(numbers[self.at[edge]] + self.growth[edge], f.most)
            worth = self.values[horizon - t - 1][after, self.target[edge]]
            child = self.child[edge]
            worth = np.where((child >= 0) & (t + 1 < horizon), found[child], worth)
            worth = np.where(self.over[edge], f.ends_well(t + 1)[after, self.to[edge]], worth)
            ours = np.flatnonzero(lengths == t)
            total = np.bincount(self.at[edge], self.mass[edge] * worth, len(found)).astype(float)[ours]
            total += here[ours] * f.ends_well(t)[numbers[ours], states[ours]]
            possible = f.possible(t, horizon - t)[numbers[ours], states[ours]]
            found[ours] = np.where(possible, total.clip(LEAST, 1.0), 0.0)
        return found

    # -- what is asked -------------------------------------------------------------------------------------------------

    def now(self, prefix: Ids, place: Place, left: int) -> float:
        """Of a running prefix with ``left`` tokens to come."""
        state, n = place
        if state < 0:
            return 0.0
        known = self.seen.find(self.prompt, prefix)
        if known >= 0 and len(prefix) + left == self.max_new_tokens and left > 0:
            return float(self.of_prefix[known])
        context = state
        if prefix:
            longer = int(self.one.find(np.int64(state * self.vocab + prefix[-1])))
            context = longer if longer >= 0 else context
        if len(prefix) > 1:
            longer = int(self.two.find(np.int64((state * self.vocab + prefix[-2]) * self.vocab + prefix[-1])))
            context = longer if longer >= 0 else context
        return float(self.values[left, n, context])

    def by_kind(self, place: Place, left: int) -> np.ndarray:
        """After a token of each kind, as far as the state tells, ``[K]``."""
        to, growth = self.foreseen.moves[place[0]], self.foreseen.counts[place[0]]
        after = np.minimum(place[1] + growth, self.foreseen.most)
        return np.where(to >= 0, self.values[left][after, to], 0.0)

    def by_token(self, prefix: Ids, place: Place, left: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Where more is known of single tokens: pairs of (tokens, values), the better informed ones later."""
        f, (state, n) = self.foreseen, place
        found = []
        pairs = [(self.token1, np.arange(len(self.token1)) + self.one.first)]
        group = self.by_before.get(prefix[-1]) if prefix else None
        if group is not None:
            pairs.append((self.token2[group], group + self.two.first))
        for tokens, contexts in pairs:
            kinds = f.kind[tokens]
            fits = f.moves[state][kinds] == self.state_of[contexts]
            after = np.minimum(n + f.counts[state][kinds[fits]], f.most)
            found.append((tokens[fits], self.values[left][after, contexts[fits]]))
        known = self.seen.find(self.prompt, prefix)
        if known >= 0 and len(prefix) + 1 + left == self.max_new_tokens and left > 0:
            edges = slice(*np.searchsorted(self.at, [known, known + 1]))
            met = self.child[edges] >= 0
            found.append((self.token[edges][met], self.of_prefix[self.child[edges][met]]))
        return found
