"""A mixture of language models: one of them writes, and nobody is told which.

    p(x | prompt) = sum_k pi_k p_k(x | prompt)

over *whole sequences*. Its next token is a mixture whose weights follow the text, by Bayes' rule:

    p(v | x_<t) = sum_k w_k(x_<t) p_k(v | x_<t),      w_k(x_<t) ∝ pi_k p_k(x_<t)

so it is normalised for every token and as a whole at once, and the latent k is summed out exactly. (Averaging the
next-token distributions with constant weights would be another distribution: there the writer changes at every token.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.lm.base import LM, Decoder, Ids
from ppl_align.lm.completions import Completion
from ppl_align.lm.ensemble import Ensemble, begun, hidden_of
from ppl_align.lm.warp import Warp


class Mixture(Ensemble):
    """``lms`` over one vocabulary, ``weights`` pi_k (positive; scaled to sum to 1; default: equal).

    Two personas of one network: ``Mixture([Prompted(lm, "A pirate says: "), Prompted(lm, "A poet says: ")])``.
    The weights start at pi after every prompt: the prompt says nothing about who writes, and a second completion is
    written by somebody chosen anew. For a writer who stays, use a latent variable and ``choose``.

    Raises ``InputError`` for LMs of different vocabularies, or weights that are not positive.
    """

    def __init__(self, lms: Sequence[LM], weights: Sequence[float] | None = None) -> None:
        super().__init__(lms, [1.0] * len(lms) if weights is None else weights, "mixture", "weights")
        if min(self.coefficients) <= 0:
            raise InputError(f"the weights of a mixture are positive, got {self.coefficients}")
        pi = torch.tensor(self.coefficients, dtype=torch.float64, device=self.device)
        self.log_weights = (pi / pi.sum()).log()

    def start(self, prompts: Sequence[Ids]) -> MixtureDecoder:
        return MixtureDecoder(self.starts(prompts), self.log_weights.expand(len(prompts), -1))

    def token_log_probs(self, prompts: Sequence[Ids], tokens: Tensor, warp: Warp = Warp()) -> Tensor:
        if not warp.is_identity:
            return super().token_log_probs(prompts, tokens, warp)
        scored = self._scored(prompts, tokens)
        so_far = torch.cat([torch.zeros_like(scored[:, :1]), scored.cumsum(1)], 1)  # log p_k(x_<=t), t = 0..T
        total = (self.log_weights + so_far).logsumexp(-1)
        return torch.where(total[:, :-1].isneginf(), -torch.inf, total[:, 1:] - total[:, :-1])

    def forced_log_probs(self, prompts: Sequence[Ids], tokens: Tensor) -> Tensor:
        parts = self.forced(prompts, tokens)
        picked = [part.gather(-1, tokens[..., None])[..., 0].double() for part in parts]
        posterior = _followed(self.log_weights, torch.stack(picked, -1))[:, :-1]
        return _mix(parts, posterior)

    def log_responsibilities(self, completion: Completion) -> Tensor:
        """log P(k | prompt, text): who wrote each completion of this mixture, ``[..., K]`` nats.

        The text is as it was written, at temperature 1; unfinished texts and single ones are welcome."""
        source = completion.source
        if source is None or source.lm is not self:
            raise InputError("log_responsibilities() takes a completion that this mixture has written")
        if not source.warp.is_identity:
            raise InputError(
                "temperature, top_k and top_p act on the mixture as a whole: no member has written the text"
            )
        width = completion.tokens.shape[-1]
        tokens = completion.tokens.reshape(-1, width)
        index = source.index.expand(completion.shape).reshape(-1).tolist()
        belongs = ~source.ended_before(tokens)
        scored = self._scored([source.prompts[i] for i in index], tokens)
        joint = self.log_weights + torch.where(belongs[..., None], scored, 0.0).sum(1)
        return joint.log_softmax(-1).reshape(*completion.shape, len(self.lms))

    def _scored(self, prompts: Sequence[Ids], tokens: Tensor) -> Tensor:
        """log p_k of every token, [B, T, K]."""
        return torch.stack([lm.token_log_probs(begun(lm, prompts), tokens).double() for lm in self.lms], -1)


class MixtureDecoder:
    """One decoder of each member, and who is likely to be writing: ``log_weights [rows, K]``, normalised."""

    def __init__(self, decoders: list[Decoder], log_weights: Tensor) -> None:
        self.decoders, self.log_weights = decoders, log_weights
        self.parts = [decoder.log_probs for decoder in decoders]
        self.logits = self.log_probs = _mix(self.parts, log_weights)
        self.hidden = hidden_of(decoders)

    def extend(self, parents: Tensor, tokens: Tensor) -> MixtureDecoder:
        where = parents.to(self.log_weights.device), tokens.to(self.log_weights.device)
        picked = torch.stack([part[where].double() for part in self.parts], -1)
        log_weights = _followed(self.log_weights[where[0]], picked[:, None])[:, -1]
        return MixtureDecoder([decoder.extend(parents, tokens) for decoder in self.decoders], log_weights)


def _mix(parts: Sequence[Tensor], log_weights: Tensor) -> Tensor:
    """log sum_k w_k p_k: ``parts`` K times [..., V], ``log_weights`` [..., K]."""
    mixed = parts[0] + log_weights[..., :1].to(parts[0].dtype)
    for k, part in enumerate(parts[1:], 1):
        mixed = torch.logaddexp(mixed, part + log_weights[..., k, None].to(part.dtype))
    return mixed


def _followed(log_weights: Tensor, scored: Tensor) -> Tensor:
    """Weights before and after each token: ``[B, K]`` or ``[K]``, and log p_k ``[B, t, K] -> [B, t + 1, K]``.

    After a text that nobody can have written they stay as they were: its probability is zero whatever follows."""
    joint = [log_weights.expand(len(scored), -1)]
    for t in range(scored.shape[1]):
        new = joint[-1] + scored[:, t]
        joint.append(torch.where(new.isneginf().all(-1, keepdim=True), joint[-1], new.log_softmax(-1)))
    return torch.stack(joint, 1)
