"""Completions of a prompt as a Pyro distribution: ids, padded after EOS, normalised at ``max_new_tokens``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ppl_align.core.errors import InputError, PromptError
from ppl_align.lm.base import LM, SCORING_ELEMENTS, Ids
from ppl_align.lm.completions import sequence_lengths
from ppl_align.lm.decoding import population
from ppl_align.lm.precision import state_precision
from ppl_align.lm.restriction import Restriction
from ppl_align.lm.score_cache import note_gradient, recall
from ppl_align.lm.stopping import StopIds, sequence_ends
from ppl_align.lm.warp import Warp


class CompletionDistribution(TorchDistribution):
    r"""p0(x | prompt) over sequences of at most T tokens.

    * ``event_shape [T]``, int64. A sequence ends with its first terminal token (an EOS, a stop token, or the one that
      completes a stop string), which belongs to it and whose log-probability counts; what follows is ``pad_id``, of
      log-probability 0, and anything else there has log-probability -inf.
    * A sequence cut off at T has the probability of its prefix, so the probabilities of all sequences sum to 1.
    * ``sample`` and ``log_prob`` are one distribution, temperature, top-k and top-p included.

    ``prompts`` are the distinct prompts and ``index`` (of the batch shape) says who starts from which:
    expanding the distribution expands the index and nothing else.
    """

    has_rsample = False
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(
        self,
        lm: LM,
        prompts: tuple[Ids, ...],
        index: Tensor,
        max_new_tokens: int,
        warp: Warp = Warp(),
        stop_ids: Sequence[int] = (),
        restriction: Restriction | None = None,
    ) -> None:
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}")
        longest = max(map(len, prompts), default=0)
        limit = getattr(lm, "max_length", None)
        if limit is not None and longest + max_new_tokens > limit:
            raise PromptError(
                f"the prompt has {longest} tokens and asks for {max_new_tokens} more, but {lm.name} reads at most "
                f"{limit}: shorten the prompt or lower max_new_tokens"
            )
        self.lm = lm
        self.prompts = prompts
        self.index = index
        self.max_new_tokens = max_new_tokens
        self.warp = warp
        self.stop_ids = StopIds(stop_ids)
        self.restriction = restriction
        self.terminal = StopIds(sorted({*self.stop_ids, *lm.eos_ids}), self.stop_ids.text)
        self.pad_id = lm.eos_id if lm.eos_id is not None else (self.terminal[0] if self.terminal else 0)
        super().__init__(index.shape, torch.Size([max_new_tokens]), validate_args=False)

    @property
    def can_end(self) -> bool:
        """Can a text end before ``max_new_tokens``?"""
        return bool(self.terminal) or self.terminal.text is not None

    def ends_within(self, tokens: Tensor) -> Tensor:
        """Has the text ended with these tokens? ``[..., t] -> [...]`` bool."""
        return sequence_ends(tokens, self.terminal)[..., -1:].any(-1)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.nonnegative_integer, 1)

    def reshaped(self, shape: Sequence[int]) -> CompletionDistribution:
        """The same prompts over another batch shape of the same size."""
        return self.with_index(self.index.reshape(tuple(shape)))

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> CompletionDistribution:
        return self.with_index(self.index.expand(tuple(batch_shape)))

    def with_index(self, index: Tensor) -> CompletionDistribution:
        return self._but(index, self.restriction)

    def within(self, restriction: Restriction | None) -> CompletionDistribution:
        """The same prior, proposed from within a restriction only: what a ``Population`` draws is confined to it and
        weighed by p0 / q. ``log_prob`` stays that of the prior."""
        return self._but(self.index, restriction)

    def by(self, lm: LM) -> CompletionDistribution:
        """The same completion by another LM over the same vocabulary."""
        return type(self)(lm, self.prompts, self.index, self.max_new_tokens, self.warp, self.stop_ids)

    def _but(self, index: Tensor, restriction: Restriction | None) -> CompletionDistribution:
        settings = (self.max_new_tokens, self.warp, self.stop_ids, restriction)
        return type(self)(self.lm, self.prompts, index, *settings)

    @classmethod
    def joined(cls, parts: Sequence[CompletionDistribution], dim: int = 0) -> CompletionDistribution:
        """One distribution for the texts of several, along a dimension of the batch; each may have had prompts of its
        own."""
        first = parts[0]
        number = {prompt: i for i, prompt in enumerate(dict.fromkeys(p for part in parts for p in part.prompts))}
        numbers = [torch.tensor([number[prompt] for prompt in part.prompts], dtype=torch.long) for part in parts]
        index = torch.cat(
            [own.to(part.index.device)[part.index] for own, part in zip(numbers, parts, strict=True)], dim
        )
        return cls(first.lm, tuple(number), index, first.max_new_tokens, first.warp, first.stop_ids)

    def prompt_rows(self, shape: Sequence[int]) -> list[Ids]:
        """The prompt of every element of a batch of that shape, flat."""
        return [self.prompts[i] for i in self.index.expand(tuple(shape)).reshape(-1).tolist()]

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Ancestral sampling with the global torch RNG: ids ``[*sample_shape, *batch_shape, T]``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        texts = population(self.expand(shape)).run()
        return texts.tokens.reshape(*shape, self.max_new_tokens)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p0 in nats, ``[*batch]``. A value of fewer than T tokens is scored as a prefix."""
        known = recall(self, value)
        if known is None:
            known = self.token_log_probs(value).sum(-1)
            note_gradient(self, known)
        return known

    def token_log_probs(self, value: Tensor) -> Tensor:
        """log p of every token, ``[*batch, t]``: 0 on padding, -inf on anything else after the end."""
        state_precision(self.lm, value.shape[-1])
        return self._each(value, lambda prompts, tokens: self.lm.token_log_probs(prompts, tokens, self.warp))

    def proposed_log_probs(self, lm: LM, value: Tensor, inside: Tensor | None = None) -> Tensor:
        """log q of every token, ``[*batch, t]``, where ``lm`` is the proposal of a ``Population`` (no restriction).

        Differentiable where the parameters of ``lm`` are. ``inside`` [*batch, t, V]: the tokens that this prior can
        write at each place, where that is known already (a network read in another way rounds in another way, and a
        token at the edge of top-k may have changed sides); else the prior is read for it."""

        def score(prompts: list[Ids], tokens: Tensor) -> Tensor:
            if not self.warp.cuts:
                return lm.token_log_probs(prompts, tokens, self.warp)
            rows, scored = max(1, SCORING_ELEMENTS // (tokens.shape[1] * lm.vocab_size)), []
            for i in range(0, len(prompts), rows):
                chunk, ids = prompts[i : i + rows], tokens[i : i + rows]
                at = self._inside(chunk, ids) if inside is None else inside.flatten(0, -3)[i : i + rows]
                log_q = self.warp.propose(lm.forced_log_probs(chunk, ids), at)
                scored.append(log_q.gather(-1, ids[..., None].to(log_q.device))[..., 0])
            return torch.cat(scored)

        return self._each(value, score)

    @torch.no_grad()
    def _inside(self, prompts: list[Ids], tokens: Tensor) -> Tensor:
        """The tokens of positive probability at each place, ``[B, t, V]`` bool."""
        return ~self.warp(self.lm.forced_log_probs(prompts, tokens)).isneginf()

    def _each(self, value: Tensor, score: Callable[[list[Ids], Tensor], Tensor]) -> Tensor:
        """``score(prompts, tokens [B, t]) -> [B, t]`` of every token up to the end, what follows as it is."""
        width = value.shape[-1]
        if width > self.max_new_tokens:
            raise InputError(f"cannot score {width} tokens: this completion has at most {self.max_new_tokens}")
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        tokens = value.to(self.lm.device).expand(*shape, width).reshape(-1, width)
        index = self.index.expand(shape).reshape(-1)
        scored = score([self.prompts[i] for i in index.tolist()], tokens)
        after_end = self.ended_before(tokens)
        padding = torch.where(tokens == self.pad_id, 0.0, -torch.inf).to(scored.dtype)
        return torch.where(after_end, padding, scored).reshape(*shape, width)

    def ended_before(self, tokens: Tensor) -> Tensor:
        """True at the positions after the first terminal token: ``[..., T] -> [..., T]`` bool."""
        position = torch.arange(tokens.shape[-1], device=tokens.device)
        return position >= sequence_lengths(tokens, self.terminal)[..., None]

    def __repr__(self) -> str:
        return f"Completion of {len(self.prompts)} prompt(s) by {self.lm.name}, at most {self.max_new_tokens} tokens"
