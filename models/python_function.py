"""A function in Python that compiles, by asking Python.

A hard constraint that is a test of text: what is finished must compile, and what is not must still be able to.
"""

import codeop
from functools import lru_cache
from warnings import catch_warnings

from ppl_align import CausalLM, Predicate, completion, constrain

lm = CausalLM("smollm2-135m")
EXAMPLES = "def double(x):\n    return 2 * x\n\ndef median(numbers):\n"


def python_function(prompt: str = EXAMPLES, max_new_tokens: int = 32):
    """p(body | prompt and body compile): no reward. A blank line ends the body, and so does the length limit."""

    def compiles(text: str) -> bool:
        return _passes(compile, prompt + text)

    def may_compile(text: str) -> bool:
        """Whole lines are judged: an open string, half a word, a line that goes on may still become right."""
        lines = (prompt + text).rpartition("\n")[0]
        while lines.endswith("\\"):
            lines = lines.rpartition("\n")[0]
        return _passes(codeop.compile_command, lines + "\n")

    body = completion("body", lm, prompt, max_new_tokens=max_new_tokens, stop="\n\n")
    constrain("compiles", Predicate(accepts=compiles, viable=may_compile), body)
    return body


@lru_cache(4096)
def _passes(compiler, code: str) -> bool:
    with catch_warnings(action="ignore"):
        try:
            return compiler(code, "<body>", "exec") != ""
        except (SyntaxError, ValueError, OverflowError):
            return False
