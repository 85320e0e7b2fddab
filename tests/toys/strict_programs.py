"""Programs with a latent strictness: ``reward(weight=, beta=)`` with one value for each particle."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from ppl_align import completion, reward
from ppl_align.testing.programs import EOS, FIXED, STEP, count_score

WEIGHTS = torch.tensor([0.3, 0.9, 1.4])
SIGNED = torch.tensor([-0.6, 0.0, 0.8], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.3, 0.2])


def weight_of_a_latent():
    z = pyro.sample("z", dist.Categorical(SHARES))
    x = completion("x", FIXED, [0], max_new_tokens=3)
    reward("r", count_score, x.tokens, weight=WEIGHTS[z], beta=0.8, upper=3 * STEP)


def beta_of_a_latent():
    z = pyro.sample("z", dist.Categorical(SHARES))
    beta = pyro.deterministic("beta", 1 / WEIGHTS[z])
    x = completion("x", EOS, [0], max_new_tokens=3)
    reward("r", lambda t: 0.8 * (t == 1).sum(-1), x.tokens, beta=beta, upper=2.4)


def signs_and_none():
    """A weight that rewards, is silent or punishes; a reward that does not always apply."""
    z = pyro.sample("z", dist.Categorical(SHARES))
    x = completion("x", FIXED, [1], max_new_tokens=2)
    reward("ones", lambda texts: [None if t[0] == "2" else t.count("1") - 0.5 for t in texts], x, weight=SIGNED[z])
    reward("r", count_score, x.tokens, weight=torch.tensor(0.7), beta=torch.tensor([1.0]))


def weight_after_the_text():
    """How strict the judge is depends on the text."""
    x = completion("x", EOS, [0], max_new_tokens=2)
    z = pyro.sample("z", dist.Bernoulli(torch.sigmoid((x.tokens == 1).sum(-1).double())))
    reward("r", count_score, x.tokens, weight=0.2 + z, upper=2 * STEP)


def a_critic_for_each_text():
    with pyro.plate("critics", 2):
        z = pyro.sample("z", dist.Categorical(SHARES))
        x = completion("x", FIXED, [[0], [1]], max_new_tokens=2)
        reward("r", count_score, x.tokens, weight=WEIGHTS[z], upper=2 * STEP)


def critics_of_one_text():
    """The text is outside of the plate, the critics inside: three likelihoods of one text."""
    x = completion("x", FIXED, [0], max_new_tokens=3)
    with pyro.plate("critics", 2):
        z = pyro.sample("z", dist.Categorical(SHARES))
        reward("r", count_score, x.tokens, weight=0.4 * WEIGHTS[z], upper=3 * STEP)


def rejects():
    z = pyro.sample("z", dist.Categorical(SHARES))
    x = completion("x", FIXED, [0], max_new_tokens=2)
    reward("has a 2", lambda t: torch.where((t == 2).any(-1), 0.5, -torch.inf), x.tokens, weight=z.double(), upper=0.5)


OWN = (
    weight_of_a_latent,
    beta_of_a_latent,
    signs_and_none,
    weight_after_the_text,
    a_critic_for_each_text,
    critics_of_one_text,
)
PROGRAMS = {program.__name__: program for program in OWN}
