"""What a run that conditions believes of the world, beside what its agent would get there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ppl_align.posterior.estimates import Estimate

ROUNDING = 1e-6
"""Nats that are none: probabilities are given to seven digits."""


@dataclass(frozen=True)
class Optimism:
    """Conditioning on a reward conditions the luck of the world as well; this is by how much.

    ``sites``     where the world answers
    ``tilt``      nats: sum over these sites of E_p*[KL(p*(answer | history) || p(answer | history))]
    ``how``       "exact", or "at least": then ``tilt`` bounds it from below, in expectation
    ``believes``  E_p*[r] by reward; ``gets``: E[r] when the agent follows its conditionals p*(action | history) and the
                  world answers by its own law; -inf where a reward of -inf is met, NaN where it is not known. Of a
                  sampled run both are estimates from its draws; what the agent says after the world has answered adds
                  no bias to ``gets`` (:mod:`ppl_align.engines.environment.coupling`)
    ``value``     J of that agent, nats: E[log-likelihood] - KL(agent || p0); ``best``: the largest J of any agent that
                  sees all answers of the world, whose value ``SVI`` and ``Nested`` look for. Both are known to
                  ``Exact`` only, and -inf where the world can leave nothing to say that is not forbidden
    """

    sites: tuple[str, ...]
    tilt: Estimate
    how: Literal["exact", "at least"]
    believes: Mapping[str, Estimate]
    gets: Mapping[str, Estimate]
    value: float | None = None
    best: float | None = None

    def __str__(self) -> str:
        bound = "" if self.how == "exact" else "at least "
        parts = [
            f"it believes E[{name}] = {_short(self.believes[name])}, {_of(got)}" for name, got in self.gets.items()
        ]
        where = ", ".join(map(repr, self.sites))
        positive = self.tilt.value if self.tilt.value > ROUNDING else 0.0  # a divergence, whatever a bound of it may be
        tilt = self.tilt._replace(value=positive)
        return f"it tilts the world at {where} by {bound}{_short(tilt)} nats: " + "; ".join(parts)

    def to_json(self) -> str:
        """With degrees of freedom and skewness, so that what has no error bar has none when it is read again."""
        estimates = {"tilt": _parts(self.tilt)} | {
            side: {name: _parts(estimate) for name, estimate in getattr(self, side).items()}
            for side in ("believes", "gets")
        }
        return json.dumps(asdict(self) | estimates)

    @classmethod
    def from_json(cls, text: str) -> Optimism:
        fields: dict[str, Any] = json.loads(text)
        fields["sites"] = tuple(fields["sites"])
        fields["tilt"] = Estimate(*fields["tilt"])
        for side in ("believes", "gets"):
            fields[side] = {name: Estimate(*estimate) for name, estimate in fields[side].items()}
        return cls(**fields)


def _parts(estimate: Estimate) -> list[float]:
    return [*estimate, estimate.dof, estimate.skewness]


def _of(got: Estimate) -> str:
    return "what its choices get is not known" if math.isnan(got.value) else f"its choices get {_short(got)}"


def _short(estimate: Estimate) -> str:
    return f"{estimate.value:.3g}" if estimate.standard_error == 0 else str(estimate)
