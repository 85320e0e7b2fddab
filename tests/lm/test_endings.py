"""What ends a text: every EOS id, stop tokens, and strings however they are spelt, in every engine alike."""

import itertools
import math
import sys

import pyro
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ppl_align import (
    SMC,
    CallableLM,
    CausalLM,
    Contains,
    EndsWith,
    Enumeration,
    Grammar,
    ImportanceSampling,
    MarkovLM,
    Posterior,
    Regex,
    Rejection,
    completion,
    constrain,
    look_ahead,
    reward,
)
from ppl_align.core.errors import InputError, PromptError
from ppl_align.lm.completions import Completion

TOKENS = ["a", "\n", "\n\n", "b", "</s>"]
LM = MarkovLM(torch.randn(5, 5, generator=torch.Generator().manual_seed(3)), torch.zeros(5), eos_id=4, tokens=TOKENS)
STOPS = {
    "blank line": "\n\n",
    "word": "ab",
    "several": ["a\nb", "bb", "\n\n\n"],
    "with an id": ["ab", 2],
    "one byte": "\n",
}


def llama(vocab, eos, **config):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": None, "pad_token_id": 0}
    made = LlamaConfig(vocab_size=vocab, eos_token_id=eos, **shape, **heads, initializer_range=0.5, **config)
    return LlamaForCausalLM(made).eval().requires_grad_(False)


def tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<|eos|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|eos|>", clean_up_tokenization_spaces=False)


def by_hand(stop, length, prompt=()):
    """Every sequence, cut where its text first contains a stop string, with its probability."""
    stops = [stop] if isinstance(stop, str) else stop
    strings, ids = [s for s in stops if isinstance(s, str)], [s for s in stops if isinstance(s, int)]
    found = {}
    table, first = LM.log_table.double(), LM.log_initial.double()
    for one in itertools.product(range(5), repeat=length):
        end = next(
            (
                t + 1
                for t in range(length)
                if one[t] == 4 or one[t] in ids or any(s in "".join(TOKENS[v] for v in one[: t + 1]) for s in strings)
            ),
            length,
        )
        cut = one[:end]
        log_p = first[cut[0]] + sum(table[u, v] for u, v in itertools.pairwise(cut))
        found[(*cut, *(4,) * (length - end))] = float(log_p)
    return found


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_a_text_ends_once_it_contains_a_stop_string(stop):
    source, want = LM.completion([], 4, stop=stop), by_hand(stop, 4)

    def program():
        completion("x", LM, [], 4, stop=stop)

    posterior = Enumeration().run(program)
    tokens = posterior.particles["x"].tokens.reshape(-1, 4)
    assert {tuple(row) for row in tokens.tolist()} == set(want)
    assert math.isclose(sum(map(math.exp, want.values())), 1, abs_tol=1e-6)
    sequences = torch.tensor(list(want))
    torch.testing.assert_close(
        source.log_prob(sequences).double(), torch.tensor(list(want.values())).double(), atol=1e-5, rtol=0
    )
    torch.manual_seed(0)
    drawn = source.sample((300,))
    assert {tuple(row) for row in drawn.tolist()} <= set(want)
    ends = source.ended_before(sequences)
    assert (sequences[ends] == 4).all()
    wrong = torch.tensor([1, 1, 0, 3]) if stop == "\n\n" else None
    if wrong is not None:
        assert source.log_prob(wrong).isneginf(), "it goes on after its end"


@pytest.mark.parametrize(
    "constraint", [Contains("ba"), EndsWith("b"), Regex("[ab]*\n\n"), Contains("a") & EndsWith("\n")]
)
@pytest.mark.parametrize("stop", ["\n\n", "ab"])
def test_engines_agree_on_stop_strings_and_constraints(constraint, stop):
    want, meets = by_hand(stop, 4), constraint.compile(LM)
    rows = {row: log_p for row, log_p in want.items() if meets.accepts([tuple(v for v in row if v != 4)])[0]}
    log_z = torch.tensor(list(rows.values())).double().logsumexp(0).item()

    def program():
        constrain("c", constraint, completion("x", LM, [], 4, stop=stop))

    assert math.isclose(Enumeration().run(program).log_evidence.item(), log_z, abs_tol=1e-5)
    twists = (
        [None]
        if not isinstance(constraint, (Contains, EndsWith))
        else [None, look_ahead(LM, constraint, [], 4, stop=stop)]
    )
    engines = [
        ImportanceSampling(500, 8),
        Rejection(200, 8, max_draws=400_000, num_pilot=2000),
        *(SMC(500, 8, twist=twist) for twist in twists),
    ]
    for engine in engines:
        evidence = engine.run(program, seed=1).log_evidence.double().exp()
        error = evidence.std() / math.sqrt(len(evidence)) if evidence.numel() > 1 else torch.tensor(0.02)
        assert abs(evidence.mean() - math.exp(log_z)) < 4.5 * error + 1e-3, engine


def test_stop_strings_cost_no_state_where_one_token_tells():
    assert LM.completion([], 4, stop="\n").stop_ids == (1, 2)
    assert LM.completion([], 4, stop="\n").stop_ids.text is None
    several = LM.completion([], 4, stop="\n\n").stop_ids
    assert several.text is not None
    assert several != LM.completion([], 4, stop="\n").stop_ids
    assert several == LM.completion([], 4, stop="\n\n").stop_ids
    for bad, says in (("", "at once"), ("x", "cannot spell"), ("a\ud83d", "surrogate"), (7, "run from 0 to 4")):
        with pytest.raises(InputError, match=says):
            LM.completion([], 4, stop=bad)


def test_every_eos_id_ends_a_text():
    network = llama(8, [6, 7])
    network.generation_config = GenerationConfig(eos_token_id=[7, 5])
    lm = CausalLM(network)
    assert set(lm.eos_ids) == {5, 6, 7}

    def program():
        x = completion("x", lm, [1, 2], max_new_tokens=3)
        reward("r", lambda tokens: (tokens == 3).sum(-1).double(), x.tokens)

    tokens = Enumeration().run(program).particles["x"].tokens.reshape(-1, 3)
    for eos in (5, 6, 7):
        assert int((tokens[:, 0] == eos).sum()) == 1
    assert [Completion(torch.tensor([3, eos, lm.eos_id]), lm.completion([1], 3)).ids for eos in (5, 6, 7)] == [
        [(3,)]
    ] * 3
    with pytest.raises(InputError, match="EOS id 500"):
        CausalLM(llama(8, 500))
    for strange in ([[5]], ["</s>"], [True], [5.0]):
        network.generation_config.eos_token_id = strange
        with pytest.raises(InputError, match="which is no token id") as error:
            CausalLM(network)
        assert len(str(error.value).splitlines()) == 1


def test_constraints_end_at_every_eos_id():
    tok = tokenizer()
    lm = CausalLM(llama(len(tok), [tok.eos_token_id, tok.convert_tokens_to_ids("<|im_end|>")]), tok)
    a = lm.encode("a")[0]
    for constraint in (Contains("a"), EndsWith("a"), Regex("a"), Grammar('start: "a"')):
        matcher = constraint.compile(lm)
        now = matcher.allowed([(a,), (lm.encode("b")[0],)], 2)
        assert now[0, list(lm.eos_ids)].all()
        assert not now[1, list(lm.eos_ids)].any()


def test_a_special_token_inside_a_text_is_one_event():
    tok = tokenizer()
    lm = CausalLM(llama(len(tok), tok.eos_token_id), tok)
    a, b, end = lm.encode("a")[0], lm.encode("b")[0], tok.convert_tokens_to_ids("<|im_end|>")
    source = lm.completion("x", 3)
    for row in ((a, end, b), (end, a, b), (a, b, end), (a, b, a)):
        text = Completion(torch.tensor(row), source).text
        for constraint, want in (
            (Contains("ab"), "ab" in text),
            (Regex("(?s).*ab.*"), "ab" in text),
            (EndsWith("ab"), text.endswith("ab")),
            (Regex("ab"), text == "ab"),
            (Grammar('start: "ab"'), text == "ab"),
        ):
            assert bool(constraint.compile(lm).accepts([row])[0]) == want, (row, constraint)
    stopped = lm.completion("x", 3, stop="<|im_end|>")
    assert end in stopped.terminal
    assert Completion(torch.tensor([a, end, stopped.pad_id]), stopped).text == "a", "what ends a text is not shown"

    def program():
        constrain("c", EndsWith("a"), completion("x", lm, "x", 1, stop="<|im_end|>"))

    log_p = lm.start([lm.begin(lm.encode("x"))]).log_probs[0].double()
    assert math.isclose(Enumeration().run(program).log_evidence.item(), float(log_p[a]), abs_tol=1e-5)


def test_observed_texts_end_where_they_contain_the_stop_string():
    def program():
        completion("x", LM, "a", 4, obs="b\n\n", stop="\n\n")

    trace = pyro.poutine.trace(program).get_trace()
    assert trace is not None
    with pytest.raises(InputError, match="goes on after"):
        completion("x", LM, "a", 4, obs=[1, 1, 0], stop="\n\n")


def test_callable_toys_take_stop_strings():
    lm = CallableLM(5, lambda prefix: torch.zeros(len(prefix), 5), eos_id=4, tokens=TOKENS)
    x = lm.completion("a", 4, stop="\n\n")
    assert x.log_prob(torch.tensor([1, 1, 4, 4])).exp().item() == pytest.approx(1 / 25)


def test_half_a_character_is_refused():
    tok = tokenizer()
    lm = CausalLM(llama(len(tok), tok.eos_token_id), tok)
    with pytest.raises(PromptError, match="half of a character"):
        lm.completion("so funny \ud83d lol", 2)
    assert sys.getsizeof(lm.encode("fine")) > 0


def test_files_remember_where_texts_end(tmp_path):
    def program():
        completion("x", LM, [], 4, stop=["\n\n", "ab"])

    posterior = ImportanceSampling(50, 2).run(program, seed=0)
    posterior.save(tmp_path / "p.nc")
    again = Posterior.load(tmp_path / "p.nc")
    lengths = posterior.completions["x"].lengths
    assert (lengths < 4).any()
    assert torch.equal(again.completions["x"].lengths, lengths)


def test_strings_that_nothing_can_follow_are_refused():
    """Tokens that end a word (openai-gpt's): no token says on its own what the text will be."""
    made = Tokenizer(
        models.BPE(
            vocab={"<unk>": 0, "a</w>": 1, "b</w>": 2, "a": 3, "b": 4, "ab</w>": 5},
            merges=[("a", "b</w>")],
            unk_token="<unk>",
            end_of_word_suffix="</w>",
        )
    )
    made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder(suffix="</w>")
    made.add_special_tokens(["<eos>"])
    tok = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<eos>")
    lm = CausalLM(llama(len(tok), tok.eos_token_id), tok)
    assert tok.decode([3, 2]) == tok.decode([5]) == "ab"
    for string, why in (("ab", "several of its tokens may"), ("b a", "no token"), ("c", "no token")):
        with pytest.raises(InputError, match=f"contains this string .{why}.*give token ids"):
            lm.completion("a", 3, stop=string)
    assert set(lm.completion("a", 3, stop="b").stop_ids) == {2, 4, 5}
    assert lm.completion("a", 3, stop="<eos>").stop_ids == (6,)
