"""What the sites of a program are called where they stand beside our own columns.

A user names rewards, latents, completions; tables, netCDF groups and screens have words of their own. Where a site has
such a name it is *the site's column* that gets another one, ``probability_``, and it is the same one in every output:
tables, draws, netCDF and ArviZ, the report, ``ppl-align check``. Mappings by site (``posterior.rewards``), ``mean`` and
what is namespaced anyway (``E[probability]`` of a comparison) go by the name that the program gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

TABLE = ("probability", "log_prior")
"""Columns of ``Posterior.table`` and ``draws``."""
NUMBERS = ("log_prior", "log_likelihood", "length")
"""Numbers of every posterior, beside those that the program names."""
DIMENSIONS = ("chain", "draw", "particle", "step", "iteration", "sample")
"""Dimensions of netCDF and ArviZ; ArviZ stacks (chain, draw) as sample."""
CHECK = ("draw", "log weight")
"""Columns of ``ppl-align check``."""
RESERVED = frozenset((*TABLE, *NUMBERS, *DIMENSIONS, *CHECK))
"""Every word of ours. Lengths and dimensions *of a site* (:func:`length_of`, :func:`inner_dimensions`) come on top."""


def columns(names: Iterable[str]) -> dict[str, str]:
    """The column of each site: its name, followed by as many underscores as it takes to be nobody else's.

    >>> columns(["probability", "x", "probability_", "length(x)"])
    {'probability': 'probability__', 'x': 'x', 'probability_': 'probability_', 'length(x)': 'length(x)_'}
    """
    sites = list(dict.fromkeys(names))
    taken, found = set(sites), dict[str, str]()
    for name in sites:
        column = name
        while is_ours(column, taken) or (column != name and column in taken):
            column += "_"
        taken.add(column)
        found[name] = column
    return found


def length_of(site: str) -> str:
    """The number of tokens of one completion among several."""
    return f"length({site})"


def inner_dimensions(key: str, count: int) -> tuple[str, ...]:
    """Dimensions of a site beyond chain and draw: its plates and its own."""
    return tuple(f"{key}_dim_{i}" for i in range(count))


def position_dimension(key: str) -> str:
    """The dimension of a completion's tokens."""
    return f"{key}_position"


def is_ours(column: str, sites: set[str]) -> bool:
    """Is it a word of ours, by itself or about one of the sites?"""
    of_a_site = re.fullmatch(r"length\((.*)\)|(.*)_(?:dim_\d+|position|prompt)", column, re.DOTALL)
    return column in RESERVED or (of_a_site is not None and (of_a_site[1] or of_a_site[2] or "") in sites)
