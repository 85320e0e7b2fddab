"""Which networks are read how, measured: rewrites the tables of supported-models.md, and the fingerprints in
ppl_align/lm/verified.json (two minutes on one core).

`python docs/supported_models.py`
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import transformers

from ppl_align.lm.verified import VERIFIED
from ppl_align.testing.held import Held, fingerprint_if_right, hold
from ppl_align.testing.zoo import RELEASED, ZOO, network

PAGE = Path(__file__).with_name("supported-models.md")
WORDS = {"cache": "with its cache", "cache by length": "a cache for each length of prompt", "recompute": "without it"}


REASONS = {
    "is an encoder": "refused: an encoder",
    "both directions": "refused: reads a text in both directions",
    "rounding decides": "refused: rounding decides what it attends to",
    "rows read together": "refused: rows change with what is read beside them",
}


def row(name: str, held: Held) -> str:
    """A line of the table."""
    if held.plan == "refused":
        how = next(short for said, short in REASONS.items() if said in held.said)
    else:
        how = WORDS[held.plan] + ("" if held.limit is None else f" up to {held.limit} tokens, then without it")
        how += "; a common beginning once" if held.shares else ""
    return f"| {name} | `{held.kind}` | {how} |"


def tables() -> str:
    """Every network of the zoo, and the released ones that need no trial."""
    lines = ["| network | class | read |", "|---|---|---|", *(row(name, hold(network(name))) for name in ZOO)]
    return "\n".join(lines)


def main() -> None:
    """Writes the page and the fingerprints."""
    transformers.utils.logging.set_verbosity_error()  # which fast kernels are not installed
    known = {name: fingerprint_if_right(network(name)) for name in RELEASED}
    VERIFIED.write_text(json.dumps(dict(sorted(said for said in known.values() if said)), indent=0) + "\n")
    released = ", ".join(name for name, print_ in known.items() if print_)
    page = PAGE.read_text(encoding="utf-8")
    page = re.sub(r"(<!-- zoo -->\n).*?(?=<!-- end -->)", lambda m: f"{m[1]}{tables()}\n", page, flags=re.S)
    page = re.sub(r"(<!-- released -->\n).*?(?=<!-- end -->)", lambda m: f"{m[1]}{released}.\n", page, flags=re.S)
    PAGE.write_text(page, encoding="utf-8")
    sys.stdout.write(f"{PAGE.name}: {len(ZOO)} networks, {len(RELEASED)} released\n")


if __name__ == "__main__":
    main()
