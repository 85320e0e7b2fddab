"""Two TRL reward functions, with weights and a data column.

`reward_funcs` is TRL's argument of that name; what is a keyword here is a column of its data set.
"""

from ppl_align import CausalLM, completion, reward_funcs

lm = CausalLM("smollm2-135m")


def _short_words(completions, **kwargs):
    """Minus the mean number of letters; None, "does not apply", where there is no word."""
    words = [text.split() for text in completions]
    return [-sum(map(len, found)) / len(found) if found else None for found in words]


def _alliteration(completions, letter, **kwargs):
    """Share of the words that begin with the letter of their row."""
    words = [text.lower().split() for text in completions]
    return [sum(w.startswith(x) for w in found) / max(1, len(found)) for found, x in zip(words, letter, strict=True)]


def trl_rewards(prompt: str = "The old sailor said", letter: str = "s", beta: float = 0.3, max_new_tokens: int = 20):
    """p(tale | prompt) exp((0.2 short_words + 2 alliteration) / beta): one factor for each function."""
    tale = completion("tale", lm, prompt, max_new_tokens=max_new_tokens)
    reward_funcs([_short_words, _alliteration], tale, beta=beta, weights=[0.2, 2.0], letter=letter)
    return tale
