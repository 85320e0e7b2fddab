"""What kind of particles a run has left, and what follows from it. Nothing else is asked to find out."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """``enumeration``  every value of every latent, weighed exactly
    ``weighted``     independent draws with weights
    ``resampled``    populations whose members share ancestors; replicates are independent
    ``conditional``  populations that hold a draw of the posterior which was given: their log Z lies too high
    ``exact draws``  independent draws of the posterior itself
    ``chain``        Markov chains that leave the posterior invariant, one a replicate: their order means something
    ``policy``       independent draws of a policy, chosen for its J = E[r] - beta KL in a world left as it is
    """

    ENUMERATION = "enumeration"
    WEIGHTED = "weighted"
    RESAMPLED = "resampled"
    CONDITIONAL = "conditional"
    EXACT_DRAWS = "exact draws"
    CHAIN = "chain"
    POLICY = "policy"

    @property
    def has_evidence(self) -> bool:
        """Do its weights estimate Z?"""
        return self not in (Kind.CHAIN, Kind.POLICY)

    @property
    def independent(self) -> bool:
        """Are the particles of a replicate independent draws?"""
        return self in (Kind.WEIGHTED, Kind.EXACT_DRAWS, Kind.POLICY)

    @property
    def is_ordered(self) -> bool:
        """Does the order of the particles mean something?"""
        return self is Kind.CHAIN

    @property
    def of_posterior(self) -> bool:
        """Do they stand for the posterior? A policy does not."""
        return self is not Kind.POLICY


def kind_of_flags(exact: bool, independent: bool, draws_are_exact: bool, target: str, engine: str = "") -> Kind:
    """The kind of a run in files of older versions, which had four flags."""
    if target == "decision":
        return Kind.POLICY
    if exact:
        return Kind.ENUMERATION
    if draws_are_exact:
        return Kind.EXACT_DRAWS
    if engine == "conditional":
        return Kind.CONDITIONAL
    return Kind.WEIGHTED if independent else Kind.RESAMPLED
