"""The exact answer to every question about a small program.

The support of the program is enumerated once; after that, log Z, soft values, optimal twists, draws, divergences and
gradients are sums over it. Tensors over the support have shape [S], float64, in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppl_align.core import seeds
from ppl_align.core.errors import InputError
from ppl_align.engines import Enumeration
from ppl_align.guides import AutoGuide
from ppl_align.guides.program import ProgramGuide
from ppl_align.guides.tokens import TokenGuide
from ppl_align.lm.base import LM
from ppl_align.lm.completions import tensor_of
from ppl_align.lm.decoding import Rows
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.particles.particles import Particles
from ppl_align.posterior import Posterior
from ppl_align.posterior.kind import Kind
from ppl_align.program import Program
from ppl_align.program.plates import all_with_room
from ppl_align.twists.twist import Prefixes

NEVER = -torch.inf


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = sum_x p(x) (log p(x) - log q(x)) in nats over a support [S]; +inf where q misses what p has.

    >>> half, skewed = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    >>> round(kl_divergence(half, skewed).item(), 4), round(kl_divergence(skewed, half).item(), 4)
    (0.5108, 0.3681)
    """
    visited = log_p > NEVER
    p = log_p.exp()
    ratio = torch.where(visited, log_p, 0.0) - torch.where(visited, log_q, 0.0)
    return torch.where(visited, p * ratio, 0.0).sum()


def entropy(log_p: Tensor) -> Tensor:
    """-sum_x p(x) log p(x) in nats."""
    return torch.special.entr(log_p.exp()).sum()


class Oracle:
    """Everything about ``model(*args, **kwargs)``, by enumeration. For toys, or a real LM over a token or two.

    ``posterior``      what :class:`~ppl_align.Enumeration` returned     ``log_evidence``  log Z
    ``values``         every latent by name, [S, ...]              ``completions``   the texts, by name
    ``rewards``        r by name, [S]
    ``log_prior``      log p0 of each assignment, [S]              ``log_potential`` log w = sum of factors, [S]
    ``log_target``     log p* = log_prior + log_potential - log Z

    Policies (``policy``) are given as log q [S], as another LM, a proposal ``Rows -> log_q``, a trained guide
    (``posterior.guide``) or any Pyro guide; scores are differentiable in their parameters.

    Raises ``InputError`` where the support is too large to list.
    """

    def __init__(self, model: Callable[..., Any], *args: Any, max_sequences: int = 100_000, **kwargs: Any) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.posterior = Enumeration(max_sequences).run(model, *args, **kwargs)
        self.log_evidence = float(self.posterior.log_evidence)
        self.values = {name: tensor_of(value)[0] for name, value in self.posterior.particles.items()}
        self.completions = self.posterior.completions
        self.rewards = {name: r[0] for name, r in self.posterior.rewards.items()}
        nothing = torch.zeros(self.posterior.log_weight.shape[1], dtype=torch.float64)
        self.log_prior = sum((part[0] for part in self.posterior.log_prior.values()), nothing)
        self.log_potential = sum((part[0] for part in self.posterior.factors.values()), nothing)
        self.log_target = self.log_prior + self.log_potential - self.log_evidence

    def __repr__(self) -> str:
        name = getattr(self.model, "__name__", type(self.model).__name__)
        kl = float(kl_divergence(self.log_target, self.log_prior))
        size = f"{len(self.log_prior):,} assignments"
        return f"Oracle({name}: {size}, log Z = {self.log_evidence:.4g}, KL(p* || p0) = {kl:.4g} nats)"

    # -- expectations and divergences ---------------------------------------------------------------------------

    def log_q(self, policy: Any) -> Tensor:
        """log q of every assignment, [S] float64, differentiable in the parameters of the policy."""
        size = len(self.log_prior)
        if isinstance(policy, Tensor):
            if policy.shape != (size,):
                raise InputError(
                    f"log q must have one entry for each of the {size} assignments, got {list(policy.shape)}"
                )
            return policy.double()
        if isinstance(policy, (AutoGuide, ProgramGuide)):
            return self._of_program(policy)
        if len(self.values) > 1:
            raise InputError("a policy over tokens can be scored where one completion is the only latent: give a guide")
        source = self.source()
        tokens = next(iter(self.values.values())).reshape(size, -1)
        if isinstance(policy, LM):
            return source.proposed_log_probs(policy, tokens).double().sum(-1)
        if isinstance(policy, TokenGuide):
            return policy.log_prob(source, tokens)
        if callable(policy):
            return _FromFunction(policy).log_prob(source, tokens)
        raise InputError(f"a policy is log q [S], an LM, a proposal or a guide, got {type(policy).__name__}")

    def mean(self, what: str | Tensor, policy: Any = None) -> Tensor:
        """E[what] under the target, or under a policy; ``what`` is the name of a reward or a tensor [S]."""
        values = self.rewards[what] if isinstance(what, str) else what.double()
        log_q = self.log_target if policy is None else self.log_q(policy)
        return torch.where(log_q > NEVER, log_q.exp() * values, 0.0).sum()

    def elbo(self, policy: Any) -> Tensor:
        """E_q[log w] - KL(q || p0) = log Z - KL(q || p*); times beta, the objective J of KL-regularised RL."""
        log_q = self.log_q(policy)
        return self.mean(self.log_potential, log_q) - kl_divergence(log_q, self.log_prior)

    def reverse_kl(self, policy: Any) -> Tensor:
        """KL(q || p*): what RL with KL penalties and SVI minimise."""
        return kl_divergence(self.log_q(policy), self.log_target)

    def forward_kl(self, policy: Any) -> Tensor:
        """KL(p* || q): what distributional policy gradients (GDC) and imitation of posterior draws minimise."""
        return kl_divergence(self.log_target, self.log_q(policy))

    def gradient(self, objective: Callable[[Tensor], Tensor], guide: Any) -> dict[str, Tensor]:
        """The exact gradient of ``objective(log_q [S])`` (such as ``oracle.elbo``) by parameter of a trained guide."""
        named = dict(guide.named_parameters()) if hasattr(guide, "named_parameters") else _parameters(guide)
        trainable = {name: p for name, p in named.items() if p.requires_grad}
        value = objective(self.log_q(guide))
        found = torch.autograd.grad(value, list(trainable.values()), allow_unused=True)
        pairs = zip(trainable.items(), found, strict=True)
        return {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}

    # -- the only completion of the program, prefix by prefix ---------------------------------------------------

    def soft_value(self, prefix: Sequence[int], site: str | None = None, **upstream: Any) -> float:
        """V(x_<=t) = log E_p0[w | x_<=t], nats; ``upstream`` fixes other latents. V of the empty prefix is log Z.

        The posterior factorises over it: p*(x_t | x_<t) = p0(x_t | x_<t) exp(V(x_<=t) - V(x_<t)). The mean is over
        everything not fixed. -inf for a prefix that cannot succeed; ``InputError`` for one of probability zero.
        """
        name = self._site(site)
        if len(prefix) > self.values[name].shape[-1]:
            raise InputError(f"the prefix has {len(prefix)} tokens, {name!r} at most {self.values[name].shape[-1]}")
        here = self._under(name, torch.tensor([list(prefix)], dtype=torch.long).reshape(1, -1), upstream)[0]
        if not bool(here.any()):
            raise InputError(f"the prefix {list(prefix)} of {name!r} has probability zero under the prior")
        return float(self._value(here[None]))

    def twist(self, prefixes: Prefixes) -> Tensor:
        """The optimal twist, for ``SMC(twist=oracle.twist)``: the soft value of each prefix beyond what is known."""
        members = self._under(prefixes.site, prefixes.tokens, prefixes.values)
        return self._value(members) - prefixes.log_potential

    def proposal(self, rows: Rows) -> Tensor:
        """The optimal proposal, p*(v | prefix): importance sampling with it has no variance. One completion only."""
        name = self._site(None)
        if len(self.values) > 1:
            raise InputError("an optimal proposal for each token needs a program with one completion and nothing else")
        log_q = torch.full_like(rows.log_probs.double(), NEVER)
        for i, here in enumerate(self._under(name, rows.prefixes, {})):
            following = self.values[name][here, rows.prefixes.shape[1]]
            mass = torch.zeros(log_q.shape[1], dtype=torch.float64)
            mass.index_add_(0, following, (self.log_target[here] - self.log_target[here].max()).exp())
            log_q[i] = (mass / mass.sum()).log()
        return log_q

    # -- draws --------------------------------------------------------------------------------------------------

    def sample(self, num_particles: int = 64, num_replicates: int = 4, seed: int = 0) -> Posterior:
        """Independent exact draws of the posterior, as a :class:`~ppl_align.Posterior` of equal weights Z."""
        generator = seeds.generator(seed, "oracle")
        size = num_replicates * num_particles
        index = torch.multinomial(self.log_target.exp(), size, replacement=True, generator=generator)
        fields = {"engine": "oracle", "config": {}, "seed": seed, "kind": Kind.EXACT_DRAWS}
        log_q = self.log_target[index].reshape(num_replicates, num_particles)
        return self.posterior.take(index.reshape(num_replicates, num_particles), log_proposal=log_q, **fields)

    # -- helpers --------------------------------------------------------------------------------------------------

    def source(self, site: str | None = None) -> CompletionDistribution:
        """The prior of a completion site, one element for each assignment."""
        name = self._site(site)
        source = self.completions[name].source
        assert source is not None
        return source.with_index(source.index[0])

    def _site(self, site: str | None) -> str:
        names = list(self.completions)
        if site is None and len(names) != 1:
            raise InputError(f"this program has {len(names)} completions ({', '.join(names)}): name the site")
        name = names[0] if site is None else site
        if name not in names:
            raise InputError(f"no completion is called {name!r}; there are {', '.join(names)}")
        return name

    def _of_program(self, guide: AutoGuide | ProgramGuide) -> Tensor:
        """Run the guide with every latent held at its value, and add up what its sites say."""
        size = len(self.log_prior)
        program = Program(self.model, self.args, self.kwargs)
        execution = program.run(Particles(size, self.values), draw=False)  # finds out how many plates the program has
        values = all_with_room(self.values, execution.plates, execution.nesting)
        with guide.trained() if isinstance(guide, ProgramGuide) else pyro.get_param_store().scope():
            with program.plate(size):
                held = poutine.condition(guide, data=values)
                trace = poutine.trace(held).get_trace(*self.args, **self.kwargs)
            trace.compute_log_prob()
        total = torch.zeros(size, dtype=torch.float64)
        for name, node in trace.nodes.items():
            if node["type"] == "sample" and name in self.values:
                log_prob = node["log_prob"].double().cpu()
                full = torch.broadcast_shapes(log_prob.shape, (size, *(1,) * program.nesting))
                total = total + log_prob.expand(full).reshape(size, -1).sum(-1)
        return total

    def _under(self, name: str, tokens: Tensor, upstream: Any) -> Tensor:
        """Which assignments continue which prefix and agree with what is upstream: bool [m, S]."""
        size, width = len(self.log_prior), tokens.shape[-1]
        held = self.values[name][..., :width].reshape(1, size, -1)
        members = (held == tokens.cpu().reshape(len(tokens), 1, -1)).all(-1)
        for other, value in upstream.items():
            if other not in self.values:
                raise InputError(f"no latent is called {other!r}; there are {', '.join(self.values)}")
            given = torch.as_tensor(value).cpu()
            given = given.expand(len(tokens), *self.values[other].shape[1:]).reshape(len(tokens), 1, -1)
            members &= (self.values[other].reshape(1, size, -1) == given).all(-1)
        return members

    def _value(self, members: Tensor) -> Tensor:
        """log E_p0[w | members], for subsets of the support: bool [m, S] -> [m]; -inf for an empty one."""
        prior = torch.where(members, self.log_prior, NEVER).logsumexp(-1)
        joint = torch.where(members, self.log_prior + self.log_potential, NEVER).logsumexp(-1)
        return torch.where(joint > NEVER, joint - prior, NEVER)


class _FromFunction(TokenGuide):
    """A proposal ``Rows -> log_q [rows, V]``, scored as guides are."""

    def __init__(self, fn: Any) -> None:
        super().__init__()
        self.fn = fn

    def log_q(self, rows: Rows) -> Tensor:
        return self.fn(rows)


def _parameters(guide: Any) -> dict[str, Tensor]:
    """Parameters of an AutoGuide, by site."""
    if not hasattr(guide, "sites"):
        raise InputError(f"gradient() takes a trained guide or an nn.Module, got {type(guide).__name__}")
    return {f"{site}.{name}": p for site, part in guide.sites.items() for name, p in part.named_parameters()}
