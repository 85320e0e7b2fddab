"""A language model as a judge: its odds, how they are read off, and the posterior under them."""

from __future__ import annotations

import pickle

import pytest
import torch
from toys.lms import chain

from ppl_align import CallableLM, Enumeration, MarkovLM, completion, reward
from ppl_align.core.cost import measure
from ppl_align.core.errors import InputError
from ppl_align.core.runs import run_memory
from ppl_align.core.text import Texts
from ppl_align.rewards import Judge, PairwiseJudge, evaluate
from ppl_align.rewards.cache import identity
from ppl_align.testing import Oracle, check_reward

TOKENS = ["good ", "bad ", "is it?", " yes", " no", " maybe", "$", "Q:", "vs "]
GOOD, BAD, ASK, YES, NO, MAYBE, EOS, Q, VS = range(9)


def counting(prefix):
    """Says yes in proportion to what is good in the prefix; after yes it goes on with maybe or no."""
    good, bad = (prefix == GOOD).sum(-1).double(), (prefix == BAD).sum(-1).double()
    logits = torch.zeros(len(prefix), 9, dtype=torch.float64)
    logits[:, YES], logits[:, NO] = 0.7 * good, 0.4 * bad + 0.1
    logits[:, MAYBE] = torch.where(prefix[:, -1] == YES, 1.0, 0.0) if prefix.shape[1] else 0.0
    return logits


LM = CallableLM(9, counting, eos_id=EOS, tokens=TOKENS)
PRIOR = CallableLM(9, lambda p: torch.tensor([0.5, 0.2, *[-torch.inf] * 4, 0.1, *[-torch.inf] * 2]).expand(len(p), 9),
                   eos_id=EOS, tokens=TOKENS)  # fmt: skip
ASKED = "{completion}is it?"


def odds(text):
    return 0.7 * text.count("good") - 0.4 * text.count("bad") - 0.1


def test_the_posterior_of_a_judged_completion():
    def program():
        reward("judge", Judge(LM, ASKED), completion("x", PRIOR, "Q:", max_new_tokens=2), beta=0.5)

    oracle = Oracle(program)
    r = torch.tensor([odds(text) for text in oracle.completions["x"].texts()], dtype=torch.float64)
    torch.testing.assert_close(oracle.rewards["judge"], r, atol=1e-6, rtol=0)
    assert float(Enumeration().run(program).log_evidence) == pytest.approx(
        float((oracle.log_prior + r / 0.5).logsumexp(0)), abs=1e-6
    )


def test_prior_and_judge_may_be_one_model():
    lm = MarkovLM(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), initial=torch.zeros(2), tokens=["a", "b"])

    def program():
        reward("judge", Judge(lm, "{completion}", "b", "a"), completion("x", lm, "", max_new_tokens=2), beta=1.0)

    p = torch.tensor([[0.0, 2.0], [1.0, 0.0]]).double().softmax(-1)
    z = sum(0.5 * p[i, j] * p[j, 1] / p[j, 0] for i in range(2) for j in range(2))
    assert float(Enumeration().run(program).log_evidence) == pytest.approx(float(z.log()), abs=1e-6)


def test_answers_of_several_tokens_and_several_spellings():
    texts = ["", "good ", "bad bad "]

    def by_hand(text, answers):
        total = 0.0
        for answer in answers:
            ids, log_p = [*LM.encode(text + "is it?")], 0.0
            for token in LM.encode(answer):
                log_p += LM.start([tuple(ids)]).log_probs[0, token]
                ids.append(token)
            total += torch.as_tensor(log_p).exp()
        return float(torch.log(total))

    for yes, no in [(" yes maybe", " no"), ((" yes", " maybe"), " no"), ((" maybe", " yes maybe"), (" no", "bad "))]:
        expected = [by_hand(t, [yes] if isinstance(yes, str) else yes) for t in texts]
        against = [by_hand(t, [no] if isinstance(no, str) else no) for t in texts]
        r = Judge(LM, ASKED, yes, no)(texts)
        torch.testing.assert_close(torch.tensor(r), torch.tensor(expected) - torch.tensor(against), atol=1e-5, rtol=0)
    assert Judge(LM, ASKED, (" yes", " yes"))(texts) == Judge(LM, ASKED)(texts), "the same answer twice is one"


def test_a_batch_is_one_forward_of_distinct_questions():
    texts = Texts(["good ", "bad ", "good ", "good bad "])
    with measure() as cost, run_memory():
        evaluate("r", Judge(LM, ASKED), texts)
        evaluate("r", Judge(LM, ASKED), texts)  # written anew in the model's body: still the same judge
    assert (cost.reward_calls, cost.prompt_tokens, cost.lm_tokens, cost.scored_tokens) == (3, 2 + 2 + 3, 0, 0)
    many = [("good " * (i % 5)) + ("bad " * (i % 7)) for i in range(100)]
    assert Judge(LM, ASKED)(many) == pytest.approx([odds(text) for text in many], abs=1e-6)


def test_the_prompt_is_in_the_question_where_it_is_asked_for():
    judge = Judge(LM, "{prompt}{completion}is it?")
    x = completion("x", PRIOR, "good ", max_new_tokens=1)
    assert float(evaluate("r", judge, x)) == pytest.approx(odds("good " + x.text), abs=1e-6)
    assert judge(["bad "], prompts=[[{"role": "user", "content": "good "}]]) == [pytest.approx(odds("good bad "))]
    with pytest.raises(InputError, match=r"has a \{prompt\}: give it the completion"):
        evaluate("r", judge, "bad ")


def test_a_chat_question_goes_through_the_template():
    class Chat(CallableLM):
        def chat_ids(self, messages):
            assert [m["role"] for m in messages] == ["system", "user"]
            return self.encode("Q:" + "".join(m["content"] for m in messages) + "is it?")

    lm = Chat(9, counting, eos_id=EOS, tokens=TOKENS)
    messages = [{"role": "system", "content": "bad "}, {"role": "user", "content": "{completion}"}]
    assert Judge(lm, messages)(["good "]) == [pytest.approx(odds("good bad "))]
    assert Judge(lm, messages) == Judge(lm, [dict(m) for m in messages])
    assert hash(Judge(lm, messages)) == hash(Judge(lm, messages))


def test_a_text_with_braces_is_not_a_template():
    fields = Judge(LM, "{completion}{other}")
    from ppl_align.rewards.judge import _fill

    assert _fill(fields.question, prompt="p", completion="{prompt}") == "{prompt}{other}"


def position_bias(prefix):
    """Likes A by 3 wherever it stands, and the text with more good in its own half of the question."""
    rows = []
    for row in prefix.tolist():
        at = row.index(VS)
        ahead = row[:at].count(GOOD) - row[at:].count(GOOD)
        rows.append([0, 0, 0, 3.0 + 0.5 * ahead, 0.0, 0, 0, 0, 0])
    return torch.tensor(rows, dtype=torch.float64)


def test_position_bias_cancels():
    lm = CallableLM(9, position_bias, tokens=TOKENS)
    question = "{first}vs {second}is it?"

    def beats(text, other):
        return PairwiseJudge(lm, question, other, " yes", " no")([text])[0]

    assert beats("good good ", "good ") == pytest.approx(0.5, abs=1e-6)
    assert beats("good ", "good good ") == -beats("good good ", "good ")
    assert beats("bad ", "bad ") == 0
    one_order = Judge(lm, "{completion}vs good is it?")(["bad "])[0]
    assert one_order == pytest.approx(2.5), "one order alone is fooled"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Judge("lm", ASKED), "the first is a language model, got str"),
        (lambda: Judge(LM, "is it?"), "the question has no {completion}"),
        (lambda: Judge(LM, [{"role": "user", "content": "is it?"}]), "the question has no {completion}"),
        (lambda: Judge(LM, ASKED, yes=""), "an answer has at least one token"),
        (lambda: Judge(LM, ASKED, no=()), "an answer has at least one token"),
        (lambda: Judge(LM, ASKED, " yes", " yes"), "one answer begins with another"),
        (lambda: Judge(LM, ASKED, " yes", " yes maybe"), "one answer begins with another"),
        (lambda: PairwiseJudge(LM, "{first}is it?", "good "), "the question has no {second}"),
        (lambda: PairwiseJudge(LM, "{first}{second}", 3, " yes", " no"), "is a text, got int"),
    ],
)
def test_bad_questions(make, says):
    with pytest.raises(InputError, match=says):
        make()


@pytest.mark.parametrize("kind", ["one", "two"])
def test_the_contract_and_the_identity(kind):
    lm = chain(9, 1, dtype=torch.float32, tokens=TOKENS)
    make = {
        "one": lambda: Judge(lm, "{prompt}{completion}is it?"),
        "two": lambda: PairwiseJudge(lm, "{prompt}{first}vs {second}is it?", "bad ", " yes", " no"),
    }[kind]
    judge = make()
    assert make() == judge
    assert identity(make()) == identity(judge)
    texts = ["good ", "bad ", "good bad ", ""]
    check_reward(judge, texts, prompts="Q:").raise_if_failed()
    copied = pickle.loads(pickle.dumps(judge))
    assert copied(texts, prompts=["Q:"] * 4) == judge(texts, prompts=["Q:"] * 4)
