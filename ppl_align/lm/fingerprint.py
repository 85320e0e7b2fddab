"""Is it the same language model? ``lm.fingerprint``: sixteen digits that answer it without the weights at hand.

Of a network: its configuration, its tokenizer, the table of its tensors and a sample of the numbers in each, so that it
takes a fraction of a second. The name, the folder and the device do not count; the type of the numbers does. Of a toy:
what defines it. Of a mixture, a product or a prompted LM: its members and what is done with them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from ppl_align.core.digests import digest, sampled, table
from ppl_align.core.runs import remembered
from ppl_align.lm.base import LM

# fields of a config that say where it came from or how it is run
_NOT_THE_MODEL = {"_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}
_NOT_THE_MODEL |= {"use_cache", "_attn_implementation", "attn_implementation", "_experts_implementation"}
_NOT_THE_MODEL |= {"_attn_implementation_autoset", "experts_implementation"}
_NOT_THE_LM = ("name", "device", "unembedding", "tokenizer")
_LARGEST_HEADER = 2**27  # bytes, the limit of the format


def fingerprint(lm: LM) -> str:
    """See :attr:`ppl_align.lm.base.LM.fingerprint`."""
    return of_parts(parts(lm))


def of_parts(found: Mapping[str, str]) -> str:
    """The fingerprint of an LM that has these :func:`parts`."""
    return digest({part: value for part, value in found.items() if part not in ("files", "rounded")})


def parts(lm: LM) -> dict[str, str]:
    """Digests of what the fingerprint is made of, by name.

    Two do not enter the fingerprint itself. ``files``: the headers of the safetensors files, where the weights came
    from some, since the same weights may lie in one file or in several. ``rounded``: the weights to the precision of
    bfloat16, which is the same for a network that was read in float32 and in bfloat16."""
    network = getattr(lm, "model", None)
    if not isinstance(network, nn.Module):
        return {"definition": digest(type(lm).__qualname__, _definition(lm))}
    weights = network.state_dict()
    numbers = sampled(weights)
    found = {
        "config": digest(type(lm).__qualname__, _config(network), list(lm.eos_ids)),
        "tokenizer": _tokenizer(lm),
        "weights": digest([*table(weights), numbers.numpy().tobytes()]),
        "rounded": digest(numbers.bfloat16().double().numpy().tobytes()),
    }
    files = _headers(network)
    return found | {"files": files} if files else found


def note_use(lm: LM) -> None:
    """A program asks this LM in the run that goes on, if one does."""
    used: dict[int, LM] | None = remembered("language models", dict)
    if used is not None:
        used[id(lm)] = lm


def used_lms() -> list[Any]:
    """The LMs that the run that goes on has asked, in the order of their first use."""
    used: dict[int, Any] | None = remembered("language models", dict)
    return list((used or {}).values())


def _definition(lm: LM) -> dict[str, Any]:
    return {k: v for k, v in vars(lm).items() if not k.startswith("_") and k not in _NOT_THE_LM}


def _config(network: Any) -> Any:
    to_dict = getattr(getattr(network, "config", None), "to_dict", dict)
    return _stripped(to_dict())


def _stripped(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {str(k): _stripped(v) for k, v in config.items() if k not in _NOT_THE_MODEL and v is not None}
    return [_stripped(v) for v in config] if isinstance(config, (list, tuple)) else config


def _tokenizer(lm: Any) -> str:
    """Vocabulary, the steps around it, special tokens and chat template; remembered, since vocabularies are long."""
    tokenizer = lm.tokenizer
    if tokenizer is None:
        return digest(None)
    key = (id(tokenizer), len(tokenizer), getattr(tokenizer, "chat_template", None))

    def made() -> str:
        inside = getattr(tokenizer, "backend_tokenizer", None)
        steps = [repr(getattr(inside, s, None)) for s in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
        special = sorted((str(k), str(v)) for k, v in getattr(tokenizer, "special_tokens_map", {}).items())
        return digest(vocabulary, steps, special, key[2])

    return lm.cached(("tokenizer digest", key), made)


def _headers(network: Any) -> str | None:
    """Of the safetensors files that a network was read from; None where there are none (any more)."""
    name = str(getattr(getattr(network, "config", None), "_name_or_path", "") or "")
    folder = Path(name) if name and Path(name).is_dir() else _cached(name)
    found = []
    with suppress(OSError, struct.error):
        for path in sorted(folder.glob("*.safetensors")) if folder is not None else []:
            with path.open("rb") as file:
                (size,) = struct.unpack("<Q", file.read(8))
                found.append(file.read(min(size, _LARGEST_HEADER)))
    return digest(found) if found else None


def _cached(name: str) -> Path | None:
    """The folder of a model from the hub, in the hub's cache."""
    with suppress(Exception):  # no name of the hub, or nothing there
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(name, "config.json")
        return Path(config).parent if isinstance(config, str) else None
    return None
