"""Every way of reading a network, under every engine, against enumeration by the plain network."""

from __future__ import annotations

import itertools
import math
import warnings
from functools import lru_cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ppl_align import SMC, SVI, CausalLM, Enumeration, ImportanceSampling, completion, reward
from ppl_align.core.cost import measure
from ppl_align.core.errors import UnsupportedModelError
from ppl_align.lm.verify import _FOUND
from ppl_align.testing.held import alone
from ppl_align.testing.oracle import Oracle
from ppl_align.testing.statistics import bonferroni_z
from ppl_align.testing.zoo import peak

EOS, T, PROMPT = 5, 3, (1, 2, 3, 1, 2, 4)
HALF = {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
LLAMA = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TURNING = {"max_position_embeddings": 4, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0}}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [5.0] * 4}
LONGROPE = {"max_position_embeddings": 16, "rope_parameters": {**LONG, "original_max_position_embeddings": 8}}
NETWORKS: dict[str, tuple[str, dict[str, Any], str]] = {  # model type, config, plan
    "cache": ("llama", {**LLAMA, "max_position_embeddings": 16}, "cache"),
    "by length": ("bart", HALF, "cache by length"),
    "recompute": ("openai-gpt", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}, "recompute"),
    "recurrent": ("rwkv", {"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16}, "recompute"),
    "dynamic": ("llama", {**LLAMA, **TURNING}, "recompute"),
    "longrope": ("llama", {**LLAMA, **LONGROPE}, "cache"),  # up to seven tokens
}
Z = bonferroni_z(2 * 5 * len(NETWORKS))


def network(name: str) -> Any:
    kind, settings, _ = NETWORKS[name]
    ids = {"vocab_size": 6, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": EOS}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **ids, **settings))
        peak(model)
    return model.eval().requires_grad_(False)


def make(model: Any, **settings: Any) -> CausalLM:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return CausalLM(model, **settings)


@lru_cache
def prior(name: str) -> CausalLM:
    return make(network(name))


@lru_cache
def enumerated(name: str) -> float:
    """log Z of :func:`program`: every text by the plain network, which is never told of a cache."""
    model, total = network(name), 0.0
    texts = [
        text
        for length in range(1, T + 1)
        for text in itertools.product(range(6), repeat=length)
        if EOS not in text[:-1] and (length == T or text[-1] == EOS)
    ]
    beginnings = sorted({text[:i] for text in texts for i in range(len(text))}, key=len)
    log_p = dict(zip(beginnings, alone(model, [(*PROMPT, *b) for b in beginnings]), strict=True))
    for text in texts:
        log_prior = sum(float(log_p[text[:i]][v]) for i, v in enumerate(text))
        total += math.exp(log_prior + 0.5 * text.count(3) - 0.7 * (text[0] == 4))
    return math.log(total)


def program_of(lm: CausalLM):
    def program():
        x = completion("x", lm, list(PROMPT), max_new_tokens=T)
        reward("r", lambda t: 0.5 * (t == 3).sum(-1) - 0.7 * (t[..., 0] == 4), x.tokens)

    return program


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_is_read_as_it_should(name: str):
    assert prior(name).plan.kind == NETWORKS[name][2]
    assert prior(name).plan.limit == (7 if name == "longrope" else None)


@pytest.mark.parametrize("name", NETWORKS)
def test_exact(name: str):
    posterior = Enumeration().run(program_of(prior(name)))
    assert float(posterior.log_evidence[0]) == pytest.approx(enumerated(name), abs=1e-4)


ENGINES = {
    "importance": ImportanceSampling(16, num_replicates=32),
    "smc": SMC(16, num_replicates=32, twist="prefix", ess_threshold=1.0),
    "svi": SVI(num_steps=3, num_particles=16, num_replicates=32, learning_rate=0.1, guide="table"),
    # small steps: networks overshoot at .1, where a text of p* = .1 has q = .002, and 512 draws say nothing of a mean
    "head": SVI(num_steps=3, num_particles=16, num_replicates=32, learning_rate=0.01, guide="head"),
    "lora": SVI(num_steps=3, num_particles=16, num_replicates=32, learning_rate=0.01, guide="lora"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_engine_has_the_evidence_of_enumeration(name: str, engine: str):
    posterior = ENGINES[engine].run(program_of(prior(name)))
    found = posterior.log_evidence.sub(enumerated(name)).exp()
    error = float(found.std() / len(found) ** 0.5)
    assert abs(float(found.mean()) - 1) < Z * error + 1e-5
    assert error < 0.1


@pytest.mark.parametrize("guide", ["head", "lora"])
@pytest.mark.parametrize("name", ["cache", "by length", "recompute", "longrope"])
def test_a_guide_that_overshot_is_weighed_by_what_it_drew_from(name: str, guide: str):
    """E[Zhat] = sum of q w = Z whatever the guide: q is normalised, and a draw's log q is that of its text."""
    engine = SVI(num_steps=3, num_particles=16, num_replicates=32, learning_rate=0.1, guide=guide)
    posterior = engine.run(program_of(prior(name)))
    oracle = Oracle(program_of(prior(name)))
    assert oracle.log_evidence == pytest.approx(enumerated(name), abs=1e-4)
    log_q = oracle.log_q(posterior.guide).detach()
    assert float(log_q.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert float(((2 * oracle.log_target - log_q).exp()).sum()) > 1.2, "it overshot: its weights vary"
    of = {tuple(text): i for i, text in enumerate(oracle.values["x"].tolist())}
    at = torch.tensor([of[tuple(text)] for text in posterior.particles["x"].tokens.reshape(-1, T).tolist()])
    torch.testing.assert_close(posterior.log_proposal.reshape(-1), log_q[at], atol=1e-4, rtol=0)
    weight = oracle.log_prior + oracle.log_potential - log_q
    torch.testing.assert_close(posterior.log_weight.reshape(-1), weight[at], atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_prompts_of_different_lengths_are_decoded_and_scored_together(name: str):
    lm = prior(name)
    rows = [(3,), (1, 2, 4, 1), (2, 2)]
    decoder = lm.start(rows)
    seen, found = list(rows), [decoder.log_probs]
    for parents, tokens in (([1, 0, 1], [2, 3, 4]), ([2, 0], [1, 1]), ([1, 1], [0, 3])):
        decoder = decoder.extend(torch.tensor(parents), torch.tensor(tokens))
        rows = [(*rows[parent], token) for parent, token in zip(parents, tokens, strict=True)]
        seen += rows
        found.append(decoder.log_probs)
    torch.testing.assert_close(torch.cat(found).double(), alone(lm.model, seen), atol=1e-4, rtol=0)
    prompts, tokens = [(3,), (1, 2, 4), (3,)], torch.tensor([[1, 2], [4, 0], [2, 2]])
    beginnings = [(*p, *t[:i]) for p, t in zip(prompts, tokens.tolist(), strict=True) for i in range(2)]
    expected = alone(lm.model, beginnings).reshape(3, 2, 6)
    torch.testing.assert_close(lm.forced_log_probs(prompts, tokens).double(), expected, atol=1e-4, rtol=0)
    score = expected.gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(lm.token_log_probs(prompts, tokens).double(), score, atol=1e-4, rtol=0)


def test_a_network_without_its_cache_says_so_once_and_by_how_much():
    _FOUND.clear()
    with pytest.warns(UserWarning, match="without its cache") as heard:
        CausalLM(network("recurrent"))
    assert len(heard) == 1
    said = str(heard[0].message)
    assert "RwkvForCausalLM runs without its cache" in said
    assert "nats a token" in said
    assert "\n" not in said
    assert heard[0].filename == __file__


def test_the_trial_is_on_nobodys_bill():
    _FOUND.clear()
    with measure() as cost:
        lm = make(network("cache"))
    assert cost.lm_forwards == cost.prompt_tokens == cost.lm_tokens == cost.scored_tokens == 0
    with measure() as cost:
        lm.start([(1, 2)]).extend(torch.tensor([0]), torch.tensor([3]))
    assert (cost.lm_forwards, cost.prompt_tokens, cost.lm_tokens) == (2, 2, 1)


def test_what_is_read_again_is_on_the_bill():
    with measure() as cost:
        prior("recompute").start([(1, 2), (3,)]).extend(torch.tensor([0, 1]), torch.tensor([3, 3]))
    assert (cost.lm_forwards, cost.prompt_tokens, cost.lm_tokens) == (4, 3 + 3, 2)


class Drifting(torch.nn.Module):
    """Adds to hidden states what depends on who else is in the batch."""

    def __init__(self, inside: torch.nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inside(hidden) + hidden.mean(0, keepdim=True) * (len(hidden) - 1)


def test_where_nothing_agrees_it_is_refused_by_how_much():
    model = network("cache")
    model.model.layers[0].mlp = Drifting(model.model.layers[0].mlp)
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM is not supported: .* [0-9.]+ nats a token"):
        CausalLM(model)


def test_rotary_angles_that_a_long_text_has_changed_are_forgotten():
    lm = prior("dynamic")
    with torch.no_grad():
        lm.start([(1,) * 12])
        found = lm.start([(1, 2, 3, 4)]).log_probs.double()
    torch.testing.assert_close(found, alone(network("dynamic"), [(1, 2, 3, 4)]), atol=1e-4, rtol=0)


def steered(model: torch.nn.Module, at: int) -> torch.nn.Module:
    """As activation steering does: a vector is added to the hidden state at one place of what is read."""
    direction = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(1)) * 2

    def add(layer: torch.nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[:, at] += direction
        return out

    model.model.layers[0].register_forward_hook(add)
    return model


def decoding_error(lm: CausalLM, rows: list[tuple[int, ...]]) -> float:
    decoder, seen = lm.start(rows), list(rows)
    found = [decoder.log_probs]
    for token in (2, 4):
        decoder = decoder.extend(torch.arange(len(rows)), torch.full((len(rows),), token))
        rows = [(*row, token) for row in rows]
        seen += rows
        found.append(decoder.log_probs)
    return float((torch.cat(found).double() - alone(lm.model, seen)).abs().max())


@torch.no_grad()
def test_hooks_are_held_to_what_they_do_whenever_they_come():
    """A cache is right of the network without its hook, and known to be; in both orders, and back."""
    _FOUND.clear()
    assert make(network("cache")).plan.kind == "cache"
    lms = [make(steered(network("cache"), 0))]
    model = network("cache")
    lms.append(make(model))
    assert lms[1].plan.kind == "cache", "what was found of the other is not said of this one"
    steered(model, 0)
    for lm in lms:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert decoding_error(lm, [(1, 2, 3), (4,)]) < 1e-4
        assert lm.plan.kind == "recompute"
    model.model.layers[0]._forward_hooks.clear()
    assert decoding_error(lms[1], [(1, 2, 3), (4,)]) < 1e-4
    assert lms[1].plan.kind == "cache"


@torch.no_grad()
def test_a_hook_on_the_last_place_of_what_is_read_is_refused_whenever_it_comes():
    _FOUND.clear()
    model = network("cache")
    lm = make(model)
    steered(model, -1)
    for ask in (lambda: make(model), lambda: lm.start([(1, 2)])):
        with pytest.raises(UnsupportedModelError, match=r"[0-9.]+ nats a token"):
            ask()


@torch.no_grad()
def test_weights_that_are_no_numbers_are_refused_however_well_known_their_settings_are():
    _FOUND.clear()
    make(network("cache"))
    broken = network("cache")
    broken.lm_head.weight[3] = float("nan")
    with pytest.raises(UnsupportedModelError, match="gives no probabilities"):
        make(broken)
