"""Networks that are no prior by what they are: they read in both directions, answer an input, or write nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ppl_align.core.errors import UnsupportedModelError
from ppl_align.lm.network import base_of

_INSTEAD = "use a network that writes from left to right (a ...ForCausalLM)"


def refuse_kind(model: Any) -> None:
    """Raises ``UnsupportedModelError`` for what cannot be a prior, naming what it is and what to use."""
    name = type(base_of(model)).__name__
    config = getattr(model, "config", None)
    trained_as = (getattr(config, "architectures", None) or [""])[0]
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(_encoder_decoder(name))
    if trained_as != name and trained_as in _listed("SEQ_TO_SEQ_CAUSAL_LM").values():
        raise UnsupportedModelError(f"{_encoder_decoder(trained_as)}; {name} is its decoder alone")
    if re.search(r"(ForMaskedLM|ForPreTraining|EncoderModel)$", name) and name not in _listed("CAUSAL_LM").values():
        raise UnsupportedModelError(_encoder(name))
    if trained_as.endswith("ForMaskedLM") and not getattr(config, "is_decoder", True):
        raise UnsupportedModelError(_encoder(trained_as))
    for kind in (name, trained_as):  # a head that shares its weights with the embedding is never missing
        if re.search(r"For(\w*(?:Classification|Answering|Choice|Regression|Scoring|Reward\w*))$", kind):
            raise UnsupportedModelError(
                f"{kind} judges texts and writes none: it may be a reward, not a prior; {_INSTEAD}"
            )
    if "lsh" in (getattr(config, "attn_layers", None) or ()):  # Reformer, in texts of more than two chunks
        raise UnsupportedModelError(
            f"{name} hashes at random what attends to what, so that one text has many probabilities: use a network "
            f"without such layers"
        )
    head = getattr(model, "get_output_embeddings", lambda: None)
    if head() is None:
        raise UnsupportedModelError(f"{name} has no head that writes text: load it as AutoModelForCausalLM")


def refuse_folder(name: str, where: Mapping[str, Any]) -> None:
    """The same of a folder or hub name whose network cannot be read as a prior; ``where``: keywords of its files."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, **where)
    except Exception:  # whatever is the matter with the files is said elsewhere
        return
    kind = (getattr(config, "architectures", None) or [type(config).__name__.replace("Config", "")])[0]
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name!r} is no prior: {_encoder_decoder(kind)}")
    if config.model_type in _listed("MASKED_LM") and not getattr(config, "is_decoder", False):
        raise UnsupportedModelError(f"{name!r} is no prior: {_encoder(kind)}")


def both_ways(model: Any, off: float) -> str:
    """What to say of a network whose word on a token depends on what comes after it, by ``off`` nats."""
    name = type(base_of(model)).__name__
    if getattr(model.config, "is_decoder", None) is False:
        return f"{_encoder(name)} (its config says is_decoder=False; what follows a token changes it by {off:.2g} nats)"
    return (
        f"{name} reads a text in both directions (what follows a token changes its log-probability by {off:.2g} nats) "
        f"and does not write from left to right: {_INSTEAD}"
    )


def _encoder(name: str) -> str:
    return f"{name} is an encoder: it fills gaps and does not write from left to right; {_INSTEAD}"


def _encoder_decoder(name: str) -> str:
    return f"{name} is an encoder-decoder: it answers an input and does not continue a text; {_INSTEAD}"


def _listed(task: str) -> Mapping[str, str]:
    """The classes that transformers has for a task, by kind of network."""
    from transformers.models.auto import modeling_auto

    return getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")
