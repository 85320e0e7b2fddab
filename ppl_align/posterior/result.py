"""The result of every engine: weighted completions, log evidence, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ppl_align.core.cost import Cost
from ppl_align.lm.completions import Completion
from ppl_align.particles.weights import Weights
from ppl_align.posterior.kind import Kind
from ppl_align.posterior.naming import columns
from ppl_align.posterior.once import forget, once

if TYPE_CHECKING:
    from ppl_align.posterior.estimates import Estimate
    from ppl_align.posterior.frames import TextFrame
    from ppl_align.posterior.optimism import Optimism
    from ppl_align.program.provenance import Provenance


@dataclass(eq=False, repr=False)
class Posterior:
    """Weighted draws from one program, by one engine. R replicates of N particles; tensors live on the CPU.

    ``engine``, ``config``, ``seed``, ``model``, ``lm``   where it comes from (all JSON-able)
    ``log_weight``   [R, N] float64, unnormalised; ``log_evidence[r] = logsumexp(log_weight[r]) - log N``
    ``particles``    by site: a ``Completion`` of shape [R, N] (tokens [R, N, T]) or a tensor [R, N, ...]; inside of
                     plates their dimensions follow, as Pyro has them
    ``plates``       the names of these dimensions by site, leftmost first; None for one that is no plate's
    ``rewards``      by reward: raw r [R, N], NaN where it does not apply
    ``scales``       by reward: nats per unit, weight / beta, [R, N] (given as a number: the same for all; in a plate:
                     the mean over its elements); ``drawn_scales``: rewards for which it may differ from draw to draw
    ``targets``      the mean that a reward is to have, where the program has a ``moment_constraint``
    ``factors``      by factor or observed site: log-factor [R, N] (for a reward: scale * r)
    ``log_upper``    by the same names: the largest value the log-factor could take, [R, N] nats; +inf where not known
    ``log_prior``    by latent site: log p0 [R, N]
    ``log_proposal`` log q of everything drawn, [R, N]; None where nobody knows it (Enumeration, Rejection)
    ``history``      of engines that resample: ess [S, R] and resampled [S, R] each time weights were looked at, lineage
                     [R, N], which of the first particles each one descends from (and SMC: step [S], ancestors
                     [S, R, N], log_evidence_increment [S, R]); SVI: loss [K] and loss_error [K], its standard error;
                     Rejection: num_draws [R] and, by its pilot, acceptance and acceptance_se; chains: accepted and cut
                     [moves, chains] of all moves in their order, move_site, num_warmup; tempering, by level: exponent,
                     num_moves, move_accepted, move_correlation, and lasting; SMC(rejuvenate=): moved [S, R]; what
                     functions of the world answered: answers; where rewards declare bounds: log_lower, inf psi in nats
    ``kind``         what the particles are (:class:`~ppl_align.posterior.kind.Kind`), with all that follows from it
    ``steered``      drawn from a proposal: a guide of the run's own, or ``proposal=``. What is left is drawn from the
                     prior, or from the prior within hard constraints: neither can collapse
    ``environment``  the sites among ``particles`` at which the world answers
    ``optimism``     of a run that conditioned them: what it believes and what it would get
    ``provenance``   versions, language models (fingerprints), digests of program and arguments, seed, command; None in
                     files of older versions
    ``guide``        the trained guide (SVI), usable as another engine's ``proposal=``; not saved
    """

    engine: str
    log_weight: Tensor
    particles: Mapping[str, Completion | Tensor]
    rewards: Mapping[str, Tensor] = field(default_factory=dict)
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    targets: Mapping[str, float] = field(default_factory=dict)
    factors: Mapping[str, Tensor] = field(default_factory=dict)
    log_prior: Mapping[str, Tensor] = field(default_factory=dict)
    log_proposal: Tensor | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    model: str = ""
    lm: str = ""
    cost: Cost = field(default_factory=Cost)
    history: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = Kind.WEIGHTED
    steered: bool = False
    environment: tuple[str, ...] = ()
    optimism: Optimism | None = None
    provenance: Provenance | None = None
    guide: Any = None
    log_upper: Mapping[str, Tensor] = field(default_factory=dict)
    drawn_scales: tuple[str, ...] = ()
    plates: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scales = {name: _each(scale, self.log_weight.shape) for name, scale in self.scales.items()}

    def __setattr__(self, name: str, value: Any) -> None:
        """A run is finished when it is constructed. Who changes it all the same is told everything anew."""
        forget(self)
        object.__setattr__(self, name, Kind(value) if name == "kind" else value)

    def __getstate__(self) -> dict[str, Any]:
        forget(self)
        return self.__dict__

    @property
    def exact(self) -> bool:
        """Is it the whole support, weighed exactly?"""
        return self.kind is Kind.ENUMERATION

    @property
    def independent(self) -> bool:
        """Are the particles of a replicate independent draws?"""
        return self.kind.independent

    @property
    def draws_are_exact(self) -> bool:
        """Are they independent draws of the posterior itself?"""
        return self.kind is Kind.EXACT_DRAWS

    @property
    def target(self) -> Literal["posterior", "decision"]:
        """``"decision"``: draws of a policy that was chosen for its J = E[r] - beta KL in a world left as it is."""
        return "posterior" if self.kind.of_posterior else "decision"

    # -- what the engine recorded on the way; None where it does not ---------------------------------------------------

    def _recorded(self, name: str) -> Tensor | None:
        found = self.history.get(name)
        return None if found is None else torch.as_tensor(found)

    @property
    def losses(self) -> Tensor | None:
        """-ELBO of each step of a guide that the run has trained, [K]."""
        return self._recorded("loss")

    @property
    def loss_errors(self) -> Tensor | None:
        """Their standard errors, [K]."""
        return self._recorded("loss_error")

    @property
    def ess_by_step(self) -> Tensor | None:
        """Weight ESS [S, R] each time the weights were looked at."""
        return self._recorded("ess")

    @property
    def resampled(self) -> Tensor | None:
        """Was the replicate resampled then? Bool [S, R]."""
        return self._recorded("resampled")

    @property
    def lineage(self) -> Tensor | None:
        """Which of the first particles each one descends from, [R, N]."""
        return self._recorded("lineage")

    @property
    def tries(self) -> Tensor | None:
        """Draws that it took to accept the particles of each replicate, [R]."""
        return self._recorded("num_draws")

    @property
    def log_lower(self) -> float | None:
        """The smallest log-weight of what is not rejected, nats, where rewards declare bounds."""
        return self.history.get("log_lower")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the run noticed about its program, one line each (``ppl-align check`` looks for more)."""
        return tuple(self.history.get("warnings", ()))

    @property
    @once
    def importance_weights(self) -> Weights:
        """``log_weight`` with what is read off it: ESS, entropy, k-hat, by replicate or ``pooled``."""
        return Weights(self.log_weight)

    @property
    def log_evidence(self) -> Tensor:
        """log Zhat of each replicate, [R] nats; E[Zhat] = Z. NaN for a policy or a chain, which estimate no Z."""
        if not self.kind.has_evidence:
            return torch.full_like(self.log_weight[:, 0], torch.nan)
        return self.importance_weights.log_mean

    @property
    def weights(self) -> Tensor:
        """Normalised over all replicates and particles, [R, N], sums to 1.

        Replicate r counts in proportion to Zhat_r, which is what a softmax of the *unnormalised* weights does."""
        return self.importance_weights.pooled.normalised.reshape(self.log_weight.shape)

    @property
    def completions(self) -> dict[str, Completion]:
        """The completion sites among ``particles``."""
        return {name: value for name, value in self.particles.items() if isinstance(value, Completion)}

    @property
    def latents(self) -> dict[str, Tensor]:
        """The other latents among ``particles``, [R, N, ...]."""
        return {name: value for name, value in self.particles.items() if not isinstance(value, Completion)}

    @property
    def tools(self) -> list[str]:
        """Functions of the world that answered without any randomness: no sites, but worth reading."""
        return [name for name in self.history.get("answers", {}) if name not in self.particles]

    @property
    def columns(self) -> dict[str, str]:
        """By site (rewards, factors, observations, latents, completions, tools): its column in tables and files.

        Its own name, except where that is a word of ours: a reward called ``probability`` is the column
        ``probability_``."""
        return columns((*self.particles, *self.rewards, *self.factors, *self.log_prior, *self.tools))

    def mean(self, what: str | Callable[[Any], Any], of: str | None = None) -> Estimate:
        """Posterior expectation and its standard error: ``value, error = posterior.mean("sentiment")``.

        ``mean("sentiment")``     a named number: a reward, a scalar latent, ``"log_prior"`` (nats, all latents
                                  together), ``"log_likelihood"`` (nats, all factors together), ``"length"``
                                  (tokens; ``"length(site)"`` of one of several completions); a site of the
                                  program that has one of these names keeps it
        ``mean(f)``               ``f(particles) -> [R, N]`` tensor, with ``particles`` the mapping by site
        ``mean(f, of="review")``  ``f`` of one element of that site: of one *text* (``str``) for a completion,
                                  ``mean(lambda text: "great" in text, of="review")``, else of one tensor

        Replicates are pooled in proportion to Zhat_r; where f is NaN (a reward that does not apply) the
        expectation is over the rest. The error is 0 for an exact posterior, the delta method for independent
        draws (Owen, *Monte Carlo theory*, eq. 9.9), a jackknife over replicates for SMC, the MCSE by the
        autocorrelation for Markov chains. It is NaN below four replicates of SMC, and where fewer than two
        effective draws leave nothing to estimate it from.

        Raises ``InputError`` for an unknown name or a function that returns another shape.
        """
        from ppl_align.posterior.estimates import mean

        return mean(self, what, of)

    def table(self, by: Literal["ids", "text"] = "ids") -> TextFrame:
        """Distinct draws of positive probability (completions and latents jointly), the most probable first.

        A pandas frame with ``probability``, ``log_prior`` [nats], each reward [reward units], latents, and the
        text of each completion. Distinct means distinct token ids; ``by="text"`` adds up the ids that spell the
        same text (there ``log_prior`` is that of the ids that were visited, rewards are averaged by weight).
        """
        from ppl_align.posterior.table import table

        return table(self, by)

    def draws(self, n: int, seed: int = 0) -> TextFrame:
        """``n`` equal-weight draws from the posterior: a pandas frame of texts, latents, rewards and ``log_prior``.

        Pooled over replicates, systematic resampling, shuffled; repeats are to be expected where few particles
        carry the weight. A local generator: the global random stream is untouched, same seed same draws.
        """
        from ppl_align.posterior.table import draws

        return draws(self, n, seed)

    def take(self, index: Tensor, **fields: Any) -> Posterior:
        """The particles at ``index [R', N']`` (flat over replicates and particles), as draws of equal weight Zhat.

        What they are draws of is up to how the index was drawn; ``fields`` overrides fields of the result."""
        from ppl_align.posterior.selection import take

        return take(self, index, **fields)

    def to_arviz(self) -> Any:
        """For ArviZ: ``InferenceData`` (ArviZ 0.x) or ``DataTree`` (1.x). Chain = replicate, draw = equal-weight draws.

        Raw weighted particles are in the group ``weighted``, texts in ``completions``, so that
        ``az.summary(..., kind="stats")`` and the plots see numbers only. Do not use the ESS columns of
        ``az.summary``: resampled draws carry no order that an autocorrelation could be read from. Markov chains are
        there as they are, in their order, and all of ArviZ holds for them.
        """
        from ppl_align.core.arviz_adapter import to_arviz
        from ppl_align.posterior.groups import to_groups

        return to_arviz(to_groups(self))

    def save(self, path: str | Path) -> Path:
        """Write everything but the guide and the LM to a netCDF file, which ArviZ opens too. Returns the path.

        Written beside its place and renamed, so that an interrupted save leaves no broken file behind."""
        from ppl_align.posterior.storage import save

        return save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Posterior:
        """Read what :meth:`save` wrote. Raises ``InputError`` for a file that is missing, broken or not ours."""
        from ppl_align.posterior.storage import load

        return load(path)

    def summary(self) -> str:
        """One paragraph: what it is, what it says, whether to believe it, what it cost."""
        from ppl_align.posterior.paragraph import paragraph

        return paragraph(self)

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        from ppl_align.report.notebook import posterior_html

        return posterior_html(self)


def _each(scale: float | Tensor, shape: torch.Size) -> Tensor:
    """A number as a tensor with one value for each particle."""
    value = torch.as_tensor(scale, dtype=torch.float64)
    return value if value.dim() else value.expand(shape).clone()
