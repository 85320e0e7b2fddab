"""The tokenizer's word is law: what stands in front, how a text goes on, and which files are read."""

import time

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from ppl_align import CausalLM, Contains, Enumeration, MarkovLM, Mixture, completion, constrain, reward
from ppl_align.core.errors import InputError, PromptError, WeightsNotFound
from ppl_align.lints import lint
from ppl_align.lm.completions import Completion
from ppl_align.rewards import ClassifierReward, load_classifier

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "[gMASK]", "<sop>", *(f"w{i}" for i in range(14))]
CHAT = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}{% if not loop.last %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %} w9{% endif %}"
)


def words(prefix=None, template=None):
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if prefix:
        special = [(p, WORDS.index(p)) for p in prefix.split()]
        made.post_processor = processors.TemplateProcessing(
            single=f"{prefix} $A </s>", special_tokens=[*special, ("</s>", 2)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    made.chat_template = template
    return made


def pieces():
    """As Llama 2: a space in front of a text, taken away again in front of what is decoded."""
    vocab = ["<unk>", "<s>", "</s>", "\u2581The", "\u2581movie", "\u2581was", "\u2581good", "was", "s", "\u2581"]
    made = Tokenizer(models.Unigram([(v, -float(i + 1)) for i, v in enumerate(vocab)], unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def settings(vocab=20, **config):
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2}
    return LlamaConfig(vocab_size=vocab, **shape, **heads, **config)


def llama(vocab=20, **config):
    torch.manual_seed(0)
    return LlamaForCausalLM(settings(vocab, **config)).eval().requires_grad_(False)


@pytest.mark.parametrize("prefix", ["<s>", "</s>", "[gMASK] <sop>", "<unk> <s>", "<s> <unk>", None])
def test_what_the_tokenizer_puts_in_front_is_put_in_front_once(prefix):
    tokenizer = words(prefix)
    lm = CausalLM(llama(), tokenizer)
    want = (*(WORDS.index(p) for p in (prefix or "").split()), 7)
    assert lm.completion("w1", 1).prompts == (want,)
    assert lm.completion(list(want), 1).prompts == (want,)
    assert Mixture([lm, lm]).lms[0].begin(want) == want
    if prefix is None:
        with pytest.raises(PromptError, match="empty"):
            lm.completion("", 1)


def test_a_chat_is_what_its_template_says():
    tokenizer = words("<s>", CHAT)
    lm = CausalLM(llama(), tokenizer)
    asked = [{"role": "w1", "content": "w2"}]
    assert lm.completion(asked, 1).prompts[0] == (7, 8, 15), "no BOS, as the template has none"
    mixture = Mixture([lm, lm])
    torch.testing.assert_close(
        mixture.completion(asked, 2).log_prob(torch.tensor([9, 10])).float(),
        lm.completion(asked, 2).log_prob(torch.tensor([9, 10])),
    )
    begun = [*asked, {"role": "assistant", "content": "w3"}]
    text = tokenizer.apply_chat_template(begun, tokenize=False, continue_final_message=True)
    assert lm.completion(begun, 1).prompts[0] == tuple(tokenizer.encode(text, add_special_tokens=False))
    assert lm.completion((asked, "w3"), 1).prompts[0] == (7, 8, 15, 9)


def test_prompt_and_completion_are_the_decoded_whole():
    tokenizer = pieces()
    lm = CausalLM(llama(len(tokenizer), initializer_range=0.5), tokenizer)
    prompt = tuple(tokenizer.encode("The movie", add_special_tokens=False))
    rows = torch.tensor([[5, 6], [7, 8], [9, 5], [8, 2]])
    said = Completion(rows, lm.completion(list(prompt), 2).expand((4,)))
    wholes = [tokenizer.decode([*prompt, *ids], skip_special_tokens=True) for ids in said.ids]
    assert [p + c for p, c in zip(said.texts("prompt"), said.texts(), strict=True)] == wholes
    assert said.texts()[0] == " was good"


def test_strings_mean_the_text_that_goes_on():
    tokenizer = pieces()
    lm = CausalLM(llama(len(tokenizer), initializer_range=0.5), tokenizer)
    source = lm.completion("The movie", 3, stop=" was")
    assert source.ended_before(torch.tensor([[5, 2, 2], [6, 5, 2], [7, 6, 6], [9, 7, 2]])).tolist() == [
        [False, True, True],
        [False, False, True],
        [False, False, False],
        [False, False, True],
    ]

    def constrained():
        constrain("c", Contains(" was"), completion("x", lm, "The movie", 2))

    def rewarded():
        x = completion("x", lm, "The movie", 2)
        reward("r", lambda texts: [0.0 if " was" in text else float("-inf") for text in texts], x)

    one, other = (Enumeration().run(program).log_evidence.item() for program in (constrained, rewarded))
    assert one == pytest.approx(other, abs=1e-6)


def test_ids_without_an_embedding():
    lm = CausalLM(llama(10), words())
    with pytest.raises(PromptError, match=r"'w9' has id 15, but .* embeddings for 0 to 9"):
        lm.completion("w9", 1)


def test_a_prompt_that_ends_in_a_space_is_warned_of():
    lm = MarkovLM(torch.zeros(4, 4), eos_id=3, tokens=["a", " b", " ", "</s>"])

    def found(prompt):
        def program():
            reward("r", lambda texts: [float(len(t)) for t in texts], completion("x", lm, prompt, 2))

        return [f for f in lint(program) if f.lint == "trailing space"]

    assert len(found("a ")) == 1
    assert not found("a")


# -- loading -----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_without_its_head_is_refused(tmp_path):
    AutoModelForSequenceClassification.from_config(settings()).save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    with pytest.raises(WeightsNotFound, match=r"has no lm_head\.weight, which would be random"):
        CausalLM(str(tmp_path))


def test_an_adapter_is_no_network(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "smollm2-135m"}')
    with pytest.raises(WeightsNotFound, match=r"CausalLM\('smollm2-135m', adapter="):
        CausalLM(str(tmp_path))


def test_an_adapter_is_no_network_even_with_a_config_beside_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "smollm2-135m"}')
    (tmp_path / "adapter_model.safetensors").touch()
    settings().save_pretrained(tmp_path)
    with pytest.raises(WeightsNotFound, match=r"CausalLM\('smollm2-135m', adapter="):
        CausalLM(str(tmp_path))


def test_a_tokenizer_that_is_given_need_not_lie_in_the_folder(tmp_path):
    llama().save_pretrained(tmp_path)
    assert CausalLM(str(tmp_path), words()).encode("w1") == (7,)
    with pytest.raises(WeightsNotFound, match="the tokenizer of"):
        CausalLM(str(tmp_path))
    for wrong in (str(tmp_path), 3):
        with pytest.raises(InputError, match="is no tokenizer"):
            CausalLM(str(tmp_path), wrong)


def test_the_older_name_of_dtype_is_heard(tmp_path):
    llama().save_pretrained(tmp_path)
    for given in (torch.float64, "float64"):
        for source in (str(tmp_path), llama()):
            lm = CausalLM(source, words(), torch_dtype=given)
            assert {weight.dtype for weight in lm.model.parameters()} == {torch.float64}
    with pytest.raises(InputError, match="two names of one thing"):
        CausalLM(str(tmp_path), words(), dtype=torch.float32, torch_dtype=torch.float64)


def test_a_keyword_that_is_wrong_is_named_and_no_file_blamed(tmp_path):
    llama().save_pretrained(tmp_path)
    for keyword, value in (("attn_implementation", "bogus"), ("device_map", "gpu")):
        with pytest.raises(InputError, match=f"cannot be loaded with {keyword}='{value}'"):
            CausalLM(str(tmp_path), words(), **{keyword: value})


def test_keywords_reach_tokenizer_and_network(tmp_path, monkeypatch):
    import transformers

    folder = tmp_path / "outer" / "inner"
    llama().save_pretrained(folder)
    words().save_pretrained(folder)
    seen = []
    read = transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *a, **k: seen.append(k) or read(*a, **k))
    lm = CausalLM(str(tmp_path / "outer"), subfolder="inner", revision="main", local_files_only=True)
    assert seen[0] == {"subfolder": "inner", "revision": "main", "local_files_only": True, "trust_remote_code": False}
    assert lm.encode("w1") == (7,)
    assert "LlamaForCausalLM" in repr(lm)
    assert "float32 on cpu" in repr(lm)


def test_a_typo_and_a_missing_device_are_told_at_once():
    start = time.monotonic()
    with pytest.raises(WeightsNotFound, match="no weights for 'typo'"):
        CausalLM("typo")
    assert time.monotonic() - start < 3
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="torch sees 0 CUDA devices"):
            CausalLM(llama(), device="cuda")
    with pytest.raises(InputError, match="none that torch knows"):
        CausalLM(llama(), device="gpu")


# -- reward models -----------------------------------------------------------------------------------------------------


def classifier(labels, pad=0, positions=16):
    torch.manual_seed(0)
    config = settings(num_labels=labels)
    config.pad_token_id, config.max_position_embeddings = pad, positions
    config.id2label = {0: "NEGATIVE", 1: "POSITIVE", 2: "NEUTRAL"} if labels == 3 else config.id2label
    return AutoModelForSequenceClassification.from_config(config).eval()


def test_one_of_several_labels():
    model, tokenizer = classifier(3), words()
    texts = ["w1 w2", "w3", "w4 w5 w6"]
    p = torch.stack([model(torch.tensor([tokenizer.encode(t)])).logits[0].double().softmax(-1) for t in texts])
    for label in ("POSITIVE", "positive", 1):
        odds = ClassifierReward(model, tokenizer, label=label)(texts)
        torch.testing.assert_close(torch.tensor(odds).double(), p[:, 1].logit(), atol=1e-5, rtol=0)
    share = ClassifierReward(model, tokenizer, label="POSITIVE", output="probability")
    torch.testing.assert_close(torch.tensor(share(texts)).double(), p[:, 1], atol=1e-6, rtol=0)
    assert (share.lower, share.upper) == (0.0, 1.0)
    with pytest.raises(InputError, match="has no label 'GOOD'; its labels are 0: NEGATIVE"):
        ClassifierReward(model, tokenizer, label="GOOD")
    with pytest.raises(InputError, match="name one: label='POSITIVE'"):
        ClassifierReward(model, tokenizer)


@pytest.mark.parametrize("pad", [0, None, -1])
def test_padding_changes_no_reward(pad):
    model, tokenizer = classifier(1, pad), words()
    texts = ["w1 w2 w3", "w4", " ".join(f"w{i % 9}" for i in range(40))]
    alone = [model(torch.tensor([tokenizer.encode(t)[:16]])).logits.item() for t in texts]
    assert ClassifierReward(model, tokenizer)(texts) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("kind", ["convbert", "fnet", "nystromformer", "bert"])
def test_networks_that_read_their_padding_get_none(kind):
    from transformers import AutoConfig

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"embedding_size": 16} if kind == "convbert" else {}
    config = AutoConfig.for_model(kind, vocab_size=20, pad_token_id=0, num_labels=1, **shape, **more)
    model, tokenizer = AutoModelForSequenceClassification.from_config(config).eval(), words()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    texts = ["w1 w2 w3", "w4", "w1 w2 w3 w4 w5 w6", "w2"]
    with torch.no_grad():
        alone = [model(torch.tensor([tokenizer.encode(text)])).logits.item() for text in texts]
    assert ClassifierReward(model, tokenizer)(texts) == pytest.approx(alone, abs=1e-4, rel=1e-4)
    assert ClassifierReward(model, tokenizer)(texts[1:2]) == pytest.approx(alone[1:2], abs=1e-4, rel=1e-4)
    reward = ClassifierReward(model, tokenizer)
    reward._forward(["", "w4"])  # an empty text beside another tells nothing of padding
    assert reward(texts) == pytest.approx(alone, abs=1e-4, rel=1e-4)


def test_a_folder_is_a_reward(tmp_path, monkeypatch):
    classifier(1).save_pretrained(tmp_path / "my_rm")
    words().save_pretrained(tmp_path / "my_rm")
    monkeypatch.chdir(tmp_path)
    toy = MarkovLM(torch.zeros(3, 3), torch.zeros(3), tokens=["w1 ", "w2 ", "w3 "])

    def program():
        reward("r", "my_rm", completion("x", toy, [], 1))

    assert Enumeration().run(program).log_evidence.isfinite().all()
    with pytest.raises(InputError, match="one output"):
        load_classifier("my_rm", label="POSITIVE")


def test_position_tables_that_begin_behind_the_padding():
    from transformers import RobertaConfig, RobertaForSequenceClassification

    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=20, **shape, max_position_embeddings=12, num_labels=1, pad_token_id=1)
    reads = ClassifierReward(RobertaForSequenceClassification(config), words())
    assert reads.limit == 10
    assert len(reads([" ".join(["w1"] * 50)])) == 1
    bert = BertConfig(vocab_size=20, **shape, max_position_embeddings=12, num_labels=1)
    assert ClassifierReward(AutoModelForSequenceClassification.from_config(bert), words()).limit == 12
