"""A guide for any program: the program itself, with every latent drawn from something trainable.

Reading the guide off the program means that prompts which depend on upstream latents, plates and control flow need no
second definition. As a Pyro guide it is trained by Pyro's SVI; as a :class:`~ppl_align.runner.proposals.Proposal` it
serves every other engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, constraints
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppl_align.core.errors import InputError
from ppl_align.guides import table
from ppl_align.guides.head import HeadGuide
from ppl_align.guides.latents import LatentGuide
from ppl_align.guides.lora import LoRAGuide
from ppl_align.guides.markov import MarkovGuide
from ppl_align.guides.table import TableGuide
from ppl_align.guides.tokens import TokenGuide
from ppl_align.lm.base import LM
from ppl_align.lm.decoding import Population, TokenProposal
from ppl_align.lm.distribution import CompletionDistribution
from ppl_align.lm.matcher import Matcher
from ppl_align.lm.restriction import Restriction
from ppl_align.lm.score_cache import remember
from ppl_align.program.execute import is_bookkeeping, is_environment
from ppl_align.program.provenance import Provenance

KINDS = ("auto", "head", "lora", "markov", "table")
ALL_PREFIXES = 2**14
""""auto" takes a parameter for each prefix and token up to this many of them."""

BETWEEN = "\n"
"""Between the name of a site and those of its guide's parameters, in Pyro's store: no name of a site holds one."""


class AutoGuide:
    """``guide(*args)`` is a Pyro guide of ``model(*args)``; ``kind``: "auto", "head", "lora", "markov" or "table".

    "auto" is the head where the LM has hidden states. Where it has not, it is the table of all prefixes if that is
    small, else "markov": a table for each position and previous token."""

    def __init__(self, model: Callable[..., Any], kind: str = "auto", rank: int = 8) -> None:
        self.model, self.kind, self.rank = model, kind, rank
        self.nesting = 0  # plates of the program, found out by a pilot run
        self.matchers: Mapping[str, Sequence[Matcher]] = {}  # hard constraints by site: q is confined to them
        self.sites: dict[str, nn.Module] = {}
        self.lms: dict[str, LM] = {}  # by completion site, whose LM its part was made for
        self.provenance: Provenance | None = None  # of the run that trained it
        self._adapters: dict[int, LoRAGuide] = {}  # one adapted network for all the sites of one LM

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        with poutine.block(hide_fn=lambda msg: msg["type"] == "sample" and msg["is_observed"]), _Substitute(self):
            self.model(*args, **kwargs)

    # -- as a proposal of other engines -------------------------------------------------------------------

    def tokens(self, site: str) -> TokenProposal | LM | None:
        guide = self.sites.get(site)
        return guide.proposal() if isinstance(guide, TokenGuide) else None

    def latent(self, site: str, prior: Any) -> Any:
        guide = self.sites.get(site)
        return prior if guide is None else guide(prior)

    # -- parts --------------------------------------------------------------------------------------------

    def part(self, name: str, fn: Any) -> nn.Module:
        """The trainable part for a site, made when it is first met."""
        if name not in self.sites:
            if isinstance(fn, CompletionDistribution):
                self.lms[name], self.sites[name] = fn.lm, self._make(fn)
            else:
                self.sites[name] = LatentGuide(fn, self.nesting)
        return self.sites[name]

    def restriction(self, name: str, source: CompletionDistribution) -> Restriction | None:
        """The hard constraints on a site, which the guide is confined to."""
        matchers = self.matchers.get(name)
        if not matchers:
            return None
        if self.kind == "lora":
            raise InputError(
                f'guide="lora" cannot be confined to the constraint on {name!r}, since it draws with a network of its '
                f'own: use guide="head"'
            )
        return Restriction(matchers, source)

    def _make(self, source: CompletionDistribution) -> TokenGuide:
        kind = self.kind
        if kind == "auto" and source.lm.hidden_size is not None:
            kind = "head"
        elif kind == "auto":  # where most prefixes would never be seen, the table of those of one token back
            kind = "table" if table.size_for(source) <= ALL_PREFIXES else "markov"
        if kind == "table":
            return TableGuide(source)
        if kind == "markov":
            return MarkovGuide(source)
        if kind == "head":
            return HeadGuide(source, self.rank)
        if id(source.lm) not in self._adapters:
            self._adapters[id(source.lm)] = LoRAGuide(source, self.rank)
        return self._adapters[id(source.lm)]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trained tensors (not copies) by name, ``site.parameter``; a network that sites share comes once."""
        found: dict[int, tuple[str, Tensor]] = {}
        for site, part in self.sites.items():
            for key, parameter in part.named_parameters():
                if parameter.requires_grad:
                    found.setdefault(id(parameter), (f"{site}.{key}", parameter.detach()))
        return dict(found.values())

    def save(self, folder: str | Path) -> Path:
        """Write the guide to a folder, from where :func:`~ppl_align.guides.load_guide` reads it. Returns the path.

        What ``guide="lora"`` has learned is a PEFT adapter, which ``CausalLM(base, adapter=folder)`` reads as well.
        Written beside its place and renamed. Raises ``InputError`` for a guide that was not trained, and for a folder
        that holds something else than a guide."""
        from ppl_align.guides.saving import save

        return save(self, folder)

    def __repr__(self) -> str:
        kinds = {site: type(part).__name__.removesuffix("Guide").lower() for site, part in sorted(self.sites.items())}
        return f"AutoGuide({self.kind!r}, rank={self.rank}, sites={kinds})"


class _Substitute(Messenger):
    """Every latent of the program is drawn from the guide; its parameters are registered with Pyro."""

    def __init__(self, guide: AutoGuide) -> None:
        super().__init__()
        self.guide = guide

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or is_bookkeeping(msg):
            return
        if is_environment(msg):  # the world is what it is: its sites stay those of the prior
            if isinstance(msg["fn"], CompletionDistribution):
                msg["fn"] = _Witnessed.of(msg["fn"])
            return
        if _is_certain(msg["fn"]):  # nothing to learn, and no other value to draw
            return
        name, fn = msg["name"], msg["fn"]
        part = self.guide.part(name, fn)
        if isinstance(part, TokenGuide):
            part.prepare(fn)
            msg["fn"] = GuidedCompletion(part, fn.within(self.guide.restriction(name, fn)))
        else:
            msg["fn"] = part(fn)
        register(name, part)


def _is_certain(fn: Any) -> bool:
    """Is it a ``Delta``, whatever it is wrapped in?"""
    while fn is not None:
        if isinstance(fn, Delta):
            return True
        fn = getattr(fn, "base_dist", None)
    return False


class _Witnessed(CompletionDistribution):
    """What a world's own LM writes: nothing is learned of it, so the model need not score it a second time.

    (Of a guide's completions that would be fatal: what is remembered has no gradient.)"""

    @classmethod
    def of(cls, fn: CompletionDistribution) -> _Witnessed:
        return cls(fn.lm, fn.prompts, fn.index, fn.max_new_tokens, fn.warp, fn.stop_ids, fn.restriction)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        expanded = self.expand(shape)
        population = Population(expanded).run()
        tokens = population.tokens.reshape(*shape, self.max_new_tokens)
        remember(expanded, tokens, population.log_p.reshape(shape))
        return tokens


def register(name: str, part: nn.Module) -> None:
    """Pyro's optimiser sees what passes through ``pyro.param``; the tensors stay the module's own.

    A parameter is called like nothing else: Pyro keeps sites and parameters in one table, and no site has a line end in
    its name."""
    for key, parameter in part.named_parameters():
        if parameter.requires_grad:
            pyro.param(f"{name}{BETWEEN}{key}", parameter)


class GuidedCompletion(TorchDistribution):
    """A completion site of a guide: draws from q, scores with the gradient of log q."""

    has_rsample = False
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, part: TokenGuide, source: CompletionDistribution) -> None:
        self.part, self.source = part, source
        self._score: tuple[Tensor, Callable[[], Tensor]] | None = None
        super().__init__(source.batch_shape, source.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return self.source.support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> GuidedCompletion:
        return GuidedCompletion(self.part, self.source.expand(batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        expanded = self.source.expand(shape)
        draw = self.part.draw(expanded.reshaped((shape.numel(),)))
        tokens = draw.tokens.reshape(*shape, -1)
        if draw.log_p is not None:
            remember(expanded, tokens, draw.log_p.reshape(shape))
        self._score = None if draw.score is None else (tokens, draw.score)
        return tokens

    def log_prob(self, value: Tensor) -> Tensor:
        if self._score is not None and torch.equal(self._score[0], value):
            return self._score[1]().reshape(value.shape[:-1])
        flat = self.source.expand(value.shape[:-1]).reshaped((value[..., 0].numel(),))
        return self.part.log_prob(flat, value.reshape(-1, value.shape[-1])).reshape(value.shape[:-1])
