r"""Looking ahead in strict patterns against masks alone, at equal LM tokens: error of log Z on SmolLM2.

    python benchmarks/lookahead_patterns.py [--only date phone ...] [--seeds 4] [--kind core|published|all] [--ends ...]

For each pattern: log Z of a reference (looking ahead, 16 replicates of N particles, N doubled up to 1024, 2^14 in all,
until its standard error is below .05); then, for growing sizes (N particles, a pool of M draws), the root mean square
error of log Zhat of

    ahead   SMC(N, 4, twist="lookahead", num_pool=M): four replicates, which share the pool, as by default; it is on the
            bill, and every seed has its own
    masks   SMC(N', 4): particles within the mask, weighed by what it leaves out; N' for as many LM tokens

up to the first size at which the better of the two is below .5. A run whose particles all die counts as an error of
``DEAD`` nats for either. An error of the reference of .05 is part of both.

``--ends eos``: the pattern is the whole text, which the model has to end itself; ``--ends stop``: a character of the
pattern stops it, as in a sentence, a quoted string or a line. What has been measured is kept in ``--out`` and not
measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_align import SMC, CausalLM, Regex, completion, constrain
from ppl_align.core.errors import AllDeadError
from ppl_align.core.files import written_beside

SIZES = ((5, 32), (8, 32), (16, 64), (32, 64), (64, 128), (128, 256))
ENOUGH, DEAD = 0.5, 20.0
REPLICATES, LARGEST, PRECISE = 16, 1024, 0.05
SHARED = 4  # replicates of a run


class Case(NamedTuple):
    """A pattern and a prompt that asks for it: at most ``length`` tokens, ended by ``stop``."""

    prompt: str
    pattern: str
    length: int
    stop: str


def ended_by_the_model(case: Case) -> Case:
    """The pattern without the character that stops it: nothing but the model's own end of the text does."""
    escaped = r"\." if case.stop == "." else r"\n" if case.stop == "\n" else case.stop
    assert case.pattern.endswith(escaped), case
    return Case(case.prompt, case.pattern.removesuffix(escaped), case.length, "")


HEX, DIGIT = "[0-9a-f]", "[0-9]"
MONTHS = "(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
CORE = {
    "date": Case("The meeting took place on", r" [0-9]{4}-[0-9]{2}-[0-9]{2}\.", 16, "."),
    "phone": Case("You can reach our office at", r" [0-9]{3}-[0-9]{3}-[0-9]{4}\.", 18, "."),
    "hex colour": Case("The background colour of the page is", r" #[0-9a-fA-F]{6}\.", 14, "."),
    "e-mail": Case("For more information, write to", r" [a-z0-9._]+@[a-z0-9]+\.(com|org|net|edu)\n", 20, "\n"),
}
PUBLISHED = {
    "url": Case("The project lives at", r" https?://[a-z0-9.-]+\.(com|org|net|io)(/[a-z0-9_/-]*)?\n", 24, "\n"),
    "url, www": Case("Visit our web site:", r" www\.[a-z0-9-]+\.(com|org|net)\n", 16, "\n"),
    "domain": Case('{"domain": "', r'[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z]{2,4}"', 16, '"'),
    "ipv4": Case("The server answers at", r" ([0-9]{1,3}\.){3}[0-9]{1,3}\n", 20, "\n"),
    "ipv4, exact": Case(
        '{"ip": "', r'((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"', 18, '"'
    ),
    "ipv6": Case('{"ipv6": "', rf'({HEX}{{1,4}}:){{7}}{HEX}{{1,4}}"', 42, '"'),
    "cidr": Case("The subnet is", r" ([0-9]{1,3}\.){3}[0-9]{1,3}/[0-9]{1,2}\n", 22, "\n"),
    "mac address": Case('{"mac": "', rf'({HEX}{{2}}:){{5}}{HEX}{{2}}"', 28, '"'),
    "uuid": Case('{"id": "', rf'{HEX}{{8}}(-{HEX}{{4}}){{3}}-{HEX}{{12}}"', 42, '"'),
    "git hash": Case("Fixed in commit", rf" {HEX}{{7}}\n", 12, "\n"),
    "md5": Case('{"md5": "', rf'{HEX}{{32}}"', 36, '"'),
    "semantic version": Case(
        "We have released version", r" [0-9]+\.[0-9]+\.[0-9]+(-(alpha|beta|rc)\.?[0-9]*)?\n", 14, "\n"
    ),
    "version, python": Case("Requires Python", r" ?(>=|==|~=) ?[0-9]\.[0-9]{1,2}(\.[0-9]+)?\n", 12, "\n"),
    "iso timestamp": Case('{"created": "', r'[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"', 26, '"'),
    "iso date, strict": Case('{"date": "', r'(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"', 14, '"'),
    "iso week": Case("The report of the week", r" [0-9]{4}-W[0-9]{2}\n", 14, "\n"),
    "us date": Case("Born:", r" (0[1-9]|1[0-2])/(0[1-9]|[12][0-9]|3[01])/(19|20)[0-9]{2}\n", 16, "\n"),
    "date in words": Case("The treaty was signed on", rf" [0-9]{{1,2}} {MONTHS} [0-9]{{4}}\n", 14, "\n"),
    "time": Case("The train leaves at", r" ([01][0-9]|2[0-3]):[0-5][0-9]\.", 10, "."),
    "time, am or pm": Case("The shop opens at", r" (1[0-2]|[1-9]):[0-5][0-9] (AM|PM)\n", 12, "\n"),
    "duration": Case('{"duration": "', r'PT([0-9]+H)?([0-9]+M)?([0-9]+S)?"', 14, '"'),
    "iban": Case("IBAN:", r" [A-Z]{2}[0-9]{2}( [0-9]{4}){4} [0-9]{2}\n", 34, "\n"),
    "bic": Case('{"bic": "', r'[A-Z]{6}[A-Z0-9]{2}([A-Z0-9]{3})?"', 14, '"'),
    "credit card": Case("Card number:", r" [0-9]{4}( [0-9]{4}){3}\n", 26, "\n"),
    "us dollars": Case("The ticket costs", r" \$[0-9]{1,3}(,[0-9]{3})*(\.[0-9]{2})?\n", 14, "\n"),
    "euros": Case("Der Preis beträgt", r" [0-9]{1,3}(\.[0-9]{3})*,[0-9]{2} €\n", 14, "\n"),
    "percentage": Case("The growth rate was", r" -?[0-9]{1,2}(\.[0-9]{1,2})?%\.", 12, "."),
    "coordinates": Case("The island lies at", r" -?[0-9]{1,2}\.[0-9]{2,4}, -?[0-9]{1,3}\.[0-9]{2,4}\n", 24, "\n"),
    "degrees": Case("Location:", r" [0-9]{1,2}°[0-9]{1,2}'[NS] [0-9]{1,3}°[0-9]{1,2}'[EW]\n", 22, "\n"),
    "isbn": Case("ISBN", r" 97[89]-[0-9]-[0-9]{2,5}-[0-9]{2,5}-[0-9]\n", 24, "\n"),
    "issn": Case("ISSN", r" [0-9]{4}-[0-9]{3}[0-9X]\n", 14, "\n"),
    "doi": Case("doi:", r" ?10\.[0-9]{4,5}/[a-z0-9.-]{4,16}\n", 26, "\n"),
    "arxiv": Case("The preprint is", r" arXiv:[0-9]{4}\.[0-9]{4,5}(v[0-9])?\n", 18, "\n"),
    "licence plate": Case("The licence plate of the car was", r" [A-Z]{1,3}[ -][A-Z]{0,2} ?[0-9]{1,4}\.", 14, "."),
    "uk postcode": Case(
        "Her address is 12 High Street, London", r",? [A-Z]{1,2}[0-9][0-9A-Z]? [0-9][A-Z]{2}\n", 14, "\n"
    ),
    "us zip code": Case("Springfield, Illinois", r",? [0-9]{5}(-[0-9]{4})?\n", 16, "\n"),
    "social security": Case("SSN:", r" [0-9]{3}-[0-9]{2}-[0-9]{4}\n", 16, "\n"),
    "phone, e.164": Case("Call us:", r" \+[1-9][0-9]{7,14}\n", 20, "\n"),
    "stock ticker": Case("Shares of Apple trade as", r" \(?(NYSE|NASDAQ): ?[A-Z]{1,5}\)?\.", 12, "."),
    "file path": Case("The configuration is in", r" /([a-z0-9_.]+/)+[a-z0-9_]+\.(conf|cfg|ini|json|yaml)\n", 20, "\n"),
}
CASES = {**CORE, **PUBLISHED}


def model(lm: CausalLM, case: Case) -> None:
    """What the prompt asks for, and nothing else."""
    x = completion("x", lm, case.prompt, max_new_tokens=case.length, stop=case.stop or ())
    constrain("format", Regex(case.pattern), x)


def reference(lm: CausalLM, case: Case) -> tuple[float, float, int]:
    """log Z, its standard error, and how many particles there were in all."""
    particles = 32
    while True:
        engine = SMC(particles, REPLICATES, twist="lookahead", num_pool=256)
        log_z = engine.run(model, lm, case, seed=12345).log_evidence
        pooled = float(log_z.logsumexp(0)) - math.log(REPLICATES)
        error = float((log_z - pooled).exp().std()) / math.sqrt(REPLICATES)
        if error < PRECISE or particles >= LARGEST:
            return pooled, error, particles * REPLICATES
        particles *= 4 if error > 2 * PRECISE else 2


def runs_of(engine: SMC, lm: CausalLM, case: Case, seeds: int) -> tuple[Tensor, float]:
    """log Zhat of all replicates of all seeds, -inf where all particles of one die, and the LM tokens of a run."""
    found, tokens = [], []
    for seed in range(seeds):
        try:
            run = engine.run(model, lm, case, seed=seed)
        except AllDeadError:
            found.append(torch.full((SHARED,), -math.inf, dtype=torch.float64))
            continue
        found.append(run.log_evidence)
        tokens.append(float(run.cost.lm_tokens))
    return torch.cat(found), statistics.fmean(tokens) if tokens else math.nan


def masked(lm: CausalLM, case: Case, tokens: float, seeds: int) -> tuple[Tensor, int, float]:
    """Of masks with so many particles that a run takes ``tokens``; their number, and the tokens."""
    particles = max(2, round(tokens / case.length / SHARED))
    for _ in range(5):
        _, spent = runs_of(SMC(particles, SHARED), lm, case, 1)
        if not spent > 0 or abs(spent / tokens - 1) < 0.1:
            break
        particles = max(2, round(particles * tokens / spent))
    log_z, spent = runs_of(SMC(particles, SHARED), lm, case, seeds)
    return log_z, particles, spent


def rmse(log_z: Tensor, truth: float) -> float:
    """Of log Zhat, nats."""
    return float((log_z - truth).clamp_min(-DEAD).square().mean().sqrt())


def measure(lm: CausalLM, name: str, case: Case, seeds: int) -> dict[str, Any]:
    """What was found, at the first size at which one of both is good enough."""
    start = time.perf_counter()
    truth, error, particles = reference(lm, case)
    for n, pool in SIZES:
        looking, tokens = runs_of(SMC(n, SHARED, twist="lookahead", num_pool=pool), lm, case, seeds)
        tokens = tokens if tokens > 0 else float((SHARED * n + pool) * case.length)
        ahead = rmse(looking, truth)
        found, n_masks, spent = masked(lm, case, tokens, seeds)
        blind = rmse(found, truth)
        if min(ahead, blind) < ENOUGH:
            break
    return {
        "pattern": name,
        "log_z": truth,
        "error": error,
        "of": particles,
        "n": n,
        "pool": pool,
        "tokens": tokens,
        "ahead": ahead,
        "n_masks": n_masks,
        "tokens_masks": spent,
        "masks": blind,
        "ratio": ahead / blind,
        "seconds": time.perf_counter() - start,
    }


def line_of(row: dict[str, Any]) -> str:
    """For the terminal."""
    return (
        f"{row['pattern']:>17} {row['log_z']:8.2f} {row['error']:5.3f} {row['of']:6d} {row['n']:4d} {row['pool']:4d} "
        f"{row['tokens']:7.0f} {row['ahead']:7.3f} {row['n_masks']:6d} {row['tokens_masks']:7.0f} {row['masks']:7.3f} "
        f"{row['ratio']:6.2f} {row['seconds']:6.0f}s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), metavar="NAME")
    parser.add_argument("--kind", choices=["core", "published", "all"], default="all")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--ends", choices=["eos", "stop"], default="eos")
    parser.add_argument("--out", type=Path, default=Path("build/lookahead"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kinds = {"core": CORE, "published": PUBLISHED, "all": CASES}
    names = options.only or list(kinds[options.kind])
    logging.disable(logging.WARNING)
    lm = CausalLM("smollm2-135m")
    print(
        f"{'pattern':>17} {'log Z':>8} {'error':>5} {'of':>6} {'N':>4} {'pool':>4} {'tokens':>7} {'ahead':>7} "
        f"{'N masks':>6} {'tokens':>7} {'masks':>7} {'ratio':>6}"
    )
    ratios: dict[str, float] = {}
    for name in names:
        case = ended_by_the_model(CASES[name]) if options.ends == "eos" else CASES[name]
        key = hashlib.sha256(repr((case, options.seeds)).encode()).hexdigest()[:16]
        path = options.out / f"{key}.json"
        if not path.exists():
            with written_beside(path) as temporary:
                temporary.write_text(json.dumps(measure(lm, name, case, options.seeds)))
        row = json.loads(path.read_text())
        ratios[name] = row["ratio"]
        print(line_of(row), flush=True)
    published = [ratio for name, ratio in ratios.items() if name in PUBLISHED]
    print(f"core, the largest ratio: {max((r for n, r in ratios.items() if n in CORE), default=math.nan):.2f}")
    if published:
        print(f"published ({len(published)}): median {statistics.median(published):.2f}, largest {max(published):.2f}")


if __name__ == "__main__":
    main()
