"""A plan first, then a story that keeps to it.

Two completions in a row; one reward ties them together, another one reads the story alone.
"""

from ppl_align import CausalLM, completion, reward
from ppl_align.rewards import Vader

lm = CausalLM("smollm2-135m")


def _words(text: str) -> set[str]:
    return {word.strip(".,!?\"'").lower() for word in text.split() if len(word) > 4}


def _kept(completions, plan, **columns):
    """The share of the plan's longer words that the story uses."""
    pairs = [(_words(p), _words(story)) for p, story in zip(plan, completions, strict=True)]
    return [len(p & story) / len(p) if p else 0.0 for p, story in pairs]


def plan_then_story(subject: str = "a dog and a thunderstorm", beta: float = 0.35, max_new_tokens: int = 30):
    """p(plan) p(story | plan) exp(kept / beta + mood / 3 beta): plans that lead somewhere, stories that follow them.

    The plan is inferred like the story: the posterior prefers plans that the model can keep.
    """
    opening = f"A short story about {subject}.\nPlan: In the story,"
    plan = completion("plan", lm, opening, max_new_tokens=12, stop=["\n", "."])
    story = completion("story", lm, (opening, plan, "\nStory: One day,"), max_new_tokens=max_new_tokens)
    reward("kept", _kept, story, beta=beta, columns={"plan": plan.text})
    reward("mood", Vader(), story, beta=3 * beta)
    return story
