"""An enumerated program read as an episode: at each site it is the agent's turn, or the world's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_align.guides import ProgramGuide
from ppl_align.testing.oracle import Oracle

Policy = dict[str, Tensor]
"""log pi(action | history) of every assignment, [S], by the agent's sites."""


class Turns:
    """``agent``: the sites at which the agent acts; at all others the world draws from the prior."""

    def __init__(self, oracle: Oracle, agent: Collection[str]) -> None:
        self.oracle, self.agent, self.sites = oracle, tuple(agent), list(oracle.values)
        size = len(oracle.log_prior)
        seen = [torch.zeros(size, dtype=torch.long)]  # which history an assignment has, before each site and at the end
        for name in self.sites:
            step = torch.cat([seen[-1][:, None].double(), oracle.values[name].reshape(size, -1).double()], 1)
            seen.append(torch.unique(step, dim=0, return_inverse=True)[1])
        self.before = dict(zip(self.sites, seen[:-1], strict=True))
        self.after = dict(zip(self.sites, seen[1:], strict=True))
        parts = {name: part[0] for name, part in oracle.posterior.log_prior.items()}
        self.prior: Policy = {name: parts[name] for name in self.agent}
        self.log_world = sum((parts[name] for name in self.sites if name not in agent), torch.zeros(size).double())

    def play(self, policy: Policy) -> Tensor:
        """log q [S] of the episodes when the agent follows the policy and the world is as it is."""
        never = self.oracle.log_prior.isneginf()  # after what cannot happen, policies are not defined
        return torch.where(never, -torch.inf, sum(policy.values(), self.log_world))

    def policy_of(self, log_p: Tensor) -> Policy:
        """What an agent does that reads its conditionals off a joint distribution log p [S]."""
        return {a: log_sum(log_p, self.after[a]) - log_sum(log_p, self.before[a]) for a in self.agent}

    def soft_bellman(self) -> tuple[Policy, float]:
        """The maximiser of the ELBO over policies, by backward induction, and its ELBO, in nats.

        The agent's turn: V(h) = log E_p0[exp V(h, a)], and pi(a | h) = p0(a | h) exp(V(h, a) - V(h)).
        The world's turn: V(h) = E[V(h, o)], without the exponential: nobody chooses o."""
        value, policy, log_prior = self.oracle.log_potential, {}, self.oracle.log_prior
        for name in reversed(self.sites):
            here = self.before[name]
            mass = log_sum(log_prior, here)
            if name in self.agent:
                value, later = log_sum(log_prior + value, here) - mass, value
                policy[name] = self.prior[name] + later - value
            else:
                value = sum_by(torch.where(log_prior.isneginf(), 0.0, (log_prior - mass).exp() * value), here)
        return policy, float(value[0])

    def divergences(self, policy: Policy, other: Policy, visitor: Policy | None = None) -> dict[str, Tensor]:
        """KL(policy || other) at each of the agent's turns, averaged over the histories that ``policy`` visits.

        ``visitor``: over the histories that this policy visits instead."""
        found = {}
        for a in self.agent:
            q = self.play({**(visitor or policy), a: policy[a]}).exp()
            found[a] = torch.where(q > 0, q * (policy[a] - other[a]), 0.0).sum()
        return found


def sum_by(x: Tensor, group: Tensor) -> Tensor:
    """The sum of x over the members of each one's group, [S]."""
    return torch.zeros_like(x).index_add(0, group, x)[group]


def log_sum(log_x: Tensor, group: Tensor) -> Tensor:
    """The same for logarithms."""
    top = log_x.max()
    return sum_by((log_x - top).exp(), group).log() + top


def climb(oracle: Oracle, guide: Any) -> tuple[Tensor, Tensor]:
    """The largest ELBO of a guide's parameters, and log q [S] there."""
    with pyro.get_param_store().scope():
        policy = ProgramGuide(guide)
        oracle.log_q(policy)  # a first run makes the parameters
        best = maximise(lambda: oracle.elbo(policy), list(pyro.get_param_store().values()))
        return best, oracle.log_q(policy).detach()


def maximise(objective: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Climb to the top of a smooth objective (L-BFGS on exact gradients); returns its value there."""

    def loss() -> float:
        value = -objective()
        for parameter, slope in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
            parameter.grad = slope
        return value.item()

    for _ in range(20):  # a line search that fails ends a climb early: go on from there, until the slope is zero
        ascent = torch.optim.LBFGS(
            list(parameters), max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
        )
        ascent.step(loss)
        if max(float(parameter.grad.abs().max()) for parameter in parameters if parameter.grad is not None) < 1e-9:
            break
    return objective().detach()
