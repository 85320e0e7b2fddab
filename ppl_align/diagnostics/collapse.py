"""A guide that has collapsed: it writes next to nothing, and its weights, being all alike, say that all is well.

What gives it away, without another engine beside it:

* every draw is the same;
* its loss ended above where it began: training has led away from the posterior;
* its log Z lies below what log Z is at least. That is known from three sides: the bounds that rewards declare,
  log Z >= inf psi; draws of the prior, log Z >= E_p0[psi] (Jensen); and the first step of training, whose ELBO, like
  that of any guide, is a lower bound.

All of this holds for a guide as another engine's proposal as well, except that its training is not seen there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from ppl_align.core.estimate import critical, of_draws, standard_error
from ppl_align.lm.completions import tensor_of
from ppl_align.posterior.estimates import Estimate
from ppl_align.posterior.once import once
from ppl_align.posterior.prior import drew_from_prior, log_likelihood, log_prior
from ppl_align.posterior.result import Posterior
from ppl_align.posterior.run_summary import summary_of
from ppl_align.posterior.table import identity, site_texts

ERRORS = 4.0  # standard errors: the first step of training has few draws to tell its own
NEGLIGIBLE = 0.05  # nats
CERTAIN = 1e-3  # nats: what the prior writes every time may well be all that there is
ALONE = 0.9  # of the posterior, on one text
LAST = 5  # the last fifth of the training is where it ended
SHOWN = 40  # characters of a text


def collapsed(run: Posterior, runs: Mapping[str, Posterior]) -> list[str]:
    """What shows that draws come from a collapsed guide, one line each, gravest first; empty for others.

    ``runs``: all of the comparison, for those among them that draw from the prior."""
    if run.exact or run.draws_are_exact or run.target == "decision":
        return []
    found = [one_draw(run, runs), below_a_bound(run, runs), worse_than_it_began(run)]
    return [line for line in found if line is not None]


def one_draw(run: Posterior, runs: Mapping[str, Posterior]) -> str | None:
    """All draws of a proposal are the same, the prior has others, and so has the posterior, for all that is known.

    It may be that only one text is worth writing: then another run, which found it on its own, has it almost alone."""
    total = run.log_weight.numel()
    if total < 2 or not run.independent or not run.steered or len(set(identity(run).tolist())) > 1:
        return None
    if float(log_prior(run).reshape(-1)[0]) > -CERTAIN:
        return None
    if any(_weight_of_first(other, run) > ALONE for other in runs.values() if other.engine != run.engine):
        return None
    said = [site_texts(run, name)[0] for name in run.completions]
    text = f" ({_short(said[0])!r})" if said else ""
    return f"all {total:,} of its draws are the same{text}: what it draws from has collapsed"


def _weight_of_first(other: Posterior, run: Posterior) -> float:
    """The weight that another run gives to the first draw of this one."""
    if other.target == "decision":
        return 0.0
    weight = other.weights.reshape(-1)
    same = torch.ones(len(weight), dtype=torch.bool)
    for name, value in run.particles.items():
        mine, theirs = tensor_of(value), tensor_of(other.particles[name])
        first = mine.reshape(run.log_weight.numel(), -1)[0]
        same &= (theirs.reshape(len(weight), -1) == first).all(-1)
    return float(weight[same].sum())


def worse_than_it_began(run: Posterior) -> str | None:
    """The loss of a guide ends significantly above that of its first step."""
    began = first_elbo(run)
    if began is None or run.losses is None:
        return None
    loss = run.losses.double()
    last = loss[-max(len(loss) // LAST, 1) :]
    spread = standard_error(last) if len(last) > 1 else 0.0
    end = Estimate(-float(last.mean()), spread)
    if not _below(end, began):
        return None
    return (
        f"its loss ends at {-end.value:.3g}, above where it began ({-began.value:.3g}): training has made it worse; "
        "lower learning_rate"
    )


def first_elbo(run: Posterior) -> Estimate | None:
    """The ELBO of a guide before its first step, nats; None where it is not known."""
    loss, error = run.losses, run.loss_errors
    if loss is None or error is None or len(loss) < 2 or len(error) != len(loss):
        return None
    return Estimate(-float(loss[0]), float(error[0]))


def below_a_bound(run: Posterior, runs: Mapping[str, Posterior]) -> str | None:
    """log Z lies significantly below something that it cannot lie below: the highest of these."""
    own = summary_of(run).log_z
    if not math.isfinite(own.value):
        return None
    own = Estimate(own.value, own.standard_error if math.isfinite(own.standard_error) else 1.0)
    broken = [(bound, why) for bound, why in _bounds(run, runs) if _below(own, bound)]
    if not broken:
        return None
    bound, why = max(broken, key=lambda pair: pair[0].value)
    return f"its log Z is {own.value:.3g}, and {why} it is {bound.value:.3g} or more: it misses most of the posterior"


def _bounds(run: Posterior, runs: Mapping[str, Posterior]) -> Iterator[tuple[Estimate, str]]:
    declared = run.log_lower
    if declared is not None and not any(bool(log_likelihood(one).isneginf().any()) for one in runs.values()):
        yield Estimate(float(declared), 0.0), "by the bounds of its rewards"
    for name, other in runs.items():
        if other is not run and other.target == "posterior" and drew_from_prior(other):
            jensen = mean_log_likelihood(other)
            if jensen is not None:
                yield jensen, f"by {name}'s draws of the prior (Jensen)"
    began = first_elbo(run)
    if began is not None:
        yield began, "by the first step of its training (any ELBO is a lower bound)"


@once
def mean_log_likelihood(run: Posterior) -> Estimate | None:
    """E_p0[psi] of draws of the prior, nats; None where one is rejected: the mean is -inf, and bounds nothing."""
    psi = log_likelihood(run).reshape(-1)
    if len(psi) < 2 or not bool(psi.isfinite().all()):
        return None
    return of_draws(psi)


def _below(value: Estimate, bound: Estimate) -> bool:
    gap = bound.value - value.value
    return gap > max(critical(value, bound, errors=ERRORS), NEGLIGIBLE)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
