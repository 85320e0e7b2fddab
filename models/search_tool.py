"""A question answered with a search tool.

The tool is real: full-text search (SQLite's FTS5, ranked by BM25) over the docstrings of Python's own library.
"""

import re
import sqlite3
from pydoc import getdoc, locate

from ppl_align import CausalLM, completion, environment, reward

lm = CausalLM("smollm2-135m")
_docs = sqlite3.connect(":memory:", check_same_thread=False)
_docs.execute("CREATE VIRTUAL TABLE docs USING fts5(name, doc, tokenize='porter')")
for _module in ("random", "statistics", "string", "textwrap", "shutil", "itertools", "heapq", "json", "calendar"):
    _found = {f"{_module}.{name}": getdoc(f) for name, f in vars(locate(_module)).items() if callable(f)}
    _docs.executemany("INSERT INTO docs VALUES (?, ?)", [(n, d) for n, d in _found.items() if d and "._" not in n])


def _search(query: str) -> str:
    words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", query))
    rank = "SELECT name, doc FROM docs WHERE docs MATCH ? ORDER BY bm25(docs), name LIMIT 1"
    hit = next(_docs.execute(rank, [words]), None) if words else None
    return f"{hit[0]}: " + " ".join(hit[1].split()[:16]) if hit else "nothing found"


def _overlap(pairs: list[str]) -> list[float]:
    """Share of the longer words after the tab that also stand before it."""
    sides = [[set(re.findall(r"[a-z]{4,}", side.lower())) for side in pair.split("\t", 1)] for pair in pairs]
    return [len(said & source) / max(len(said), 3) for source, said in sides]


def search_tool(question: str = "How do I shuffle the items of a list?", beta: float = 0.3, max_new_tokens: int = 12):
    """p0(query) p0(answer | what the query finds) exp((grounded + relevant) / beta)."""
    query = completion("query", lm, f"Question: {question}\nSearch terms:", max_new_tokens=5, stop="\n")
    found = environment("search", _search, query)
    answer = completion("answer", lm, f"{question}\n" + found + "\nIn short, use", max_new_tokens, stop="\n")
    reward("relevant", _overlap, found + f"\t{question}", beta=beta)
    reward("grounded", _overlap, found + "\t" + answer.text, beta=beta)
    return answer
