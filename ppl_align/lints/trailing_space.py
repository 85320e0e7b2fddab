"""A prompt that ends in a space, where the space belongs to the next token.

Most tokenizers write " Paris" as one token. After "The capital of France is " the network has read a space that hardly
ever stands alone in what it was trained on, and what comes next is a word without its space, which is rare.
"""

from __future__ import annotations

from collections.abc import Iterator

from ppl_align.core.errors import InputError
from ppl_align.lints.finding import Finding
from ppl_align.lints.prior_sample import PriorSample
from ppl_align.lm.base import LM, WholeIds
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.spelling import Spelling


def trailing_space(sample: PriorSample) -> Iterator[Finding]:
    """A line for each completion with such a prompt. What a chat template writes is what the network was trained on."""
    for site, prior in sample.particles.sources.items():
        count = _ending_in_space(prior)
        if count and _words_begin_with_a_space(prior.lm):
            which = "the prompt" if len(prior.prompts) == 1 else f"{count} of {len(prior.prompts)} prompts"
            yield Finding(
                "trailing space",
                "warning",
                f"{which} of {site!r} ends in a space, which belongs to the next token: the words that usually follow "
                f"become rare",
                "leave the space out",
            )


def _ending_in_space(prior: CompletionDistribution) -> int:
    written = [prompt for prompt in prior.prompts if not isinstance(prompt, WholeIds) and prompt]
    return sum(text.endswith(" ") for text in prior.lm.decode_batch(written)) if written else 0


def _words_begin_with_a_space(lm: LM) -> bool:
    try:
        pieces = Spelling.of(lm).within
    except InputError:
        return False
    return any(piece[:1] == b" " and piece[1:2].isalpha() for piece in pieces)
