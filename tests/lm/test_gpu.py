"""The same answers on CUDA: ``pytest -m gpu``. Skipped where there is none, and left out of the ordinary suite."""

from __future__ import annotations

import pytest
import torch
from toys.networks import PROMPT, TOKENS, everything, network, program_over

from ppl_align import SMC, SVI, CausalLM, Enumeration, ImportanceSampling, Rejection
from ppl_align.lm.decoding import Population

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]
KINDS = ["llama", "tied", "mistral", "gpt2"]


def on_gpu(kind: str = "llama", **options) -> CausalLM:
    return CausalLM(network(kind), device="cuda", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_self_check_passes(kind, dtype):
    lm = on_gpu(kind, dtype=dtype, verify=True)
    assert lm.device.type == "cuda"
    assert {weight.device.type for weight in lm.model.parameters()} == {"cuda"}
    assert lm.packed_layers == 0


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_that_of_the_cpu(kind):
    model = network(kind)
    before = everything(model)
    here, there = CausalLM(model), CausalLM(model, device="cuda")
    prompts = [PROMPT, (4,), (7, 7, 1, 0, 2)]
    scored = there.token_log_probs(prompts, TOKENS.cuda())
    torch.testing.assert_close(scored.cpu(), here.token_log_probs(prompts, TOKENS), atol=1e-3, rtol=0)
    ours, theirs = here.start(prompts), there.start(prompts)
    for parents in ([2, 1, 0], [0, 0, 1], [2, 1]):
        torch.testing.assert_close(theirs.log_probs.cpu(), ours.log_probs, atol=1e-3, rtol=0)
        step = torch.tensor(parents), torch.tensor(parents)
        ours, theirs = ours.extend(*step), theirs.extend(*step)
    assert everything(model) == before, "the caller's network stays where it is"


def test_bfloat16_is_the_default_and_its_error_is_stated(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    network().save_pretrained(tmp_path)
    words = Tokenizer(WordLevel({str(v): v for v in range(11)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    lm = CausalLM(str(tmp_path))
    assert {weight.dtype for weight in lm.model.parameters()} == {torch.bfloat16}
    assert lm.device.type == "cuda"
    assert 0 < lm.log_prob_error < 0.5
    assert any(
        "log p is off by about" in line for line in ImportanceSampling(8, 2).run(program_over(lm, 3, 0.5, 3.0)).warnings
    )


ENGINES = [
    Enumeration(),
    ImportanceSampling(200, 4),
    Rejection(num_particles=50, num_replicates=4),
    SMC(200, num_replicates=4, twist="prefix"),
    SVI(num_steps=3, num_particles=200, num_replicates=4, guide="head"),
    SVI(num_steps=3, num_particles=200, num_replicates=4, guide="lora"),
]


@pytest.mark.parametrize("engine", ENGINES, ids=["exact", "importance", "rejection", "smc", "head", "lora"])
def test_every_engine_agrees_with_enumeration_on_the_cpu(engine):
    model = network()
    run = engine.run(program_over(CausalLM(model, device="cuda"), 3, 0.5, 3.0))
    exact = Enumeration().run(program_over(CausalLM(model), 3, 0.5, 3.0))
    found = run.log_evidence.double().cpu().exp()
    error = float(found.std()) / len(found) ** 0.5 if len(found) > 1 else 0.0
    want = float(exact.log_evidence.double().exp())
    assert abs(float(found.mean()) - want) < 5 * error + 2e-3 * want


def test_a_lora_guide_learns_and_is_saved(tmp_path):
    model = network()
    lm = CausalLM(model, device="cuda")
    engine = SVI(num_steps=20, num_particles=32, num_replicates=2, guide="lora", learning_rate=0.1)
    guide = engine.run(program_over(lm, 3, 0.5, 3.0)).guide
    guide.save(tmp_path / "saved")
    again = CausalLM(model, device="cuda", adapter=tmp_path / "saved")
    source = guide.sites["x"].lm.completion(list(PROMPT), 4)
    torch.testing.assert_close(
        again.completion(list(PROMPT), 4).log_prob(TOKENS.cuda()), source.log_prob(TOKENS.cuda()), atol=1e-3, rtol=0
    )


def test_a_network_of_the_callers_that_moves_is_followed():
    model = network()
    lm = CausalLM(model)
    want = lm.token_log_probs([PROMPT] * len(TOKENS), TOKENS)
    model.cuda()
    assert lm.device.type == "cuda"
    found = lm.token_log_probs([PROMPT] * len(TOKENS), TOKENS.cuda())
    torch.testing.assert_close(found.cpu(), want, atol=1e-3, rtol=0)
    drawn = Population(lm.completion(list(PROMPT), 4).expand([8])).run()
    assert drawn.tokens.device.type == "cuda"


def test_two_devices_by_a_map(tmp_path):
    pytest.importorskip("accelerate")
    model = network()
    model.save_pretrained(tmp_path)
    spread = type(model).from_pretrained(tmp_path, device_map={"model": 0, "lm_head": "cpu"})
    lm = CausalLM(spread)
    assert lm.device.type == "cuda"
    want = CausalLM(model).token_log_probs([PROMPT] * len(TOKENS), TOKENS)
    torch.testing.assert_close(lm.token_log_probs([PROMPT] * len(TOKENS), TOKENS.cuda()).cpu(), want, atol=1e-3, rtol=0)
    assert lm.start([PROMPT]).log_probs.device.type == "cuda"
