"""Hard constraints, as engines see them: known before the first token, or too late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ppl_align.core.errors import ModelError
from ppl_align.core.runs import on_run_end
from ppl_align.lm.matcher import Matcher
from ppl_align.lm.restriction import Restriction
from ppl_align.particles.particles import Particles, Site
from ppl_align.program.compiled import Program
from ppl_align.program.sketch import sketch


@dataclass(frozen=True)
class KnownConstraints:
    """``matchers``: the constraints on each completion site.  ``stopped``: what ended the look at the program before
    its end, None if nothing did; a constraint after that still holds, as a rejection at the end."""

    matchers: Mapping[str, Sequence[Matcher]] = field(default_factory=dict)
    stopped: str | None = None

    def acting(self, *how: str) -> KnownConstraints:
        """Those to which draws keep by one of these means (``Matcher.acts``)."""
        known = {site: [one for one in found if one.acts in how] for site, found in self.matchers.items()}
        return replace(self, matchers={site: found for site, found in known.items() if found})

    def restriction(self, site: Site, tests: bool = False) -> Restriction | None:
        """What the draws of a site are confined to; the world is not. ``tests``: of :class:`Restriction`."""
        matchers = None if site.environment else self.matchers.get(site.name)
        return Restriction(matchers, site.fn, tests) if matchers else None

    def unknown(self, particles: Particles) -> str | None:
        """What there is to say of a constraint that the program has and that was not known; None: there is none."""
        sites = sorted(set(particles.constraints) - set(self.matchers))
        if not sites or self.stopped is None:
            return None
        return (
            f"the constraint on {sites[0]!r} acts only at the end, as a rejection: shown an empty text, the program "
            f"stops before it, at {self.stopped}"
        )

    def hint(self, particles: Particles) -> str:
        """The same for the end of an error that may come of it; else empty."""
        said = self.unknown(particles)
        return "" if said is None else f" ({said})"


def known_constraints(program: Program) -> KnownConstraints:
    """The constraints on each completion, by a look at the program before anything is drawn."""
    found = sketch(program)
    if found.stopped is None:
        return KnownConstraints(found.matchers)
    return KnownConstraints(found.matchers, f"{type(found.stopped).__name__}: {found.stopped}".splitlines()[0])


def validate_constraints(known: KnownConstraints, particles: Particles) -> None:
    """Are the constraints that engines drew within those of the program, now that it has run to its end?

    Raises ``ModelError`` where one is not: it hangs on something drawn, and what was drawn is confined to the wrong
    texts. One that was not known is remarked on: it costs draws, not correctness."""
    for site, matchers in known.matchers.items():
        met = particles.constraints.get(site, ())
        if any(all(not _same(matcher, other) for other in met) for matcher in matchers):
            raise ModelError(
                f"the constraint on {site!r} changes with what was drawn before it (a latent, or an answer of the "
                f"world): a constraint is one for all draws; write what differs between them as a reward with -inf"
            )
    remark = known.unknown(particles)
    if remark is not None:
        on_run_end(remark, lambda: lambda: remark)


def _same(matcher: Matcher, other: Matcher) -> bool:
    """The same constraint: an LM that a program makes anew at each execution has matchers of its own."""
    return matcher is other or (matcher.constraint is not None and matcher.constraint == other.constraint)
