"""A transformers causal language model as a prior, with a cache that follows the particles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ppl_align.cost import network
from ppl_align.errors import InputError, PromptError
from ppl_align.lm.adapter import frozen, with_adapter
from ppl_align.lm.base import LM, SCORING_ELEMENTS, Decoder, Ids
from ppl_align.lm.codec import Codec, end_ids
from ppl_align.lm.kinds import refuse_kind
from ppl_align.lm.lengths import longest_text
from ppl_align.lm.plan import Plan
from ppl_align.lm.prepack import prepack as prepack_linears
from ppl_align.lm.reading import read_texts, start
from ppl_align.lm.verify import plan_for
from ppl_align.lm.warp import Warp, log_normalise

_LOADED: WeakValueDictionary[Any, Loaded] = WeakValueDictionary()  # frozen weights, shared by who asks for the same


class Loaded:
    """A network and its tokenizer, as they were read from disk."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer


class CausalLM(LM):
    """Whatever ``AutoModelForCausalLM.from_pretrained`` takes, as a prior.

    ``name_or_path``  a hub name, a local folder, a ``.gguf`` file, the built-in name ``"smollm2-135m"``,
                      or a model already in memory (then give ``tokenizer=``, or only use token ids). One that is
                      being trained goes on as it is: the LM is a frozen twin of it, of the same weights at any time
    ``device``        default: CUDA if there is one, else the CPU
    ``dtype``         default: float32 on the CPU, bfloat16 on CUDA
    ``adapter``       a folder with a PEFT adapter for it, such as ``posterior.guide.save(folder)`` writes: what a guide
                      has learned becomes part of the prior
    ``prepack``       lay out linear layers for the CPU (see :mod:`ppl_align.lm.prepack`); of a model already in memory
                      only those that are frozen when it is given
    ``verify``        find out how it must be read (``plan``): a few tokens against forwards without a cache
                      (:mod:`ppl_align.lm.verify`); False takes its cache on trust
    other keywords    passed to ``from_pretrained``; ``revision, token, subfolder, cache_dir, local_files_only`` and
                      ``trust_remote_code`` (False unless you say so) hold for the tokenizer as well

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
        model: Any
        learning: set[int] = set()
        if isinstance(name_or_path, nn.Module):
            model = frozen(name_or_path)
            learning = {weight.data_ptr() for weight in name_or_path.parameters() if weight.requires_grad}
            self.name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        else:
            from ppl_align.lm.names import load_causal

            device = checked_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
            self.name = str(name_or_path)
            key = (self.name, str(device), dtype, prepack, repr(sorted(kwargs.items())))
            pair = _LOADED.get(key)
            if pair is None:
                pair = _LOADED[key] = Loaded(*load_causal(self.name, dtype=dtype, **kwargs))
            self._keep = pair  # as long as one LM holds it, others of the same name share it
            model, tokenizer = pair.model, tokenizer or pair.tokenizer
        if device is not None:
            device = checked_device(device)
            there = next(model.parameters()).device
            if model is not name_or_path and isinstance(name_or_path, nn.Module) and torch.device(device) != there:
                raise InputError(
                    f"the network in training is on {there}, and its twin shares its weights: move the network, or "
                    f"freeze it (requires_grad_(False)), instead of device={str(device)!r}"
                )
            model.to(device)
        self.packed_layers = prepack_linears(model.eval().requires_grad_(False), learning) if prepack else 0
        if adapter is not None:
            model = with_adapter(model, adapter, self.name)
            self.name = f"{self.name}+{Path(adapter).name}"
        self.model: Any = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        config = model.config.get_text_config()
        self.device = next(model.parameters()).device
        refuse_kind(model)
        self.unembedding: nn.Module = model.get_output_embeddings()
        self.vocab_size = int(config.vocab_size)
        self.hidden_size = int(config.hidden_size)
        self.max_length = longest_text(model)
        settings = (tokenizer, getattr(model, "generation_config", None), config, model.config)
        ends = end_ids(self.name, self.vocab_size, *settings)
        self.eos_id, self._other_eos = (ends[0] if ends else None), ends[1:]
        self.codec = Codec(tokenizer, self.name, self.vocab_size)
        self.plan: Plan = plan_for(self, verify)

    def __repr__(self) -> str:
        weights = list(self.model.parameters())
        size = sum(weight.numel() for weight in weights)
        shown = f"{size / 1e6:.1f}M" if size >= 1e5 else str(size)
        dtype = str(weights[0].dtype).removeprefix("torch.")
        kind = type(self.model).__name__
        return f"CausalLM({self.name!r}, {kind}, {shown} parameters, {dtype} on {self.device}, V={self.vocab_size})"

    # -- text ---------------------------------------------------------------------------------------------

    def encode(self, text: str) -> Ids:
        return self.codec.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.codec.decode_batch([ids])[0]

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return self.codec.decode_batch(rows)

    def continue_text(self, prompt: Ids, rows: Sequence[Sequence[int]]) -> list[str]:
        return self.codec.continue_text(prompt, rows)

    def chat_ids(self, messages: Sequence[Mapping[str, Any]]) -> Ids:
        return self.codec.chat_ids(messages)

    @property
    def opening(self) -> Ids:
        return self.codec.opening

    @property
    def special_tokens(self) -> Mapping[int, str]:
        if "_special" not in self.__dict__:
            ends = set(self.eos_ids)
            self.__dict__["_special"] = {v: name for v, name in self.codec.special_tokens.items() if v not in ends}
        return self.__dict__["_special"]

    def check(self, ids: Ids) -> Ids:
        if not ids:
            raise PromptError(f"the prompt is empty and {self.name} has no BOS token to start from: give it some text")
        return ids

    @property
    def learned(self) -> bool:
        return any(parameter.requires_grad for parameter in self.model.parameters())

    @property
    def token_features(self) -> Tensor | None:
        return self.model.get_input_embeddings().weight[: self.vocab_size].detach().float()

    # -- the network --------------------------------------------------------------------------------------

    def start(self, prompts: Sequence[Ids]) -> Decoder:
        return start(self, self.plan, prompts)

    def forward(
        self, ids: Tensor, cache: DynamicCache, mask: Tensor | None, positions: Tensor, keep: int
    ) -> tuple[Tensor, Tensor]:
        """``(logits [m, keep, V], hidden [m, keep, d])``: the hidden state is what enters the unembedding."""
        seen: list[Tensor] = []
        hook = self.unembedding.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            with network():
                out = self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=keep,
                )
        finally:
            hook.remove()
        return out.logits, seen[0]

    def token_log_probs(self, prompts: Sequence[Ids], tokens: Tensor, warp: Warp = Warp()) -> Tensor:
        rows = max(1, SCORING_ELEMENTS // (tokens.shape[1] * self.vocab_size))
        chunks = range(0, len(prompts), rows)
        return torch.cat([self._score(prompts[i : i + rows], tokens[i : i + rows], warp) for i in chunks])

    def _score(self, prompts: Sequence[Ids], tokens: Tensor, warp: Warp) -> Tensor:
        logits, _ = self.teacher_forced(prompts, tokens)
        if warp.is_identity:
            picked = logits.gather(-1, tokens[..., None])[..., 0].float()
            return picked - logits.float().logsumexp(-1)
        return warp(log_normalise(logits)).gather(-1, tokens[..., None])[..., 0]

    def forced_log_probs(self, prompts: Sequence[Ids], tokens: Tensor) -> Tensor:
        return log_normalise(self.teacher_forced(prompts, tokens)[0])

    def teacher_forced(self, prompts: Sequence[Ids], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and hidden states that predict each token: ``([B, T, V], [B, T, d])``."""
        return read_texts(self, self.plan, prompts, tokens)


def checked_device(device: str | torch.device) -> torch.device:
    """Raises ``InputError`` for a device that torch does not know, or that is not here."""
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device={str(device)!r} is none that torch knows: write 'cpu', 'cuda' or 'cuda:0'") from error
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted.type == "cuda" and (wanted.index or 0) >= there:
        raise InputError(f"device={str(device)!r}: torch sees {there} CUDA devices here; leave device= out, or 'cpu'")
    return wanted
