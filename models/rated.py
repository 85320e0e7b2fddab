"""A taste inferred from thumbs and pairs, a review to it.

Labels, preferences and a completion in one program: the taste is a latent, and all three speak about it.
"""

import pyro
import torch
from pyro.distributions import Normal

from ppl_align import CausalLM, completion, label, prefers
from ppl_align.rewards import Vader
from ppl_align.text import Texts

lm = CausalLM("smollm2-135m")

THUMBS = {"A dull, empty mess.": 1, "I hated every slow minute of this awful story.": 1, "Lovely, funny, warm.": 0}
PAIRS = [("Terrible, stupid and boring.", "A great joy."), ("Awful.", "Fine and pleasant, with a good cast.")]


def _features(texts):
    """Praise and length of each text, both about -1 to 1: [..., 2]."""
    praise, words = texts.map(lambda text: Vader()([text])[0]), texts.map(lambda text: len(text.split()))
    return torch.stack([praise, words / 10 - 1], -1).double()


def rated(prompt: str = "The movie was", beta: float = 0.3, max_new_tokens: int = 20):
    """p(taste, review | what was said before, and a thumb up for this review).

    The posterior of "taste" says what was learned: somebody who wants to read malice.
    """
    taste = pyro.sample("taste", Normal(torch.zeros(2).double(), 1.0).to_event(1))
    score = lambda texts: (_features(texts) * taste[..., None, :]).sum(-1)  # noqa: E731
    label("thumbs", score(Texts(list(THUMBS))), list(THUMBS.values()), beta)
    better, worse = zip(*PAIRS, strict=True)
    prefers("comparisons", score(Texts(better)), score(Texts(worse)), beta)
    review = completion("review", lm, prompt, max_new_tokens=max_new_tokens)
    label("likes this one", (_features(review.text) * taste).sum(-1), 1, beta)
    return review
