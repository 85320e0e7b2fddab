"""A trained adapter (PEFT) on top of a frozen network that others may share."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from ppl_align.core.errors import InputError, WeightsNotFound
from ppl_align.lm.twin import twin_of


def with_adapter(model: nn.Module, folder: str | Path, name: str) -> Any:
    """The network ``model`` (called ``name``) with the adapter of a folder; ``model`` itself is left as it is.

    Raises ``WeightsNotFound`` for a folder without an adapter, ``InputError`` for one that does not fit."""
    folder = Path(folder).expanduser()
    if not (folder / "adapter_config.json").is_file():
        raise WeightsNotFound(
            f"{folder} is no adapter: it holds no adapter_config.json, which guide.save(folder) writes"
        )
    try:
        import peft
    except ImportError as error:
        raise InputError('adapter= needs peft: pip install "ppl-align[lora]"') from error
    if peft.PeftConfig.from_pretrained(str(folder)).is_prompt_learning:
        raise InputError(f"the adapter in {folder} is a soft prompt: adapter= takes low-rank and other weight adapters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # between peft and transformers, nothing a user can mend
            adapted = peft.PeftModel.from_pretrained(twin_of(model), str(folder))
            stored = set(peft.load_peft_weights(str(folder), device="cpu"))
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        raise InputError(f"the adapter in {folder} does not fit {name}: {_first_line(error)}") from error
    config = adapted.peft_config[adapted.active_adapter]
    base, config.base_model_name_or_path = config.base_model_name_or_path, None  # else peft asks the hub about it
    used = set(peft.get_peft_model_state_dict(adapted))
    config.base_model_name_or_path = base
    if stored != used:
        odd = min(stored ^ used)
        where = "the adapter alone" if odd in stored else "the network alone"
        raise InputError(f"the adapter in {folder} does not fit {name}: {where} has {odd}")
    return adapted


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    mismatch = [line for line in lines if "size mismatch" in line]
    return (mismatch or lines or [type(error).__name__])[0]
