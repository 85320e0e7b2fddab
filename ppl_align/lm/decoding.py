"""The one decode loop of the library: a population of particles that grows token by token.

Every engine drives this object; they differ only in what they do between the verbs::

    while not population.done:
        population.step()                   draw the next token of every running particle
        ...                                 reweight (SMC), record, nothing (importance sampling)
        population.resample(ancestors)      maybe
        population.advance()                one forward over the *distinct* prefixes that are left

Particles that share a history share a row of the network; finished particles leave the batch.

On a GPU the host waits for the device once in a step, for the ids that were drawn: which rows go on, where a
constraint stands and what a text reward reads follow from them on the host. Everything else is queued
(:mod:`ppl_align.lm.transfer`). An engine that weighs prefixes asks for the weights right after that, when the device
has next to nothing left to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.core.runs import on_run_end
from ppl_align.lm.adaptive_rejection import Search, search
from ppl_align.lm.base import LM, Decoder, Ids
from ppl_align.lm.blocks import BlockPopulation
from ppl_align.lm.growing import Growing
from ppl_align.lm.leaning import Lean, confine
from ppl_align.lm.meeting import leave
from ppl_align.lm.precision import state_precision
from ppl_align.lm.prefix_cache import PrefixCache
from ppl_align.lm.sampling import TokenTree, room_for
from ppl_align.lm.text_cache import Sleepers, TextCache
from ppl_align.lm.transfer import upload

if TYPE_CHECKING:
    from ppl_align.lm.distribution import CompletionDistribution
    from ppl_align.lm.restriction import Restriction


class Rows(NamedTuple):
    """What a token proposal, or a twist, sees of the distinct prefixes.

    ``log_probs``  [rows, V] the declared prior (warped), nats
    ``hidden``     [rows, d] last hidden state, or None
    ``prompts``    the prompt of each row
    ``prefixes``   [rows, t] the tokens generated so far
    ``ids``        the same on the host (for twists)

    For a proposal, under hard constraints, ``log_probs`` is confined to what they allow: what builds on it is as well.
    """

    log_probs: Tensor
    hidden: Tensor | None
    prompts: list[Ids]
    prefixes: Tensor
    ids: list[Ids] | None = None


TokenProposal = Callable[[Rows], Tensor]
"""``Rows -> log_q [rows, V]``, normalised. Another :class:`LM` over the same vocabulary is a proposal too: at the
temperature of the prior, on the tokens that the prior can write (:meth:`~ppl_align.lm.warp.Warp.propose`)."""

_MISSED = 1e-3
"""Share of the prior after one prefix: a proposal that rounds tokens away which are rarer still misses nothing."""


class _Missed:
    """The largest share of the prior to which a proposal gave probability zero, after one of the prefixes met.

    It stays on the device: nobody waits for it before the run has ended."""

    def __init__(self) -> None:
        self.share: Tensor | float = 0.0

    def note(self, log_p: Tensor, log_q: Tensor) -> None:
        if log_q.device.type == "cpu" and not bool(log_q.amin().isneginf()):
            return  # nearly always, for next to nothing
        share = log_p.exp().masked_fill_(~log_q.isneginf(), 0.0).sum(-1).amax()
        self.share = torch.maximum(share, torch.as_tensor(self.share).to(share))

    def __call__(self) -> str | None:
        if self.share < _MISSED:
            return None
        return (
            f"the proposal gives probability zero to tokens that the prior can write, up to {float(self.share):.1%} of "
            f"it after one prefix: what is never drawn is in no estimate, unless the program rules it out as well"
        )


class Population(Growing):
    """``M`` particles decoding token by token; ``row`` [M]: the row of the network at which each of them stands."""

    def __init__(
        self,
        source: CompletionDistribution,
        proposal: TokenProposal | LM | None = None,
        generator: torch.Generator | None = None,
        lean: Lean | None = None,
        kept: PrefixCache | None = None,
        keep: bool = False,
    ) -> None:
        """``lean``: what next tokens lean to (a twist); by default the restriction of ``source``, if it has one.

        ``kept``: what the prompts may go on from; ``keep``: texts that end are kept there."""
        lm = source.lm
        if isinstance(proposal, LM) and proposal.vocab_size != lm.vocab_size:
            raise InputError(
                f"a proposal needs the vocabulary of the LM it proposes for: {proposal.name} has "
                f"{proposal.vocab_size} tokens, {lm.name} {lm.vocab_size}"
            )
        index = source.index.reshape(-1)
        used, row = torch.unique(index, return_inverse=True)
        super().__init__(source, len(index))
        lean = source.restriction if lean is None else lean
        self.lean: Lean | None = lean if lean is not None and lean.proposes else None
        self.tested = source.restriction if source.restriction is not None and source.restriction.tests else None
        self.proposal = None if isinstance(proposal, LM) else proposal
        self.proposal_lm = proposal if isinstance(proposal, LM) else lm
        self.generator = generator
        self.prompts: list[Ids] = [source.prompts[i] for i in used.tolist()]
        self.row: np.ndarray = row.cpu().numpy()
        self.prompt = self.row.copy()  # of each text
        self.awake = np.ones(len(index), dtype=bool)
        self.sleepers: Sleepers | None = None
        self.texts: TextCache | None = None
        self.row_prompt = np.arange(len(self.prompts))
        self._weighs: Tensor | None = None
        self.scratch: Tensor | None = None  # fresh memory for the sums at every step would cost as much as they do
        state_precision(lm, source.max_new_tokens)
        self.kept, self.keep = kept, keep and kept is not None
        start = kept.start if kept is not None else type(lm).start
        self.decoder: Decoder = start(lm, self.prompts)
        self.proposal_decoder = start(proposal, self.prompts) if isinstance(proposal, LM) else None

    def step(self) -> None:
        """Draw one token for every running particle and add its log-probabilities."""
        running = np.flatnonzero(self.running)
        if not len(running):  # all that are not at their end sleep
            self.t += 1
            return
        log_p, log_q = self._next_token()
        if self.scratch is None or self.scratch.shape[0] < len(log_q):
            self.scratch = room_for(log_q)
        tree = TokenTree(log_q, self.scratch)
        moved = upload(running, self.tokens.device)
        row, held, log_mass = self.row[running], self._held_now(), None
        if self.tested is not None:
            drawn, log_mass = self._draw_tested(self.tested, log_q, tree, running, held)
        else:
            drawn = tree.draw(row, self._uniform(len(self.row), tree.depth)[moved])
        if held is not None:
            given, forced = (upload(part[torch.from_numpy(running)], drawn.device) for part in held)
            drawn = torch.where(forced, given, drawn)
        at = upload(row, drawn.device)
        self.tokens[moved, self.t] = drawn
        picked = (log_q[at, drawn] - tree.log_total[at]).double()
        of_prior = picked if log_p is log_q else log_p[at, drawn].double()
        of_proposal = picked if log_mass is None else picked - log_mass
        self.token_log_q[moved, self.t], self.token_log_p[moved, self.t] = of_proposal, of_prior
        self.log_q[moved] += of_proposal
        self.log_p[moved] += of_prior
        if self._weighs is not None:
            self.log_psi[moved] = self._weighs[at, drawn].double()
        self._note(running, drawn.cpu().numpy(), self.t)  # the one wait of a step
        self.t += 1

    def _uniform(self, rows: int, columns: int) -> Tensor:
        return torch.rand((rows, columns), generator=self.generator, device=self.tokens.device, dtype=torch.float64)

    def _draw_tested(
        self,
        tested: Restriction,
        log_q: Tensor,
        tree: TokenTree,
        running: np.ndarray,
        held: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Next tokens [m] of the running texts that pass the tests, and log T: their share of q, estimated."""
        ids, row = self.row_prefixes(), self.row[running]
        hopeful = tested.passes(ids, [False] * len(ids))  # known since their last token was drawn
        given = {} if held is None else {i: int(held[0][i]) for i in held[1].nonzero()[:, 0].tolist()}
        searches = [
            Search(r, tested.ruled_out.get(ids[r], ()), given.get(i), not hopeful[r])
            for i, r in zip(running.tolist(), row.tolist(), strict=True)
        ]

        def judge(asked: Sequence[tuple[int, int]]) -> list[bool]:
            tokens = np.array([token for _, token in asked])
            ended = self._ends(running[[at for at, _ in asked]], tokens)
            eos = self.source.lm.eos_ids
            texts = [ids[row[at]] if token in eos else (*ids[row[at]], token) for at, token in asked]
            return tested.passes(texts, ended.tolist())

        found = search(log_q, tree, searches, judge, self._uniform)
        for one in searches:  # afterwards: what one search finds out is nothing that another of the same step knows
            if one.rejected:
                tested.ruled_out.setdefault(ids[one.row], set()).update(one.rejected)
        return upload(found.tokens, self.tokens.device), found.log_mass

    def _held_now(self) -> tuple[Tensor, Tensor] | None:
        """The next token of each text [M] where it does not draw it, bool [M]; None: all draw."""
        if self.held is None:
            return None
        tokens, forced = self.held
        return (tokens[:, self.t], forced[:, self.t]) if bool(forced[:, self.t].any()) else None

    def _next_token(self) -> tuple[Tensor, Tensor]:
        """``(log p, log q)`` of the next token, ``[rows, V]``; where both are the prior, one unnormalised tensor."""
        proposes = self.proposal is not None or self.proposal_decoder is not None
        if self.lean is None and not proposes and self.source.warp.is_identity:
            return self.decoder.logits, self.decoder.logits
        log_p = self.source.warp(self.decoder.log_probs)
        if self.lean is None:
            return log_p, self.propose(log_p)
        ids = self.row_prefixes()
        known = Rows(log_p, None, [], self.tokens[:0]) if self.lean.by_ids else self.rows(log_p)
        leaning = self.lean.leaning(known._replace(ids=ids))
        self._weighs, support = leaning.weighs, leaning.support(log_p)
        if not proposes:
            return log_p, support
        log_q = self.propose(support)
        return log_p, log_q if leaning.allowed is None else confine(log_q, leaning.allowed)

    def propose(self, support: Tensor) -> Tensor:
        """log q [rows, V]; ``support``: the prior, leaning to where a proposal should go."""
        warp = self.source.warp
        if self.proposal_decoder is not None:
            confined = warp.cuts or self.lean is not None
            log_q = warp.propose(self.proposal_decoder.log_probs, ~support.isneginf() if confined else None)
        elif self.proposal is not None:
            log_q = self.proposal(self.rows(support))
        else:
            return support
        if log_q.shape != support.shape:
            raise InputError(f"a proposal returns log q of shape {list(support.shape)}, got {list(log_q.shape)}")
        missed = on_run_end("missed by the proposal", _Missed)
        if missed is not None:
            missed.note(support, log_q)
        return log_q

    def rows(self, log_p: Tensor) -> Rows:
        prefixes = self.tokens[upload(self._first(), self.tokens.device), : self.t]
        return Rows(log_p, self.decoder.hidden, [self.prompts[i] for i in self.row_prompt], prefixes)

    @property
    def entropy(self) -> Tensor:
        """Of the next token of each text under the prior, [M] nats on the host; 0 for texts that have ended, NaN for
        those that sleep."""
        found = torch.where(torch.from_numpy(self.awake), 0.0, torch.nan).double()
        running = torch.from_numpy(self.running)
        if bool(running.any()):
            p = self.source.warp(self.decoder.log_probs).double().exp()
            found[running] = torch.special.entr(p).sum(-1).cpu()[torch.from_numpy(self.row)[running]]
        return found

    def row_prefixes(self) -> list[Ids]:
        """The tokens generated so far of each row, from the CPU's own copy."""
        return [tuple(prefix) for prefix in self.written[self._first(), : self.t].tolist()]

    def _first(self) -> np.ndarray:
        """A running particle of each row."""
        first = np.zeros(len(self.row_prompt), dtype=np.int64)
        first[self.row[self.running][::-1]] = np.flatnonzero(self.running)[::-1]
        return first

    def resample(self, ancestors: Tensor) -> None:
        """The network's rows are only re-addressed."""
        super().resample(ancestors)
        at = ancestors.cpu().numpy()
        self.row, self.prompt, self.awake = self.row[at], self.prompt[at], self.awake[at]

    def join(self, other: Population) -> bool:
        decoder, proposing = joined(self.decoder, other.decoder), None
        if self.proposal_decoder is not None and other.proposal_decoder is not None:
            proposing = joined(self.proposal_decoder, other.proposal_decoder)
        if decoder is None or (proposing is None and self.proposal_decoder is not None):
            return False
        super().join(other)
        self.row = np.concatenate([self.row, len(self.row_prompt) + other.row])
        self.prompt, self.awake = (np.concatenate([getattr(self, n), getattr(other, n)]) for n in ("prompt", "awake"))
        self.row_prompt = np.concatenate([self.row_prompt, other.row_prompt])
        self.decoder, self.proposal_decoder = decoder, proposing
        return True

    def advance(self) -> None:
        """One forward over the distinct (prefix, token) pairs of the running particles."""
        if self.keep:
            self._keep_ended()
        if self.texts is not None:
            self.texts.keep(self)
            self.texts.settle(self)
        if self.done:
            leave(self.decoder)
            leave(self.proposal_decoder)
            return
        if self.texts is not None:
            self._wake(self.texts)
        running = self.running
        if not running.any():
            return
        vocab = self.source.lm.vocab_size
        pairs = self.row[running] * vocab + self.last[running]
        distinct, which = np.unique(pairs, return_inverse=True)
        order = in_place(distinct // vocab)
        self.row[running] = np.argsort(order)[which]
        parents, tokens = distinct[order] // vocab, distinct[order] % vocab
        self.row_prompt = self.row_prompt[parents]
        step = torch.as_tensor(parents), torch.as_tensor(tokens)
        self.decoder = self.decoder.extend(*step)
        if self.proposal_decoder is not None:
            self.proposal_decoder = self.proposal_decoder.extend(*step)

    @property
    def running(self) -> np.ndarray:
        """bool [M]: neither at its end nor asleep."""
        return self.alive & self.awake

    def _wake(self, texts: TextCache) -> None:
        """Those whose kept tokens are as many as the others have written join them."""
        waking, rows = texts.waking(self)
        if rows is None:
            return
        both = joined(self.decoder, rows)
        assert both is not None
        self.row[waking] = len(self.row_prompt) + np.arange(len(waking))
        self.row_prompt = np.concatenate([self.row_prompt, self.prompt[waking]])
        self.awake[waking] = True
        self.decoder = both

    def _keep_ended(self) -> None:
        """The rows that are not continued from here, without their newest tokens, which nobody has read."""
        assert self.kept is not None
        newest = self.lengths == self.t
        ended = np.flatnonzero(newest & self.awake & (~self.alive | self.done))
        rows, first = np.unique(self.row[ended], return_index=True)
        if not len(rows):
            return
        prompts = [self.prompts[self.row_prompt[row]] for row in rows]
        texts = self.written[ended[first], : self.t - 1].tolist()
        ids = [(*prompt, *text) for prompt, text in zip(prompts, texts, strict=True)]
        self.kept.keep(self.source.lm, self.decoder, rows, ids)
        if self.proposal_decoder is not None:
            self.kept.keep(self.proposal_lm, self.proposal_decoder, rows, ids)


def joined(one: Decoder, other: Decoder) -> Decoder | None:
    """One decoder with the rows of both; None where their kind has no such thing."""
    join = getattr(one, "joined", None)
    return None if join is None or type(one) is not type(other) else join(other)


def in_place(parents: np.ndarray) -> np.ndarray:
    """An order [m] of rows that go on from ``parents`` [m], ascending: each row that can stays where its parent is.

    >>> in_place(np.array([0, 2, 2, 3]))  # rows 0 and 2 stay; the second child of 2, and that of 3, fill the gaps
    array([0, 2, 1, 3])
    """
    first, child = np.unique(parents, return_index=True)
    stays = first < len(parents)
    order = np.full(len(parents), -1)
    order[first[stays]] = child[stays]
    order[order < 0] = np.setdiff1d(np.arange(len(parents)), child[stays])
    return order


def population(
    source: CompletionDistribution,
    proposal: TokenProposal | LM | None = None,
    lean: Lean | None = None,
    block: int | None = None,
    kept: PrefixCache | None = None,
    keep: bool = False,
) -> Population | BlockPopulation:
    """The texts of a completion, about to be written: token by token if its LM steps, else ``block`` tokens at once.

    ``kept``, ``keep``: see :class:`Population`.

    Raises ``InputError`` where something needs the probabilities of next tokens, and the LM has none to show."""
    lm = source.lm
    if lm.steps:
        return Population(source, proposal, None, lean, kept, keep)
    needs = {
        "a hard constraint": source.restriction is not None and source.restriction.proposes,
        "a proposal or guide": proposal is not None,
        "a twist that values next tokens": lean is not None and lean.proposes,
    }
    for what, needed in needs.items():
        if needed:
            raise InputError(lm.cannot_step(what))
    return BlockPopulation(source, block)
