"""The one driver: whatever moves a program forward calls it.

A program is executed anew on what its particles hold, until it stops at a completion that has no value yet; that is
decoded; and so on to its end (:meth:`Runner.finish`). :meth:`Runner.redraw` goes back to a site, or to a token of it,
keeps all that is before and draws the rest anew. What engines do on the way (reweighting, resampling) they do as an
:class:`Observer`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ppl_align.core.errors import InputError
from ppl_align.core.progress import Report
from ppl_align.lm.decoding import Population, population
from ppl_align.lm.growing import Growing
from ppl_align.lm.leaning import Lean
from ppl_align.lm.prefix_cache import PrefixCache
from ppl_align.lm.restriction import Restriction
from ppl_align.lm.text_cache import TextCache
from ppl_align.particles.particles import Particles, Site
from ppl_align.program.compiled import Program
from ppl_align.program.sketch import sketch
from ppl_align.runner.decode import Decode
from ppl_align.runner.known_constraints import KnownConstraints, validate_constraints
from ppl_align.runner.proposals import FromPrior, Proposal, ProposesValues, Retaining


class Observer:
    """What an engine does while particles move; as it stands, nothing (importance sampling)."""

    def executed(self, particles: Particles) -> None:
        """The program has been executed on these: their factors are those of all that is written so far."""

    def before_decoding(self, particles: Particles) -> Particles:
        """A completion is about to be decoded; what is returned takes part."""
        return particles

    def lean(self, site: Site, restriction: Restriction | None) -> Lean | None:
        """What the tokens of a completion lean to; None: to its hard constraints only."""
        return None

    def drawing(self, decode: Decode) -> None:
        """The next token of each unfinished text is about to be drawn."""

    def drew(self, decode: Decode) -> None:
        """A token of each unfinished text was drawn, and the network has not read it yet."""

    @property
    def block(self) -> int | None:
        """Tokens between two calls of :meth:`drew` where an LM draws blocks; None: it need not be called."""
        return None


class Leans(Protocol):
    """What the tokens of every completion lean to, whoever observes: a part of how a runner draws."""

    def lean(self, site: Site, restriction: Restriction | None) -> Lean | None: ...


class Redrawn(NamedTuple):
    """``particles`` at their end; ``log_prior``, ``log_proposal`` [P] nats: of what was drawn anew, and of that only.

    What was kept is in the totals of the particles: where one proposal drew both, it cancels between old and new."""

    particles: Particles
    log_prior: Tensor
    log_proposal: Tensor


class Runner:
    """Moves particles through one program.

    ``proposal``     what values are drawn from      ``constraints``  hard constraints, which draws are confined to
    ``progress``     called as tokens are drawn
    ``retained``     values by site [R, ...] that the first of every ``num_particles`` must have (conditional runs)
    ``keep_scores``  log p0 of what is drawn is kept for a power prior that asks for it; else the LM is asked
    ``post_decode``  called with the texts of a completion once they are written
    ``tests``        constraints that are tests of text are asked as tokens are drawn: log q is then an estimate, which
                     leaves E[Zhat] = Z (and E[1/Zhat] = 1/Z of what is given), and nothing else that needs log q
    """

    def __init__(
        self,
        program: Program,
        proposal: Proposal = FromPrior(),
        constraints: KnownConstraints = KnownConstraints(),
        progress: Report = lambda done, total, note: None,
        retained: Mapping[str, Tensor] | None = None,
        num_particles: int = 0,
        keep_scores: bool = True,
        post_decode: Callable[[Site, Growing], None] | None = None,
        tests: bool = False,
    ) -> None:
        self.program, self.constraints, self.progress = program, constraints, progress
        self.proposal = proposal if retained is None else Retaining(proposal, retained, num_particles)
        self.retained, self.num_particles = retained, num_particles
        self.keep_scores, self.post_decode, self.tests = keep_scores, post_decode, tests
        self.kept = PrefixCache()
        self.leans: Leans = Observer()
        self.texts: dict[str, TextCache] | None = None

    def remember_texts(self) -> None:
        """From now on: what the network has read of a text is not read again where its rest is drawn anew."""
        self.texts = {} if self.texts is None else self.texts

    def drawing_from(self, proposal: Proposal, leans: Leans | None = None) -> Runner:
        """The same with another proposal, whose tokens lean to what ``leans`` knows of them."""
        other = copy.copy(self)
        other.proposal, other.leans, other.texts = proposal, Observer() if leans is None else leans, None
        return other

    def reading_anew(self) -> Runner:
        """The same, with nothing remembered."""
        other = copy.copy(self)
        other.texts = None
        return other

    # -- forward -------------------------------------------------------------------------------------------------------

    def start(self, size: int) -> Particles:
        """``size`` particles before the program has begun; a proposal of whole values has drawn those."""
        if not isinstance(self.proposal, ProposesValues):
            return Particles(size)
        values, log_proposal = self.proposal.draw(self.program, size)
        return Particles(size, values, log_proposal=log_proposal)

    def look(self, particles: Particles) -> Particles:
        """Execute the program on what there is, and draw nothing: what it says, and which site comes next."""
        return self._checked(self.program.run(particles, draw=False))

    def advance(self, particles: Particles) -> Particles:
        """Execute the program and draw ordinary latents on the way, to the next completion or to its end."""
        unscored = set(particles.log_proposal) - set(particles.log_prior)
        return self._checked(self.program.run(particles, draw=True, propose=self.proposal.latent, score=unscored))

    def decode(
        self,
        particles: Particles,
        observer: Observer = Observer(),
        given: Tensor | None = None,
        which: Tensor | int = 0,
    ) -> tuple[Particles, Decode]:
        """Write the pending completion, the tokens ``which`` (:meth:`Decode.hold`) as ``given [P, plates..., T]`` has
        them."""
        site, decode = particles.site, self.begin(particles, observer)
        if given is not None:
            decode.hold(torch.arange(particles.size), given, which)
        seen = Observer() if site.environment else observer
        decode.write(seen.drawing, seen.drew, _telling(self.progress, site.fn.max_new_tokens, site.name))
        if self.post_decode is not None:
            self.post_decode(site, decode.population)
        if self.keep_scores:
            decode.leave_scores(site.fn.max_new_tokens)
        return decode.written(), decode

    def begin(self, particles: Particles, observer: Observer = Observer()) -> Decode:
        """The pending completion, about to be written as it is to be drawn."""
        site = particles.site
        restriction = self.constraints.restriction(site, self.tests)
        source = site.fn.within(restriction)
        later = sketch(self.program).completions  # as far as is known: their prompts may go on from this one
        keep = site.name in later[:-1]
        if site.environment:  # the world is drawn as it is, not steered
            texts = population(source, kept=self.kept, keep=keep)
        else:
            proposal = self.proposal.tokens(site.name)
            lean = observer.lean(site, restriction) or self.leans.lean(site, restriction)
            texts = population(source, proposal, lean, observer.block, self.kept, keep)
            if self.texts is not None and isinstance(texts, Population) and texts.proposal_decoder is None:
                texts.texts = self.texts.setdefault(site.name, TextCache())
        decode = Decode(particles, texts)
        if self.retained is not None:
            first = torch.arange(0, particles.size, self.num_particles)
            decode.hold(first, self.retained[site.name], site.fn.max_new_tokens)
        return decode

    def finish(self, particles: Particles, observer: Observer = Observer()) -> Particles:
        """To the end of the program."""
        particles = self.advance(particles)
        observer.executed(particles)
        while particles.pending is not None:
            particles, _ = self.decode(observer.before_decoding(particles), observer)
            particles = self.advance(particles)
            observer.executed(particles)
        return particles

    def given(self, values: Mapping[str, Tensor], observer: Observer = Observer()) -> Particles:
        """Particles with these values by site [P, ...], at the end of the program: what they weigh under the proposal.

        Every latent of the program needs one. Raises ``InputError`` for a proposal that draws whole programs."""
        self._asks_site_by_site("given values cannot be weighed under")
        return self._keeping(values).finish(Particles(len(next(iter(values.values())))), observer)

    def branch(self, particles: Particles, listed: Callable[[Site, int], tuple[Tensor, Tensor, Tensor]]) -> Particles:
        """To the end of the program, each particle with every value of each latent: enumeration.

        ``listed(site, P)``: ``(parent [P'], value [P', ...], log_prior [P'])`` of the P particles before the site."""
        particles = self.look(particles)
        while (site := particles.pending) is not None:
            parent, value, log_p = listed(site, particles.size)
            particles = self.look(particles.take(parent).write(site.name, value, log_p, torch.zeros_like(log_p)))
        return particles

    def turn(self, particles: Particles) -> Particles:
        """Draw the sites of the next turn, whosever it is: the world's, or of whoever decides."""
        particles = self.look(particles)
        turn = particles.pending
        while (site := particles.pending) is not None and turn is not None and site.environment == turn.environment:
            particles = self.look(self.decode(particles)[0] if site.is_completion else self._drawn(particles, site))
        return particles

    def turns(self, particles: Particles) -> tuple[Particles, list[bool]]:
        """To the end of the program, turn by turn, and whose turns these were (True: the world's)."""
        whose = []
        while (site := (particles := self.look(particles)).pending) is not None:
            whose.append(site.environment)
            particles = self.turn(particles)
        return particles, whose

    # -- and back ------------------------------------------------------------------------------------------------------

    def redraw(
        self, particles: Particles, site: str, token: Tensor | int = 0, observer: Observer = Observer()
    ) -> Redrawn:
        """Draw anew from ``site`` on, or from token ``token`` ([P], or the same for all) of that completion on; in a
        plate, of each of its texts (or [P, K]: from one for each text).

        All that is before is kept, and so is a text that had ended by then. Particles with the same prefix share a row
        of the network. Their weights are those of whole programs, as ever.

        Raises ``InputError`` for a site that is none of their latents, a token that the text cannot have, and a
        proposal that draws whole programs."""
        self._asks_site_by_site("nothing can be redrawn from")
        if site not in particles.values:
            raise InputError(
                f"redraw from {site!r}: the latents are {', '.join(map(repr, particles.values)) or 'none'}"
            )
        if site not in particles.plates:  # nobody has executed the program on these
            particles = self.look(particles)
        token = _place(token, site, particles)
        latents = [name for name in self.program.order if name in particles.values]
        after = latents[latents.index(site) :]
        kept = particles.before(after)
        moved = self.advance(kept)
        held_prior = held_proposal = torch.zeros(particles.size, dtype=torch.float64)
        if moved.pending is not None and moved.pending.name == site and bool((token > 0).any()):
            moved, decoded = self.decode(moved, observer, particles.values[site], token)
            held_prior, held_proposal = decoded.kept
        moved = self.finish(moved, observer)
        return Redrawn(
            moved,
            moved.total_log_prior - kept.total_log_prior - held_prior,
            moved.total_log_proposal - kept.total_log_proposal - held_proposal,
        )

    def infill(self, particles: Particles, site: str, which: Tensor, observer: Observer = Observer()) -> Particles:
        """Draw the tokens ``which``, bool [P, K, T], of that completion anew. All else is kept and weighed anew: the
        other tokens, and the values of all other sites.

        A text in which what is drawn ends it ends there. Raises ``InputError`` for a site before which the world has
        not answered for the last time: what it would say of another text is not known."""
        self._asks_site_by_site("nothing can be infilled from")
        order = [name for name in self.program.order if name in particles.values]
        after = order[order.index(site) + 1 :]
        if any(name in particles.environment for name in (site, *after)):
            raise InputError(f"infill in {site!r}: the world answers to it, and would answer another text otherwise")
        moved = self.advance(particles.before([site, *after]))
        moved, _ = self.decode(moved, observer, particles.values[site], ~which)
        return self._keeping({name: particles.values[name] for name in after}).finish(moved, observer)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _asks_site_by_site(self, what: str) -> None:
        if isinstance(self.proposal, ProposesValues):
            raise InputError(f"{what} a guide that draws whole programs: propose token by token, or from the prior")

    def _keeping(self, values: Mapping[str, Tensor]) -> Runner:
        """One that draws none of these values [P, ...]."""
        held = copy.copy(self)
        held.proposal, held.retained, held.num_particles = Retaining(self.proposal, values, 1), values, 1
        return held

    def _checked(self, particles: Particles) -> Particles:
        if particles.pending is not None:
            return particles
        validate_constraints(self.constraints, particles)
        # In the order of the program, which a guide that proposes whole values need not follow.
        met = {name: particles.values[name] for name in self.program.order if name in particles.values}
        return particles.replace(values={**met, **particles.values})

    def _drawn(self, particles: Particles, site: Site) -> Particles:
        """An ordinary latent, from its prior."""
        value = site.fn.sample().detach()
        log_p = site.fn.log_prob(value).detach().double().cpu().reshape(particles.size, -1).sum(-1)
        return particles.write(site.name, value, log_p, log_p)


def _place(token: Tensor | int, site: str, particles: Particles) -> Tensor:
    """Where the texts of a site go on from, [P], [P, K] or a number."""
    at, source = torch.as_tensor(token), particles.sources.get(site)
    most = 0 if source is None else source.max_new_tokens
    shapes = [(), (particles.size,)]
    if source is not None:
        shapes.append((particles.size, source.index.numel() // particles.size))
    if at.dtype.is_floating_point or at.dtype == torch.bool or at.shape not in shapes:
        raise InputError(
            f"redraw({site!r}, token=...): a whole number, or one for each of the {particles.size} particles, got "
            f"{at.dtype} of shape {list(at.shape)}"
        )
    if bool(((at < 0) | (at > most)).any()):
        what = "is no completion: token must be 0" if source is None else f"has tokens 0 to {most}"
        raise InputError(f"redraw({site!r}, token={token}): it {what}")
    return at


def _telling(progress: Report, total: int, note: str) -> Callable[[int], None]:
    return lambda done: progress(done, total, note)
