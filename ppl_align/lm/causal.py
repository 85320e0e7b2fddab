"""A transformers causal language model as a prior, with a cache that follows the particles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ppl_align.core.cost import network
from ppl_align.core.errors import InputError, PromptError
from ppl_align.core.runs import remembered
from ppl_align.lm.acquire import acquire
from ppl_align.lm.adapter import with_adapter
from ppl_align.lm.base import Decoder, Ids
from ppl_align.lm.codec import TokenizedLM, end_ids
from ppl_align.lm.kinds import refuse_kind
from ppl_align.lm.lengths import longest_text
from ppl_align.lm.network import what_enters
from ppl_align.lm.placement import input_device
from ppl_align.lm.plan import Plan
from ppl_align.lm.precision import measured_error
from ppl_align.lm.prepack import PackedForward, packed_layers, repack
from ppl_align.lm.prepack import prepack as prepack_linears
from ppl_align.lm.reading import read_texts, start
from ppl_align.lm.verify import plan_for
from ppl_align.lm.warp import Warp, log_normalise


class CausalLM(TokenizedLM):
    """Whatever ``AutoModelForCausalLM.from_pretrained`` takes, as a prior.

    ``name_or_path``  a hub name, a local folder, a ``.gguf`` file, the built-in name ``"smollm2-135m"``,
                      or a model already in memory (then give ``tokenizer=``, or only use token ids). Nothing is done to
                      that model, in training or not: the LM is a frozen twin of it, with the weights, adapters and
                      settings that the model has whenever a text is begun (:mod:`ppl_align.lm.following`)
    ``device``        default: CUDA if there is one, else the CPU; of a model in memory, where it is. Any other makes
                      a copy, which follows the model no longer
    ``dtype``         default: float32 on the CPU, bfloat16 on CUDA; of a model in memory, what it has. Any other makes
                      a copy, which follows the model no longer
    ``adapter``       a folder with a PEFT adapter for it, such as ``posterior.guide.save(folder)`` writes: what a guide
                      has learned becomes part of the prior
    ``prepack``       lay out linear layers for the CPU (see :mod:`ppl_align.lm.prepack`); of a model already in memory
                      only those that are frozen
    ``verify``        find out how it must be read (``plan``): a few tokens against forwards without a cache
                      (:mod:`ppl_align.lm.verify`); False takes its cache on trust
    other keywords    passed to ``from_pretrained``; ``revision, token, subfolder, cache_dir, local_files_only`` and
                      ``trust_remote_code`` (False unless you say so) hold for the tokenizer as well. A network that is
                      spread by ``device_map=``, or quantised, stays where ``from_pretrained`` puts it

    The weights are frozen, and two LMs of the same name and settings share them, whatever adapters they have.

    Raises ``WeightsNotFound`` where the weights are neither here nor reachable, ``InputError`` for an adapter that does
    not fit them, ``UnsupportedModelError`` for what is no prior, or differs from itself however it is read. Warns where
    a network is right without its cache only.
    """

    def __init__(
        self,
        name_or_path: str | Path | nn.Module,
        tokenizer: Any = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        prepack: bool = True,
        *,
        adapter: str | Path | None = None,
        verify: bool = True,
        **kwargs: Any,
    ) -> None:
        found = acquire(name_or_path, tokenizer, device, dtype, prepack, kwargs)
        self.name, model, self.tokenizer = found.name, found.model, found.tokenizer
        self._following, self._keep, self._prepack = found.following, found.loaded, prepack
        self._layouts: list[PackedForward] = []
        self.model: Any
        self._adopt(model)
        if adapter is not None:
            model = self.model = _still(with_adapter(model, adapter, self.name))
            self.name = f"{self.name}+{Path(adapter).name}"
        config = model.config.get_text_config()
        refuse_kind(model)
        self.unembedding: nn.Module = model.get_output_embeddings()
        self.vocab_size = int(config.vocab_size)
        self.hidden_size = int(config.hidden_size)
        self.max_length = longest_text(model)
        settings = (self.tokenizer, getattr(model, "generation_config", None), config, model.config)
        ends = end_ids(self.name, self.vocab_size, *settings)
        self.eos_id, self._other_eos = (ends[0] if ends else None), ends[1:]
        self._verify = verify
        self.plan: Plan = plan_for(self, verify)

    def _adopt(self, network: Any) -> None:
        """Run a network of our own, with its linear layers laid out."""
        if self._prepack:
            learning = self._following.learning() if self._following is not None else ()
            prepack_linears(network, learning, self._layouts)
        self.model = _still(network)
        self._base = network
        self._layouts = packed_layers(network)

    def __getstate__(self) -> dict[str, Any]:
        """Copied or written to a file, the LM has ordinary layers; they are laid out anew where it is read."""
        return {**super().__getstate__(), "_layouts": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._following is not None:
            self._following.follow()  # in a file, a twin has weights of its own
        if self._prepack:
            prepack_linears(self._base, self._following.learning() if self._following is not None else ())
        self._layouts = packed_layers(self._base)

    @property
    def log_prob_error(self) -> float:
        """By how much log p of a token differs between drawing and scoring, nats (root mean square); 0.0 in float32.

        Measured on a few texts when it is first asked for (:mod:`ppl_align.lm.precision`)."""
        return self.cached("log_prob_error", lambda: measured_error(self))

    @property
    def packed_layers(self) -> int:
        """How many linear layers are laid out for the CPU."""
        return len(self._layouts)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where token ids go."""
        return input_device(self.model if self._following is None else self._following.original)

    def follow(self) -> None:
        """Take up what has become of the caller's network (:mod:`ppl_align.lm.following`) and of its weights.

        Called before a text is begun. Raises ``InputError`` for what cannot be followed."""
        following = self._following
        if following is not None:
            following.follow()
            if following.root is not self._base:
                self._follow(following.root)
        if self._layouts and remembered(("layouts", self._base), self._repack) is None:
            self._repack()

    def _follow(self, network: Any) -> None:
        what = f"the network of {self.name} has changed since the LM was made"
        if self.model is not self._base:
            raise InputError(f"{what}, below the adapter that was put on it: make the LM anew")
        if int(network.config.get_text_config().vocab_size) != self.vocab_size:
            raise InputError(f"{what}: it has another vocabulary now; make the LM anew")
        self._adopt(network)
        self.unembedding = network.get_output_embeddings()
        self.plan = plan_for(self, self._verify)  # what is new (a hook, a layer) may not go with a cache

    def _repack(self) -> bool:
        repack(self._layouts)
        return True

    def __repr__(self) -> str:
        weights = list(self.model.parameters())
        size = sum(weight.numel() for weight in weights)
        shown = f"{size / 1e6:.1f}M" if size >= 1e5 else str(size)
        dtype = str(weights[0].dtype).removeprefix("torch.")
        kind = type(self.model).__name__
        return f"CausalLM({self.name!r}, {kind}, {shown} parameters, {dtype} on {self.device}, V={self.vocab_size})"

    def check(self, ids: Ids) -> Ids:
        if not ids:
            raise PromptError(f"the prompt is empty and {self.name} has no BOS token to start from: give it some text")
        return ids

    @property
    def learned(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.parameters())

    @property
    def token_features(self) -> Tensor | None:
        self.follow()
        weight = self.model.get_input_embeddings().weight
        return None if weight.is_meta else weight[: self.vocab_size].detach().float()

    # -- the network --------------------------------------------------------------------------------------

    def start(self, prompts: Sequence[Ids]) -> Decoder:
        self.follow()
        return start(self, self.plan, prompts)

    def forward(
        self, ids: Tensor, cache: DynamicCache, mask: Tensor | None, positions: Tensor, keep: int
    ) -> tuple[Tensor, Tensor]:
        """``(logits [m, keep, V], hidden [m, keep, d])``: the hidden state is what enters the unembedding."""
        with what_enters(self.unembedding) as seen, network():
            out = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep,
            )
        return out.logits.to(ids.device), seen[0].to(ids.device)  # of a network that is spread over devices

    def _score(self, prompts: Sequence[Ids], tokens: Tensor, warp: Warp) -> Tensor:
        if not warp.is_identity:
            return super()._score(prompts, tokens, warp)
        logits, _ = self.teacher_forced(prompts, tokens)
        picked = logits.gather(-1, tokens[..., None])[..., 0].float()
        return picked - logits.float().logsumexp(-1)

    def forced_log_probs(self, prompts: Sequence[Ids], tokens: Tensor) -> Tensor:
        return log_normalise(self.teacher_forced(prompts, tokens)[0])

    def teacher_forced(self, prompts: Sequence[Ids], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and hidden states that predict each token: ``([B, T, V], [B, T, d])``."""
        self.follow()
        return read_texts(self, self.plan, prompts, tokens)


def _still(network: Any) -> Any:
    """A network of our own, frozen and in evaluation mode (without ``eval()``, which may be its own and do more)."""
    for module in network.modules():
        module.training = False
    for weight in network.parameters():
        if weight.requires_grad:
            weight.requires_grad_(False)
    return network
