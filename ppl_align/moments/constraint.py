"""``moment_constraint``: a constraint on averages, written into a Pyro program.

Among all distributions q with ``E_q[phi_k] = mu_k``, the one nearest to p in KL(q||p) is

    p_lambda(x) = p(x) exp(sum_k lambda_k (phi_k(x) - mu_k)) / Z(lambda),    E_{p_lambda}[phi_k] = mu_k

where p is what the program says *without* the constraint: the prior times all other factors. So the constraint is a
reward of weight lambda, and lambda is not chosen but solved for. As phi counts from its target, the log-evidence falls
by KL(p_lambda||p), and a text that a feature does not apply to (``None``) is left alone: the constraint is then on the
others, E[phi | it applies] = mu. (Khalifa et al. 2021, arXiv:2012.11635.)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ppl_align.core.errors import InputError, RewardError
from ppl_align.core.pyro_stack import apart
from ppl_align.core.runs import nested_run, on_run_end
from ppl_align.core.seeds import mix
from ppl_align.core.text import Texts
from ppl_align.core.validation import at_least
from ppl_align.engines.base import Engine
from ppl_align.engines.importance import ImportanceSampling
from ppl_align.lm.completions import Completion
from ppl_align.moments.fit import MomentFit, fit
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind
from ppl_align.program.compiled import running
from ppl_align.program.notes import Notes, factor
from ppl_align.program.sketch import sketching
from ppl_align.rewards.bounds import bounds_of
from ppl_align.rewards.cache import content, identity
from ppl_align.rewards.calling import as_reward, evaluate

What = Completion | Texts | Tensor | str


def moment_constraint(
    features: Mapping[str, Any], targets: Mapping[str, float], *, num_pool: int = 512, seed: int = 0
) -> MomentConstraint:
    """A constraint on averages: ``half = moment_constraint({"woman": says_she}, {"woman": 0.5})``, called in a program.

    ``features``  by name: rewards of any kind (:func:`ppl_align.reward`), one finite number for each text, or ``None``
                  where the feature does not apply (with attributes ``upper`` and ``lower``, for ``Rejection``)
    ``targets``   by the same names: the mean that is wanted, in units of the feature
    ``num_pool``  draws that it fits itself on when an engine first meets it; ``seed`` of their random stream

    Source: Khalifa, Elsahar & Dymetman 2021 (arXiv:2012.11635). Raises ``InputError`` for names that do not match.
    """
    return MomentConstraint(features, targets, num_pool=num_pool, seed=seed)


class MomentConstraint:
    """``half(completion)`` in a program adds one factor for each feature, ``exp(lambda_k (phi_k - mu_k))``.

    Lambda belongs to a program with its arguments (another prompt, another lambda). It is fitted when an engine first
    runs that program: the program without the constraint is sampled ``num_pool`` times, by importance sampling with a
    random stream of its own, and that engine's bill contains it. :meth:`fit` does it beforehand, and better. Outside of
    this library's engines (plain Pyro) nobody knows which program runs: there it is the lambda used last. A run whose
    lambda rests on few draws has that among its warnings; the run that draws the pool says nothing for itself.

    ``fitted``   the :class:`~ppl_align.moments.MomentFit` used last, None before
    """

    def __init__(
        self, features: Mapping[str, Any], targets: Mapping[str, float], *, num_pool: int = 512, seed: int = 0
    ) -> None:
        at_least(2, num_pool=num_pool)
        at_least(0, seed=seed)
        if not features or set(features) != set(targets):
            odd = sorted(map(str, set(features) ^ set(targets)))
            raise InputError(
                "moment_constraint: features and targets have the same names, one mean for each feature"
                + (f"; only one of them has {', '.join(map(repr, odd))}" if odd else ", and there are none")
            )
        for name, target in targets.items():
            number = isinstance(target, (int, float)) and not isinstance(target, bool)
            if not number or not math.isfinite(target):
                raise InputError(f"moment_constraint: the target of {name!r} must be a finite number, got {target!r}")
        self.features = {name: as_reward(name, fn) for name, fn in features.items()}
        self.bounds = {name: bounds_of(name, fn, None, None) for name, fn in self.features.items()}
        self.targets = {name: float(targets[name]) for name in features}
        self.num_pool, self.seed = num_pool, seed
        self.fitted: MomentFit | None = None
        self._fits: dict[Hashable, MomentFit] = {}
        self._anywhere: MomentFit | None = None  # from a pool that was brought along: for any program
        self._off = False

    # -- in a program -------------------------------------------------------------------------------------------

    def __call__(self, completion: What) -> dict[str, Tensor]:
        """Add the factors; returns phi by feature, ``[...]`` (NaN where it does not apply).

        Raises ``InputError`` for targets that cannot be met, or inside of a plate of the program."""
        if sketching():
            return {name: self._write(name, torch.zeros(_batch(completion)), 0.0, completion) for name in self.features}
        weights = self._weights() if am_i_wrapped() else dict.fromkeys(self.features, 0.0)
        return {
            name: self._write(name, self._ask(name, completion), weights[name], completion) for name in self.features
        }

    def _write(self, name: str, phi: Tensor, weight: float, completion: What) -> Tensor:
        target = self.targets[name]
        log_upper = self.bounds[name].log_upper(weight)
        notes = Notes(
            reward=phi,
            scale=weight,
            target=target,
            fn=self.features[name],
            log_upper=None if log_upper is None else max(0.0, log_upper - weight * target),
        )
        depends_on = completion.tokens if isinstance(completion, Completion) else completion
        factor(name, weight * (phi.double() - target).nan_to_num(0.0), depends_on, notes)
        return phi

    def _ask(self, name: str, completion: What) -> Tensor:
        if any(size != 1 for size in _batch(completion)[1:]):
            raise InputError(
                f"moment constraint {name!r}: it is about one completion of the program, and this one is inside of a "
                "plate; put the constraint on each completion, or the feature into one that reads all of them"
            )
        phi = evaluate(name, self.features[name], completion)
        if bool(phi.isinf().any()):
            raise RewardError(f"feature {name!r} is -inf: a mean needs finite values (or None: does not apply)")
        self.bounds[name].check(name, phi, 0.0, completion)
        return phi

    def _weights(self) -> dict[str, float]:
        """lambda, where the constraint stands now."""
        if self._off:
            return dict.fromkeys(self.features, 0.0)
        program = running()
        if program is not None:
            key = _key(program.model, program.args, program.kwargs)
            if key not in self._fits and self._anywhere is None:
                with apart(), torch.enable_grad():
                    self.fit(program.model, *program.args, **program.kwargs)
            self.fitted = self._fits.get(key, self._anywhere)
        if self.fitted is None:
            raise InputError(f"moment constraint on {', '.join(self.features)}: fit it first, constraint.fit(model)")
        few = self.fitted.few_draws
        if few is not None:  # whichever run uses it
            on_run_end(("moment constraint", id(self)), lambda: lambda: few)
        return {name: estimate.value for name, estimate in self.fitted.weights.items()}

    # -- fitting ------------------------------------------------------------------------------------------------

    def fit(
        self,
        model: Callable[..., Any] | None = None,
        *args: Any,
        engine: Engine | None = None,
        pool: Posterior | None = None,
        **kwargs: Any,
    ) -> MomentConstraint:
        """Solve for lambda; ``print`` the result to see lambda, its errors, what was reached and at what price.

        ``model, *args, **kwargs``  the program: lambda will be used for it with these arguments, and for nothing else
        ``engine``  draws the pool from the program without the constraint (default: ``num_pool`` draws by importance
                    sampling); ``Enumeration()`` gives the exact lambda of a toy
        ``pool``    or a posterior of the program, by any engine, whose weights count; the factors of this constraint,
                    if it was in the program, are taken back first, so that a fit can be repeated from nearby. Without
                    a ``model``, lambda is used wherever the constraint stands

        Returns itself. Raises ``InputError`` for targets that the pool cannot meet.
        """
        if (model is None) == (pool is None) and pool is None:
            raise InputError(
                "fit() takes a model (a Pyro program that the constraint stands in), or pool=, a posterior"
            )
        if pool is not None and engine is not None:
            raise InputError("fit(): give pool= (draws that are there) or engine= (to draw them), not both")
        noticed: tuple[str, ...] = ()
        if pool is None:
            assert model is not None
            chosen = engine or ImportanceSampling(num_particles=self.num_pool, num_replicates=1)
            with self._switched_off(), nested_run():
                pool = chosen.run(model, *args, seed=mix(self.seed, "moments"), **kwargs)
            missing = [name for name in self.features if name not in pool.rewards]
            if missing:
                raise InputError(f"fit(): {pool.model} does not use this constraint ({missing[0]!r} is not in it)")
            noticed = pool.warnings
        self.fitted = replace(fit(self._base(pool), self.targets), noticed=noticed)
        if model is None:
            self._anywhere = self.fitted
            self._fits.clear()
        else:
            self._fits[_key(model, args, kwargs)] = self.fitted
        return self

    def _base(self, pool: Posterior) -> Posterior:
        """The pool, weighted for the program without this constraint, with the features among its rewards."""
        log_weight, rewards = pool.log_weight, dict(pool.rewards)
        for name in self.features:
            if name in pool.factors:
                log_weight = log_weight - pool.factors[name].double()
            if name not in rewards:
                if len(pool.completions) != 1:
                    sites = ", ".join(pool.completions) or "none"
                    raise InputError(
                        f"fit(pool=): the pool has no {name!r} among its rewards, and not one completion to read it "
                        f"from ({sites}): draw it from a program that calls the constraint"
                    )
                (site,) = pool.completions.values()
                rewards[name] = self._ask(name, site.reshape(-1)).reshape(site.shape)
        kind = Kind.WEIGHTED if pool.kind is Kind.EXACT_DRAWS else pool.kind  # their weights are no longer equal
        return replace(pool, log_weight=log_weight, rewards=rewards, kind=kind)

    @contextmanager
    def _switched_off(self) -> Iterator[None]:
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def __repr__(self) -> str:
        wanted = ", ".join(f"E[{name}] = {target:g}" for name, target in self.targets.items())
        return f"MomentConstraint({wanted})" + ("" if self.fitted is None else f"\n{self.fitted}")


def _batch(completion: What) -> torch.Size:
    if isinstance(completion, Tensor):
        return completion.shape[:-1]
    return torch.Size() if isinstance(completion, str) else completion.shape


def _key(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """Equal for the same program with the same arguments, however they were given."""
    try:
        bound = inspect.signature(model).bind(*args, **kwargs)
        bound.apply_defaults()
        args, kwargs = bound.args, bound.kwargs
    except (TypeError, ValueError):  # the engine will say what is wrong with them
        pass
    return identity(model), content(list(args)), content(dict(kwargs))
