"""``RewardPosterior``: a reward that was learned from comparisons, with what is not known about it.

    r(x) = w . phi(x),   P(better beats worse) = sigmoid(r(better) - r(worse)),   w ~ Normal(0, prior_scale^2 I)

One unit of r is one nat of log-odds: a text one unit above another is preferred with probability 0.73. Only differences
mean something; r is 0, and known exactly, for the average training text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.lm.completions import Completion
from ppl_align.preferences.belief import Belief, infer
from ppl_align.preferences.features import Features, Scale, evaluate_features
from ppl_align.preferences.pairs import FEWEST, Pairs
from ppl_align.preferences.report import Report, report
from ppl_align.preferences.uses import LearnedReward, learned


@dataclass(frozen=True, eq=False)
class RewardPosterior:
    """See :meth:`learn`. ``belief`` is about the weights of ``scale(features(texts))``, ``[n, k]``.

    ``method``, ``prior_scale``, ``num_pairs``  how it was learned     ``include_prompt``  features read prompt + text
    """

    features: Features
    scale: Scale
    belief: Belief
    method: str
    prior_scale: float
    num_pairs: int
    include_prompt: bool = False

    @classmethod
    def learn(
        cls,
        pairs: Pairs,
        features: Features,
        method: str = "laplace",
        *,
        prior_scale: float = 2.0,
        components: int | None = 32,
        include_prompt: bool = False,
        seed: int = 0,
    ) -> RewardPosterior:
        """Bayesian logistic regression on the differences of features.

        ``features``        ``f(texts) -> [n, d]``: ``Embedding()``, ``LMFeatures(lm)`` or a function of yours
        ``method``          ``"laplace"``, ``"svi"`` or ``"nuts"`` (:mod:`ppl_align.preferences.belief`)
        ``prior_scale``     standard deviation of r under the prior, for an average training text, reward units
        ``components``      keep at most so many principal components; None standardises all d features. A few hundred
                            pairs say something about some dozens of directions, and about the others the prior speaks
        ``include_prompt``  features of prompt + text instead of the text alone

        Raises ``InputError`` for fewer than two pairs, features of a wrong shape or settings out of range,
        ``RewardError`` for features that are not finite.
        """
        if not isinstance(pairs, Pairs):
            raise InputError(f"learn() takes Pairs(better=[...], worse=[...]), got {type(pairs).__name__}")
        if not callable(features) or isinstance(features, type):
            raise InputError(f"features are a function f(texts) -> [n, d] such as Embedding(), got {features!r}")
        if len(pairs) < FEWEST:
            raise InputError(f"a reward is learned from at least {FEWEST} preference pairs, got {len(pairs)}")
        if include_prompt and pairs.prompts is None:
            raise InputError("include_prompt=True, but the pairs have no prompts: Pairs(better, worse, prompts)")
        better, worse = _read(pairs, include_prompt)
        raw = evaluate_features(features, [*better, *worse])
        scale = Scale.fit(raw, components)
        phi = scale(raw)
        belief = infer(phi[: len(pairs)] - phi[len(pairs) :], prior_scale, method, seed)
        return cls(features, scale, belief, method, float(prior_scale), len(pairs), include_prompt)

    # -- what it says of a text -----------------------------------------------------------------------------------

    def phi(self, texts: Sequence[str]) -> Tensor:
        """Features on their common scale, ``[n, k]`` float64 (of prompt + text, where it reads prompts)."""
        raw = evaluate_features(self.features, texts)
        if len(texts) and raw.shape[1] != len(self.scale.centre):
            raise InputError(
                f"the reward was learned with {len(self.scale.centre)} features, these are {raw.shape[1]}: "
                "give the features it was learned with"
            )
        return self.scale(raw)

    def score(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of r, ``[n]`` each, reward units."""
        phi = self.phi(texts)
        variance = ((phi @ self.belief.covariance) * phi).sum(-1)
        return phi @ self.belief.mean, variance.clamp_min(0).sqrt()

    def gaps(self, pairs: Pairs) -> Tensor:
        """Features of the better minus those of the worse, ``[n, k]``."""
        better, worse = _read(pairs, self.include_prompt)
        return self.phi(better) - self.phi(worse)

    def report(self, pairs: Pairs) -> Report:
        """Accuracy, log-likelihood and calibration on pairs, which should be held out."""
        return report(self, pairs)

    # -- as a reward ----------------------------------------------------------------------------------------------

    def mean(self) -> LearnedReward:
        """r = E[w] . phi: its posterior has the largest expected ``E_q[r] - beta KL(q||p0)``, however unsure one is."""
        return LearnedReward(self, "mean")

    def pessimistic(self, k: float = 1.0) -> LearnedReward:
        """r = E[r] - k sd(r): k standard deviations below; with k=1 the belief gives 84% to a larger r.

        A bound in reward units, which says the same at every beta. The mirror of marginalising, ``E[r] - s^2 /
        (2 beta)``, grows without limit as beta falls, and would refuse everything that is not like the training texts.
        Source: Coste et al. 2023 (arXiv:2310.02743).
        """
        return LearnedReward(self, "pessimistic", k=k)

    def marginalised(self, beta: float) -> LearnedReward:
        """r = beta log E[exp(w . phi / beta)]: what ``theta ~ belief; reward(theta)`` amounts to. Warns of its bonus.

        ``beta`` is that of the ``reward(...)`` it is given to, divided by its weight; ``reward`` refuses another. For a
        Gaussian belief this is E[r] + s^2 / (2 beta): a bonus for what one is unsure about, whose size in this run is
        printed at its end (:class:`~ppl_align.preferences.uses.OptimismWarning`). See the claim ``reward-uncertainty``.
        """
        return LearnedReward(self, "marginalised", beta=beta)

    def reward(
        self, name: str, completion: Completion, beta: float | Tensor = 1.0, use: str = "mean", k: float = 1.0
    ) -> Tensor:
        """A factor of a program: ``reward(name, self.mean(), completion, beta)``, or another ``use`` of the belief.

        ``use``: ``"mean"``, ``"pessimistic"`` (``k`` standard deviations below), ``"marginalised"``, or ``"sampled"``:
        the weights are a latent ``"<name> weights"`` of the program, each particle has its own, and the posterior says
        which of them the tilted texts have come to believe in. Its texts are those of ``"marginalised"``.
        """
        return learned(self, name, completion, beta, use, k)

    # -- on disk --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write all but the network behind the features to an ``.npz`` file (arrays and JSON). Returns the path."""
        from ppl_align.preferences.storage import save

        return save(self, path)

    @classmethod
    def load(cls, path: str | Path, features: Features | None = None) -> RewardPosterior:
        """Read what :meth:`save` wrote. ``features`` of your own have to be given again; those of the library need not.

        Raises ``InputError`` for a file that is missing, broken or not ours."""
        from ppl_align.preferences.storage import load

        return load(path, features)

    def __repr__(self) -> str:
        k = len(self.belief.mean)
        return f"RewardPosterior({self.num_pairs} pairs, {k} weights, {self.method}, prior_scale={self.prior_scale:g})"


def _read(pairs: Pairs, include_prompt: bool) -> tuple[Sequence[str], Sequence[str]]:
    """What the features read of the better and of the worse."""
    if not include_prompt:
        return pairs.better, pairs.worse
    if pairs.prompts is None:
        raise InputError("this reward reads prompts, but the pairs have none: Pairs(better, worse, prompts)")
    better, worse = (
        [prompt + text for prompt, text in zip(pairs.prompts, texts, strict=True)]
        for texts in (pairs.better, pairs.worse)
    )
    return better, worse
