"""What a kernel knows of the states that it moves, and asks the network for only once.

Under a proposal of its own a kernel needs log q of the text that is there; cuts at entropy jumps need the entropy of
each of its tokens. Both are met when a text is drawn, and remembered by the values it consists of: engines resample and
reorder states between two steps of a kernel, and another kernel may move them. What is not known is scored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_align.particles.particles import Particles
from ppl_align.runner.decode import Decode
from ppl_align.runner.runner import Observer, Runner

_ROOM = 32
"""States remembered, for each that is moved: engines come back to some that were moved a few steps ago."""


class Watching(Observer):
    """Sees, where it ``reads_entropy``, the entropy of each token before it is drawn: ``entropy`` [P, K, T] by site."""

    def __init__(self, reads_entropy: bool) -> None:
        self.reads_entropy = reads_entropy
        self.entropy: dict[str, Tensor] = {}

    def drawing(self, decode: Decode) -> None:
        if not self.reads_entropy:
            return
        name, shape = decode.site.name, (decode.particles.size, decode.texts, decode.site.fn.max_new_tokens)
        if decode.t == 0:
            self.entropy[name] = torch.zeros(shape, dtype=torch.float64)
        self.entropy[name].view(-1, shape[-1])[:, decode.t] = decode.entropy


class Known:
    """``runner``: how the kernel draws; ``own``: from a proposal of its own."""

    def __init__(self, runner: Runner, own: bool, watching: Watching) -> None:
        self.runner, self.own, self.watching = runner, own, watching
        runner.remember_texts()
        self.log_proposal: dict[bytes, dict[str, float]] = {}
        self.by_token: dict[bytes, dict[str, Tensor]] = {}
        self.entropy: dict[bytes, dict[str, Tensor]] = {}

    @property
    def remembers(self) -> bool:
        return self.own or self.watching.reads_entropy

    def learn(self, drawn: Particles, before: Particles | None = None) -> None:
        """``drawn`` have just been written, or scored, with ``watching`` looking on; ``before``: the states whose first
        sites they keep."""
        seen = self.watching.entropy
        kept: list[dict[str, Tensor]] = [{}] * drawn.size
        if before is not None:
            kept = [self.entropy[key] for key in keys(before)]
        for i, key in enumerate(keys(drawn)):
            self.log_proposal[key] = {name: float(value[i]) for name, value in drawn.log_proposal.items()}
            self.by_token[key] = {name: value[i] for name, value in drawn.token_log_proposal.items()}
            self.entropy[key] = {
                **kept[i],
                **{name: _filled(value[i], kept[i].get(name)) for name, value in seen.items()},
            }
        self.watching.entropy = {}

    def of(self, particles: Particles) -> Particles:
        """The same, with log q of the kernel's own proposal; afterwards ``entropy`` knows each of them."""
        if not self.remembers:
            return particles
        named = keys(particles)
        new = torch.tensor([key not in self.log_proposal for key in named])
        if bool(new.any()):
            where = new.nonzero()[:, 0]
            values = {name: value[where.to(value.device)] for name, value in particles.values.items()}
            self.learn(self.runner.reading_anew().given(values, self.watching))
        if len(self.log_proposal) > _ROOM * len(named):
            self.log_proposal = {key: self.log_proposal[key] for key in named}
            self.by_token = {key: self.by_token[key] for key in named}
            self.entropy = {key: self.entropy[key] for key in named}
        if not self.own:
            return particles
        log_proposal = {
            name: torch.tensor([self.log_proposal[key][name] for key in named], dtype=torch.float64)
            for name in particles.log_proposal
        }
        by_token = {
            name: torch.stack([self.by_token[key][name] for key in named]) for name in particles.token_log_proposal
        }
        return particles.replace(log_proposal=log_proposal, token_log_proposal=by_token)

    def entropy_of(self, particles: Particles, site: str) -> Tensor | None:
        """[P, K, T] nats; None where nobody looked."""
        if not self.watching.reads_entropy:
            return None
        return torch.stack([self.entropy[key][site] for key in keys(particles)])


def _filled(seen: Tensor, before: Tensor | None) -> Tensor:
    """What was not seen, because those tokens were kept, is what it was before."""
    return seen if before is None else torch.where(seen.isnan(), before, seen)


def keys(particles: Particles) -> list[bytes]:
    """What each particle consists of."""
    flat = [value.detach().cpu().reshape(particles.size, -1).double() for value in particles.values.values()]
    return [row.tobytes() for row in torch.cat(flat, -1).numpy()]
