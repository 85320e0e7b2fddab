"""Texts that cross blocks of the cache, and prompts that begin alike: as forwards without a cache say."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from toys.networks import lora, network

from ppl_align import SMC, SVI, CausalLM, ImportanceSampling, completion, reward
from ppl_align.core.cost import measure
from ppl_align.core.turns import Turns
from ppl_align.lm import kv_cache, meeting, sharing
from ppl_align.lm.base import Ids
from ppl_align.lm.cached import CausalDecoder
from ppl_align.lm.decoding import Population
from ppl_align.lm.kv_cache import cache_bytes
from ppl_align.lm.prefix_cache import PrefixCache
from ppl_align.testing.held import alone

KINDS = ["llama", "gpt2", "mistral"]  # grouped heads, a table of positions, a window
COMMON = (3, 8, 1, 1, 7, 0, 5)
PROMPTS = {
    "one": [(*COMMON, 2)],
    "of one length": [(*COMMON, 2), (*COMMON, 4)],
    "of many lengths": [(*COMMON, 2, 9, 9), (*COMMON, 4), COMMON, (*COMMON, 2, 5)],
    "nothing in common": [(4, 1, 1), COMMON, (9,)],
}
MOVES = [  # parents and tokens: rows branch, change places, are dropped, stay
    ([0, 0, -1], [2, 3, 3]),
    ([2, 1, 0, 0, 2], [1, 9, 4, 10, 0]),
    ([0, 1, 2, 3, 4], [1, 1, 2, 3, 5]),
    ([4, 1, 1], [8, 8, 1]),
    ([0, 1, 2], [3, 3, 3]),
    ([2, 2, 2, 1], [1, 2, 0, 4]),
]


def exactly(model: torch.nn.Module) -> CausalLM:
    """In double precision, so that nothing but the order of rows and places can be wrong."""
    return CausalLM(model, dtype=torch.float64)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few tokens cross blocks, and are worth holding once."""
    monkeypatch.setattr(kv_cache, "SHORT", 0)
    monkeypatch.setattr(kv_cache, "BLOCK", 3)
    monkeypatch.setattr(sharing, "SHARED", 4)


def moved(decoder, rows: Sequence[Ids], moves=MOVES) -> Iterator[tuple[torch.Tensor, list[Ids]]]:
    """What a decoder says, and of which rows, at the beginning and after each move."""
    yield decoder.log_probs, list(rows)
    for parents, tokens in moves:
        at = [parent % len(rows) for parent in parents]
        decoder = decoder.extend(torch.tensor(at), torch.tensor(tokens))
        rows = [(*rows[parent], token) for parent, token in zip(at, tokens, strict=True)]
        yield decoder.log_probs, rows


def error(lm: CausalLM, decoder, rows: Sequence[Ids]) -> float:
    """Nats a token."""
    said = list(moved(decoder, rows))
    expected = alone(lm.model, [row for _, rows in said for row in rows])
    return float((torch.cat([log_p for log_p, _ in said]) - expected).abs().max())


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_branch_move_and_are_dropped(kind: str, prompts: str):
    lm = exactly(network(kind))
    decoder = lm.start(PROMPTS[prompts])
    shares = kind != "mistral" and prompts != "nothing in common"
    assert (decoder.prefix is not None) == shares
    assert error(lm, decoder, PROMPTS[prompts]) < 1e-5


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scores", [2**22, 1], ids=["at once", "in turns"])
def test_texts_are_scored(kind: str, prompts: str, scores: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ppl_align.lm.shared_attention._SCORES", scores)
    lm = exactly(network(kind))
    rows = [prompt for prompt in PROMPTS[prompts] for _ in range(2)]
    tokens = torch.randint(lm.vocab_size, (len(rows), 5))
    found = lm.token_log_probs(rows, tokens)
    beginnings = [(*row, *ids[:t]) for row, ids in zip(rows, tokens.tolist(), strict=True) for t in range(5)]
    expected = alone(lm.model, beginnings).gather(-1, tokens.reshape(-1, 1)).view_as(tokens)
    assert float((found - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("others", [[], [(*COMMON, 6)], [(9, 9)]], ids=["all go on", "one is new", "one is another"])
@pytest.mark.parametrize("glue", [(4, 1), ()], ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_texts_that_have_ended_are_gone_on_from(kind: str, glue: Ids, others: list[Ids]):
    lm, kept = exactly(network(kind)), PrefixCache()
    texts = Population(lm.completion([*COMMON, 2], 5).expand((20,)), kept=kept, keep=True).run()
    ended = [tuple(row[:n]) for row, n in zip(texts.tokens.tolist(), texts.lengths.tolist(), strict=True)]
    prompts = [(*COMMON, 2, *text, *glue) for text in dict.fromkeys(ended)] + others
    assert len(kept.prefixes) == 1
    with measure() as cost:
        decoder = kept.start(lm, prompts)
    assert (decoder.prefix is None) == ((9, 9) in others)
    assert others or cost.prompt_tokens <= len(prompts) * (len(glue) + 1)
    assert error(lm, decoder, prompts) < 1e-5


def test_what_is_kept_of_texts_that_shared_nothing_is_shared(monkeypatch: pytest.MonkeyPatch):
    lm, kept = exactly(network()), PrefixCache()
    monkeypatch.setattr(sharing, "SHARED", 100)
    first = [(*COMMON, 2), (*COMMON, 4, 4)]
    decoder = lm.start(first)
    kept.keep(lm, decoder, torch.arange(2).numpy(), first)
    monkeypatch.setattr(sharing, "SHARED", 4)
    prompts = [(*prompt, *more) for prompt in first for more in ((1,), (2, 3))]
    decoder = kept.start(lm, prompts)
    assert decoder.shared == len(COMMON)
    assert error(lm, decoder, prompts) < 1e-5


def test_texts_that_began_in_two_ways_share_what_they_have_in_common():
    lm, kept = exactly(network()), PrefixCache()
    prompts = []
    for begin in ([*COMMON, 2], [*COMMON, 4, 4]):
        texts = Population(lm.completion(begin, 4).expand((6,)), kept=kept, keep=True).run()
        ended = [tuple(row[:n]) for row, n in zip(texts.tokens.tolist(), texts.lengths.tolist(), strict=True)]
        prompts += [(*begin, *text, 1) for text in dict.fromkeys(ended)]
    assert [prefix.length for prefix in kept.prefixes] == [8, 9]
    decoder = kept.start(lm, prompts)
    assert decoder.shared == len(COMMON)
    assert error(lm, decoder, prompts) < 1e-5


def test_a_run_among_others_draws_what_it_draws_alone():
    lm = CausalLM(network())

    def program(prompt: list[int]) -> None:
        x = completion("x", lm, prompt, max_new_tokens=6)
        y = completion("y", lm, (prompt, x, [4, 1]), max_new_tokens=4)
        reward("r", lambda t: (t == 1).double().sum(-1), y.tokens)

    prompts = [[*COMMON, 1], [*COMMON, 2, 2], [*COMMON, 5]]
    engine = SMC(8, 2, twist="prefix")
    works = [lambda seed=seed, p=p: engine.run(program, p, seed=seed) for seed, p in enumerate(prompts)]
    for seed, outcome in enumerate(Turns(meeting.serve).run(works)):
        on_its_own = engine.run(program, prompts[seed], seed=seed)
        assert torch.equal(outcome.value.completions["x"].tokens, on_its_own.completions["x"].tokens)
        assert torch.allclose(outcome.value.log_weight, on_its_own.log_weight, atol=1e-4)


def test_an_adapted_network():
    lm = exactly(lora(network()).eval().requires_grad_(False))
    decoder = lm.start(PROMPTS["of many lengths"])
    assert decoder.prefix is not None
    assert error(lm, decoder, PROMPTS["of many lengths"]) < 1e-5


@pytest.mark.parametrize("targets", [["q_proj"], ["down_proj"], "all-linear"], ids=str)
def test_gradients_are_those_of_the_network(targets: str | list[str]):
    """What a gradient needs is not written over."""
    lm = exactly(network())
    model = lora(lm.model, targets).double()
    for module in model.modules():
        module.training = False
    lm.model, lm.unembedding = model, model.get_output_embeddings()
    tokens = torch.tensor([[1, 5, 3, 2, 9], [4, 4, 0, 9, 1]])
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    ids = torch.cat([torch.tensor([COMMON, COMMON]), tokens], 1)
    logits = model(input_ids=ids, use_cache=False).logits[:, len(COMMON) - 1 : -1]
    expected = torch.autograd.grad(picked(logits, tokens), weights)
    found = torch.autograd.grad(picked(lm.teacher_forced([COMMON, COMMON], tokens)[0], tokens), weights)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # logits are shown in float32


def picked(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logits.double().log_softmax(-1).gather(-1, tokens[..., None]).sum()


def test_a_lora_guide_learns_behind_a_long_prompt():
    lm = CausalLM(network())

    def program() -> None:
        x = completion("x", lm, COMMON, max_new_tokens=5)
        reward("r", lambda t: (t == 2).double().sum(-1), x.tokens)

    run = SVI(num_steps=3, num_particles=8, num_replicates=2, guide="lora").run(program, seed=0)
    site = run.completions["x"]
    again = run.guide.sites["x"].lm.completion(list(COMMON), 5).log_prob(site.tokens)
    assert torch.allclose(run.log_proposal.reshape(again.shape), again.double(), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_rounding_is_no_worse_than_it_was(kind: str, dtype: torch.dtype):
    """Root mean square, nats a token, against the same weights in double precision."""
    lm, rows = CausalLM(network(kind), dtype=dtype), PROMPTS["of many lengths"]
    exact = copy.deepcopy(lm.model).double()
    off = {}
    for shared in (0, len(COMMON) - 1):
        said = list(moved(CausalDecoder.after(lm, rows, shared=shared), rows))
        expected = alone(exact, [row for _, some in said for row in some])
        off[shared] = float((torch.cat([log_p for log_p, _ in said]) - expected).square().mean().sqrt())
    assert sharing.can_share(lm)
    assert off[len(COMMON) - 1] < 1.25 * off[0] < 50 * torch.finfo(dtype).eps


def test_rows_that_stay_are_not_moved():
    """Memory is taken for a block; within it a row keeps its place, and new ones take the places of those dropped."""
    lm = CausalLM(network())
    decoder = lm.start([(*COMMON, 2)]).extend(torch.zeros(4, dtype=torch.long), torch.arange(4))
    layer = decoder.cache.layers[0]
    place, before = layer.keys.data_ptr(), layer.keys.clone()
    decoder.extend(torch.tensor([0, 2, 2, 3]), torch.arange(4))
    assert layer.keys.data_ptr() == place
    assert torch.equal(layer.keys[:, :, :1], before[[0, 2, 2, 3]])
    moves = kv_cache.Moves.of(torch.tensor([0, 2, 2, 3]), lm.device)
    assert (moves.to.tolist(), moves.source.tolist()) == ([1], [2])


@torch.no_grad()
def test_a_long_prompt_is_held_once(monkeypatch: pytest.MonkeyPatch):
    """Counted, 64 rows that differ: at most a third of what rows take that each hold all of it, and no more."""
    monkeypatch.undo()
    lm = CausalLM(network())
    prompt = tuple(torch.randint(lm.vocab_size, (1000,)).tolist())
    token = 2 * 2 * 2 * 4 * 4  # layers, keys and values, heads, size of a head, bytes
    held = {}
    for shared in (0, 1000):
        decoder = CausalDecoder.after(lm, [prompt], shared=shared)
        parents = torch.zeros(64, dtype=torch.long)
        for _ in range(32):
            decoder = decoder.extend(parents, torch.randint(lm.vocab_size, (64,)))
            parents = torch.arange(64)
        held[shared] = cache_bytes(decoder.cache)
    assert held[1000] <= token * 64 * 1032 / 3
    assert held[1000] == token * (1136 + 64 * 32)  # an eighth more than 1,000, in blocks of 16
    assert held[0] == token * 64 * 1136
    assert decoder.keep(torch.arange(64)).bytes == token * 64 * 32


def test_the_network_is_as_it_was_found(monkeypatch: pytest.MonkeyPatch):
    """Its attention is another only while a forward is under way, and is then that of all who run it."""
    model = network()
    lm, other = CausalLM(model), CausalLM(model)
    inside, seen = threading.Event(), []
    go_on = threading.Event()

    def wait(module, args):
        seen.append(lm.model.config._attn_implementation)
        inside.set()
        go_on.wait(10)

    decoder = lm.start(PROMPTS["one"])
    hook = lm.model.register_forward_pre_hook(wait)
    thread = threading.Thread(target=decoder.extend, args=(torch.tensor([0, 0]), torch.tensor([1, 2])))
    thread.start()
    assert inside.wait(10)
    hook.remove()
    rows = [COMMON, (9, 1)]
    assert error(lm, lm.start([(1, 2)]), [(1, 2)]) < 1e-5
    assert error(other, other.start(rows), rows) < 1e-5
    go_on.set()
    thread.join()
    assert seen == ["ppl_align_shared_prefix"]
    assert [net.config._attn_implementation for net in (model, lm.model, other.model)] == ["sdpa"] * 3
    assert float((decoder.log_probs - alone(lm.model, [(*COMMON, 2, 1), (*COMMON, 2, 2)])).abs().max()) < 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_another_attention_holds_a_beginning_in_every_row(attention: str):
    model = network()
    model.set_attn_implementation(attention)
    lm = CausalLM(model)
    decoder = lm.start(PROMPTS["of many lengths"])
    assert (decoder.prefix is not None) == (attention == "sdpa")
    assert error(lm, decoder, PROMPTS["of many lengths"]) < 1e-5


def test_a_network_with_hooks_is_tried_once_for_those(monkeypatch: pytest.MonkeyPatch):
    lm, tried = CausalLM(network()), []
    agrees = sharing.agrees
    monkeypatch.setattr(sharing, "agrees", lambda lm: tried.append(lm) or agrees(lm))
    for module in (lm.model, lm.model.model):
        module.register_forward_hook(lambda module, args, output: None)
        for _ in range(2):
            decoder = lm.start(PROMPTS["of many lengths"])
            assert decoder.prefix is not None
    assert len(tried) == 2
    assert error(lm, decoder, PROMPTS["of many lengths"]) < 2e-5


def test_the_common_beginning_is_read_once():
    lm = CausalLM(network())
    sharing.can_share(lm)
    with measure() as cost:
        lm.start(PROMPTS["of many lengths"])
    assert cost.lm_forwards == 2
    common = len(COMMON) - 1  # one of the prompts is no more than what they have in common, and keeps a token
    assert cost.prompt_tokens == common + sum(len(prompt) - common for prompt in PROMPTS["of many lengths"])
    with measure() as cost:
        ImportanceSampling(8, 1).run(program_after, lm, COMMON, seed=0)
    assert cost.prompt_tokens == len(COMMON)


def program_after(lm: CausalLM, prompt: Ids) -> None:
    completion("x", lm, prompt, max_new_tokens=3)
