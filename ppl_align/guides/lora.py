"""The language model itself, fine-tuned through low-rank adapters (``peft``), as a guide.

More expressive than the head, and each step costs more: generation, a scoring pass with gradient, and a pass of the
prior. The adapted network shares every frozen weight with the prior; only its module tree and adapters are its own,
so the prior is never touched.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppl_align.core.errors import InputError
from ppl_align.guides.targets import with_new_adapter
from ppl_align.guides.tokens import Draw, TokenGuide
from ppl_align.lm.adapter import with_adapter
from ppl_align.lm.base import LM
from ppl_align.lm.causal import CausalLM
from ppl_align.lm.decoding import Population, Rows
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.names import portable


class LoRAGuide(TokenGuide):
    """q = the LM with LoRA adapters of rank ``rank`` (Hu et al. 2021, arXiv:2106.09685), initially the prior.

    Where the prior has top-k or top-p, q writes what the prior can write, at its temperature: the support of q is that
    of p0, whatever the adapters have learned. Both networks decode then; the prior's pass gives log p0 as well.
    Raises ``InputError`` for LMs that are not a ``CausalLM``, or where ``peft`` is missing."""

    kind = "lora"

    def __init__(self, source: CompletionDistribution, rank: int) -> None:
        super().__init__()
        if not isinstance(source.lm, CausalLM):
            raise InputError(f'guide="lora" adapts a CausalLM; {source.lm.name} has no weights to adapt: use "auto"')
        try:
            import peft  # noqa: F401
        except ImportError as error:
            raise InputError('guide="lora" needs peft: pip install "ppl-align[lora]"') from error
        prior = source.lm
        if prior.learned:
            raise InputError(
                f'guide="lora" adapts a frozen network, and {prior.name} has parameters that require gradients: '
                f"call lm.model.requires_grad_(False) first"
            )
        self.adapted = with_new_adapter(prior.model, rank, portable(prior.name), prior.name)
        self._lm = [adapted_lm(prior, self.adapted)]

    def _restore(self, lm: LM, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """``settings["folder"]``: where :meth:`save` wrote the adapter."""
        if not isinstance(lm, CausalLM):
            raise InputError(f'guide="lora" adapts a CausalLM; {lm.name} has no weights to adapt')
        self.adapted = with_adapter(lm.model, settings["folder"], lm.name).eval()
        self._lm = [adapted_lm(lm, self.adapted)]

    @property
    def lm(self) -> CausalLM:
        return self._lm[0]

    def log_q(self, rows: Rows) -> Tensor:
        raise TypeError("a LoRA guide reads prefixes with its own network: use proposal()")

    def proposal(self) -> LM:
        return self.lm

    @torch.no_grad()
    def draw(self, source: CompletionDistribution) -> Draw:
        if not source.warp.cuts:  # the prior need not be asked where q may go
            population = Population(source.by(self.lm)).run()
            return Draw(population.tokens, population.log_p)
        seen = _Seen(source, self.lm).run()
        tokens, inside = seen.tokens, torch.stack(seen.inside, 1)

        def score() -> Tensor:
            drawn = tokens[:, : inside.shape[1]]
            return source.proposed_log_probs(self.lm, drawn, inside).double().sum(-1)

        return Draw(tokens, seen.log_q, seen.log_p, score)

    def log_prob(self, source: CompletionDistribution, tokens: Tensor) -> Tensor:
        return source.proposed_log_probs(self.lm, tokens).double().sum(-1)

    def save(self, folder: str | Path) -> None:
        """A PEFT adapter that ``peft.PeftModel.from_pretrained(base, folder)`` loads, with no ppl-align installed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # between peft and transformers, nothing a user can mend
            # Embeddings are frozen: they are the base model's, and peft need not look them up to know.
            self.adapted.save_pretrained(str(folder), save_embedding_layers=False)
        card, here = Path(folder) / "README.md", str(getattr(self.adapted.config, "_name_or_path", "") or "")
        if here and card.is_file():  # peft names the folder that the network was read from
            base = next(iter(self.adapted.peft_config.values())).base_model_name_or_path
            card.write_text(card.read_text(encoding="utf-8").replace(here, base), encoding="utf-8")


class _Seen(Population):
    """Keeps the tokens that the prior could have written at each step, ``inside`` [M, V]: reading the draws again would
    round otherwise, and a token at the edge of top-k might then have probability zero."""

    def __init__(self, source: CompletionDistribution, lm: LM) -> None:
        super().__init__(source, lm)
        self.inside: list[Tensor] = []

    def propose(self, support: Tensor) -> Tensor:
        row = torch.as_tensor(self.row * self.alive, device=support.device)  # of the finished, any
        self.inside.append(~support.isneginf()[row])
        return super().propose(support)


def adapted_lm(prior: CausalLM, adapted: nn.Module) -> CausalLM:
    """The prior with another network inside: same tokenizer, same vocabulary, same limits."""
    lm = copy.copy(prior)
    lm.model = adapted
    lm.unembedding = adapted.get_output_embeddings()  # type: ignore[operator]
    lm.name = f"{prior.name}+lora"
    return lm
