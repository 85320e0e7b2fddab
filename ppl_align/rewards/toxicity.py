"""Toxicity of English text by HateSonar's classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from ppl_align.core.errors import InputError
from ppl_align.data.packages import folder_of
from ppl_align.rewards.convention import plain_text


@dataclass(frozen=True)
class Toxicity:
    """r = -(P(hate speech) + P(offensive language)), in [-1, 0]: 0 is harmless, -1 certainly toxic.

    A bag-of-words logistic regression, small and quick, and as blunt as that: it reacts to words, not to meaning,
    and is never quite at 0 (the empty text has -0.32).
    Source: Davidson et al. 2017, "Automated Hate Speech Detection and the Problem of Offensive Language"
    (arXiv:1703.04009); the weights come with the package ``hatesonar`` (``pip install ppl-align[toxicity]``).
    Raises ``InputError`` where it is not installed.
    """

    __name__ = "toxicity"
    upper: ClassVar[float] = 0.0
    lower: ClassVar[float] = -1.0

    def __call__(self, completions: Sequence[Any], **_: Any) -> list[float]:
        # The model's own lower-casing would follow the machine's locale (see _session), so it is done here.
        texts = np.array([plain_text(completion).lower() for completion in completions], dtype=object)
        _, probabilities = _session().run(None, {"text": texts})
        return [-(p[0] + p[1]) for p in probabilities]  # classes: hate speech, offensive language, neither


@lru_cache(maxsize=1)
def _session() -> Any:
    """HateSonar's packaged network in onnxruntime, loaded once per process.

    Not through ``hatesonar.Sonar``: that takes one text at a time, and needs the locale ``en_US.UTF-8``, which
    small machines and containers lack, for the lower-casing inside of the network. The locale C is everywhere, and
    as the tokens are ASCII words, nothing depends on it once the text is lower case.
    """
    folder = folder_of("hatesonar")
    if folder is None:
        raise InputError("the reward 'toxicity' needs the package hatesonar: pip install ppl-align[toxicity]")
    import onnx
    import onnxruntime  # type: ignore[import-untyped]

    network = onnx.load(folder / "model" / "model.onnx")
    for node in network.graph.node:
        if node.op_type == "StringNormalizer":
            node.attribute.append(onnx.helper.make_attribute("locale", "C"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the network is tiny, and the cores are busy with the language model
    return onnxruntime.InferenceSession(network.SerializeToString(), options, providers=["CPUExecutionProvider"])
