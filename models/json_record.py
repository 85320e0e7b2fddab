"""A record by JSON schema, and the older the better.

A hard constraint and a reward: the schema is conditioned on, the age is preferred.
"""

import re

from ppl_align import CausalLM, completion, constrain, reward
from ppl_align.constraints import JsonSchema

lm = CausalLM("smollm2-135m")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{2,9}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["happy", "calm", "bored", "angry"]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}

EXAMPLES = """Visitors of the museum:
{"name": "Clara", "age": 71, "mood": "calm"}
{"name": "Ben", "age": 9, "mood": "bored"}
"""


def json_record(prompt: str = EXAMPLES, beta: float = 0.2, max_new_tokens: int = 40):
    """p(record | it obeys the schema) exp(age / 100 / beta): every record is valid, and most visitors are old."""
    record = completion("record", lm, prompt, max_new_tokens=max_new_tokens, stop="}")
    constrain("schema", JsonSchema(SCHEMA), record)
    reward("age", _age, record, beta=beta, upper=1.2)
    return record


def _age(texts: list[str]) -> list[float | None]:
    """In centuries; none of a text without one."""
    found = [re.search('"age": ([0-9]+)', text) for text in texts]
    return [int(age[1]) / 100 if age else None for age in found]
