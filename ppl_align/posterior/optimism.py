"""The environment tilt of a run that conditions; its posterior means, beside the means when its agent is executed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ppl_align.core.deprecation import deprecated
from ppl_align.posterior.estimates import Estimate

ROUNDING = 1e-6
"""Nats that are none: probabilities are given to seven digits."""


@dataclass(frozen=True)
class Optimism:
    """Conditioning on a reward conditions the world as well (Levine 2018, arXiv:1805.00909); this is by how much.

    ``sites``     where the world answers
    ``environment_tilt``  nats: sum over these sites of E_p*[KL(p*(answer | history) || p(answer | history))]
    ``how``       "exact", or "at least": then the tilt is bounded from below, in expectation
    ``posterior_mean``    E_p*[r] by reward
    ``executed_mean``     E[r] when the agent follows its conditionals p*(action | history) and the world answers by its
                  own law; -inf where a reward of -inf is met, NaN where it is not known. Of a sampled run both are
                  estimates from its draws; what the agent says after the world has answered adds no bias to the second
                  (:mod:`ppl_align.engines.environment.coupling`)
    ``value``     J of that agent, nats: E[log-likelihood] - KL(agent || p0); ``best``: the largest J of any agent that
                  sees all answers of the world, whose value ``SVI`` and ``TreePlanner`` look for. Both are known to
                  ``Enumeration`` only, and -inf where the world can leave nothing to say that is not forbidden
    """

    sites: tuple[str, ...]
    environment_tilt: Estimate
    how: Literal["exact", "at least"]
    posterior_mean: Mapping[str, Estimate]
    executed_mean: Mapping[str, Estimate]
    value: float | None = None
    best: float | None = None

    def __getattr__(self, name: str) -> Any:
        if name not in _FIELDS:
            raise AttributeError(f"Optimism has no attribute {name!r}")
        deprecated(f"Optimism.{name}", _FIELDS[name])
        return getattr(self, _FIELDS[name])

    def __str__(self) -> str:
        bound = "" if self.how == "exact" else "at least "
        parts = [
            f"E[{name}] = {_short(self.posterior_mean[name])} by the posterior, {_of(got)}"
            for name, got in self.executed_mean.items()
        ]
        where = ", ".join(map(repr, self.sites))
        tilt = self.environment_tilt
        positive = tilt.value if tilt.value > ROUNDING else 0.0  # a divergence, whatever a bound of it may be
        return f"environment tilt at {where} {bound}{_short(tilt._replace(value=positive))} nats: " + "; ".join(parts)

    def to_json(self) -> str:
        """With degrees of freedom and skewness, so that what has no error bar has none when it is read again."""
        fields = {name: getattr(self, name) for name in ("sites", "how", "value", "best")}
        for old, new in _FIELDS.items():  # files keep the names that they have had
            held = getattr(self, new)
            fields[old] = {k: _parts(v) for k, v in held.items()} if isinstance(held, Mapping) else _parts(held)
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Optimism:
        fields: dict[str, Any] = json.loads(text)
        fields["sites"] = tuple(fields["sites"])
        for old, new in _FIELDS.items():
            held = fields.pop(old)
            parts = {k: Estimate(*v) for k, v in held.items()} if isinstance(held, dict) else Estimate(*held)
            fields[new] = parts
        return cls(**fields)


_FIELDS = {"tilt": "environment_tilt", "believes": "posterior_mean", "gets": "executed_mean"}
"""As they are called in files, and were called until 0.3.0."""


def _parts(estimate: Estimate) -> list[float]:
    return [*estimate, estimate.dof, estimate.skewness]


def _of(got: Estimate) -> str:
    return "not known when executed" if math.isnan(got.value) else f"{_short(got)} when executed"


def _short(estimate: Estimate) -> str:
    return f"{estimate.value:.3g}" if estimate.standard_error == 0 else str(estimate)
