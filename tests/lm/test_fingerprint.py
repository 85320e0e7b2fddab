"""``lm.fingerprint``: equal for the same LM wherever it lies, different for any other."""

import copy
import time

import pytest
import torch
from toys.tiny import tiny_llama, tiny_tokenizer

from ppl_align import CallableLM, CausalLM, MarkovLM, Mixture, Product, Prompted
from ppl_align.lm.fingerprint import parts


def markov(shift=0.0, **options):
    logits = torch.arange(9.0).reshape(3, 3) + shift * torch.eye(3)
    return MarkovLM(logits, initial=torch.zeros(3), **options)


def flat(prefix):
    return torch.zeros(prefix.shape[0], 3)


def steep(prefix):
    return torch.arange(3.0).expand(prefix.shape[0], 3)


def scaled(by):
    return lambda prefix: by * torch.arange(3.0).expand(prefix.shape[0], 3)


class Scores:
    """A function with numbers of its own."""

    def __init__(self, by):
        self.by = by
        self._calls = 0

    def __call__(self, prefix):
        self._calls += 1
        return scaled(self.by)(prefix)


MAKERS = {
    "markov": lambda: markov(),
    "markov of other logits": lambda: markov(1.0),
    "markov with an end": lambda: markov(eos_id=0),
    "markov with words": lambda: markov(tokens=["a", "b", "c"]),
    "function": lambda: CallableLM(3, flat),
    "another function": lambda: CallableLM(3, steep),
    "a closure": lambda: CallableLM(3, scaled(2.0)),
    "a closure over another number": lambda: CallableLM(3, scaled(3.0)),
    "an object": lambda: CallableLM(3, Scores(2.0)),
    "another object": lambda: CallableLM(3, Scores(3.0)),
    "mixture": lambda: Mixture([markov(), markov(1.0)]),
    "mixture of other weights": lambda: Mixture([markov(), markov(1.0)], [1, 2]),
    "mixture the other way round": lambda: Mixture([markov(1.0), markov()]),
    "product": lambda: Product([markov(), markov(1.0)]),
    "product of other powers": lambda: Product([markov(), markov(1.0)], [1, -0.5], plausible=0.1),
    "prompted": lambda: Prompted(markov(), [1]),
    "prompted otherwise": lambda: Prompted(markov(), [2]),
    "prompted behind": lambda: Prompted(markov(), (), [1]),
    "network": lambda: CausalLM(tiny_llama()),
    "network of other weights": lambda: CausalLM(tiny_llama(seed=1)),
    "network with a tokenizer": lambda: CausalLM(tiny_llama(), tiny_tokenizer()),
    "network of half the precision": lambda: CausalLM(tiny_llama().to(torch.bfloat16)),
}


def test_different_lms_have_different_fingerprints_and_equal_ones_the_same():
    first = {name: make().fingerprint for name, make in MAKERS.items()}
    again = {name: make().fingerprint for name, make in MAKERS.items()}
    assert first == again
    assert len(set(first.values())) == len(first)


def test_it_stays_what_it_is_while_the_lm_is_used():
    for name, make in MAKERS.items():
        lm = make()
        before = lm.fingerprint
        lm.completion([1], 2).sample((3,))
        assert lm.fingerprint == before, name


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_every_tensor_counts(name):
    network = tiny_llama()
    before = CausalLM(copy.deepcopy(network)).fingerprint
    with torch.no_grad():
        dict(network.named_parameters())[name].mul_(1.01)
    assert CausalLM(network).fingerprint != before


def test_large_tensors_are_sampled_all_over():
    from ppl_align.core.digests import digest

    table = torch.zeros(1000, 512)
    before = digest(table)
    for rows in (slice(0, 20), slice(490, 510), slice(980, 1000)):
        changed = table.clone()
        changed[rows] = 1.0
        assert digest(changed) != before
    changed = table.clone()
    changed[:, 100:110] = 1.0  # no column is missed by counting in steps
    assert digest(changed) != before


def test_config_and_tokenizer_count():
    network, tokenizer = tiny_llama(), tiny_tokenizer()
    lm = CausalLM(network, tokenizer)
    other = tiny_llama()
    other.config.rms_norm_eps = 0.1
    changed = parts(CausalLM(other, tokenizer))
    assert {k for k, v in parts(lm).items() if changed[k] != v} == {"config"}
    before = parts(lm)["tokenizer"]
    tokenizer.chat_template = "{{ messages }}"
    assert parts(lm)["tokenizer"] != before


def test_the_folder_does_not_count(tmp_path):
    network, tokenizer = tiny_llama(), tiny_tokenizer()
    inside = CausalLM(network, tokenizer)
    for name in ("one", "two"):
        network.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    read = [CausalLM(str(tmp_path / name)) for name in ("one", "two")]
    assert {lm.fingerprint for lm in (inside, *read)} == {inside.fingerprint}
    assert "files" in parts(read[0])
    assert "files" not in parts(inside) or parts(inside)["files"] == parts(read[0])["files"]
    # The headers are of the files as they are: other tensors, another digest.
    smaller = tiny_llama(hidden_size=32)
    smaller.save_pretrained(tmp_path / "three")
    tokenizer.save_pretrained(tmp_path / "three")
    assert parts(CausalLM(str(tmp_path / "three")))["files"] != parts(read[0])["files"]


def test_an_adapter_counts(tmp_path):
    pytest.importorskip("peft")
    from ppl_align.guides.lora import LoRAGuide
    from ppl_align.program.provenance import LMRecord

    network, tokenizer = tiny_llama(), tiny_tokenizer()
    lm = CausalLM(network, tokenizer)
    guide = LoRAGuide(lm.completion([1], 2), rank=2)
    for parameter in guide.parameters():
        torch.nn.init.normal_(parameter)
    guide.save(tmp_path / "adapter")
    network.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapted = CausalLM(str(tmp_path / "base"), adapter=tmp_path / "adapter")
    assert adapted.fingerprint != lm.fingerprint
    record = LMRecord.of(adapted)
    assert record.adapter["type"] == "LORA"
    assert record.adapter["rank"] == 2
    assert record.name == "base+adapter"
    assert str(tmp_path) not in str(record)


@pytest.mark.lm
def test_it_takes_less_than_a_second(smollm2):
    started = time.process_time()  # whoever else is at work on the machine
    print_ = smollm2.fingerprint
    assert time.process_time() - started < 1.0
    assert smollm2.fingerprint == print_
    assert "files" in parts(smollm2)
