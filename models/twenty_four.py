"""A sum that comes to 24: a grammar, a reward by checking.

The grammar says what a sum looks like, brackets and all; whether it is right is found out by doing it.
"""

import ast
from contextlib import suppress
from operator import add, mul, sub

from ppl_align import CausalLM, Grammar, completion, constrain, reward

lm = CausalLM("smollm2-135m")

EXAMPLES = "21 = (2 + 5) * 3. 64 = 50 + 14. 10 = 2 * (8 - 3)."
SUM = r"""
start: " " expression "."
expression: term " " SIGN " " term
term: /[1-9][0-9]?/ | "(" expression ")"
SIGN: "+" | "-" | "*"
"""


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.BinOp):
        return {ast.Add: add, ast.Sub: sub, ast.Mult: mul}[type(node.op)](_value(node.left), _value(node.right))
    return int(node.value)


def twenty_four(target: int = 24, beta: float = 0.3, max_new_tokens: int = 14):
    """p(sum | examples, it is one) exp(correct / beta): a right sum weighs exp(1 / beta) as much as a wrong one."""

    def correct(text: str) -> float:
        with suppress(SyntaxError, ValueError, TypeError, LookupError, AttributeError):
            return float(_value(ast.parse(text.strip(" ."), mode="eval").body) == target)
        return 0.0  # no sum at all

    answer = completion("answer", lm, f"{EXAMPLES} {target} =", max_new_tokens=max_new_tokens, stop=".")
    constrain("sum", Grammar(SUM), answer)
    reward("correct", lambda texts: [correct(text) for text in texts], answer, beta=beta, upper=1.0)
    return answer
