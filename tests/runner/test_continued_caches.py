"""A completion whose prompt holds an earlier one goes on from its cache: nothing is read twice, and nothing changes."""

from __future__ import annotations

import pytest
import torch
from conftest import SEED

from ppl_align import LM, SMC, SVI, CausalLM, Engine, ImportanceSampling, Mixture, Product, Prompted, completion, reward
from ppl_align.core.cost import measure
from ppl_align.core.seeds import isolated
from ppl_align.lm import prefix_cache
from ppl_align.lm.decoding import Population
from ppl_align.lm.prefix_cache import PrefixCache
from ppl_align.particles.particles import Particles
from ppl_align.program.compiled import Program
from ppl_align.runner.runner import Runner

PROMPT = [1, 2, 3, 0, 5, 2]


def story(lm, glue=(4, 1)):
    x = completion("x", lm, PROMPT, max_new_tokens=5)
    y = completion("y", lm, (PROMPT, x, list(glue)), max_new_tokens=4)
    z = completion("z", lm, (PROMPT, x, list(glue), y), max_new_tokens=3)
    reward("r", lambda t: (t == 1).double().sum(-1), z.tokens, beta=0.5)


def finished(lm, size=40, program=story, **arguments):
    with isolated(SEED), measure() as cost:
        drawn = Runner(Program(program, (lm,), arguments)).finish(Particles(size))
    return drawn, cost


@pytest.mark.parametrize("glue", [(4, 1), (2,), ()], ids=str)
def test_prompts_are_not_read_again(tiny_llama: CausalLM, glue, monkeypatch) -> None:
    drawn, cost = finished(tiny_llama, glue=glue)
    sources = [drawn.sources[name] for name in ("y", "z")]
    prompts = [set(source.prompt_rows((40,))) for source in sources]
    monkeypatch.setattr(prefix_cache, "BYTES", 0)
    again, anew = finished(tiny_llama, glue=glue)
    read = len(PROMPT) + sum(len(prompt) for some in prompts for prompt in some)
    assert anew.prompt_tokens == read
    # What was never read is the glue and the newest token of a text that its length cut off, or that is no EOS.
    assert cost.prompt_tokens <= len(PROMPT) + sum(len(some) * (len(glue) + 1) for some in prompts)
    for name in ("x", "y", "z"):
        assert torch.equal(drawn.values[name], again.values[name])
        assert torch.allclose(drawn.log_prior[name], again.log_prior[name], atol=1e-5)


def test_scores_are_those_of_forwards_without_a_cache(tiny_llama: CausalLM) -> None:
    drawn, _ = finished(tiny_llama, 60)
    for name, source in drawn.sources.items():
        log_p = source.token_log_probs(drawn.values[name]).double().sum(-1)
        assert torch.allclose(drawn.log_prior[name], log_p, atol=2e-5), name


def test_resampled_particles_go_on_from_their_own_texts(tiny_llama: CausalLM) -> None:
    run = SMC(24, 4, twist="prefix", ess_threshold=1.0).run(story, tiny_llama, seed=SEED)
    for name, site in run.completions.items():
        assert site.source is not None
        log_p = site.source.log_prob(site.tokens).double()
        assert torch.allclose(run.log_prior[name], log_p.cpu(), atol=2e-5), name


def test_a_proposal_goes_on_from_its_own_cache(tiny_llama: CausalLM) -> None:
    other = CausalLM(tiny_llama.model)
    run = ImportanceSampling(20, 2, proposal=other).run(story, tiny_llama, seed=SEED)
    assert torch.allclose(run.log_proposal, sum(run.log_prior.values()), atol=1e-4)


@pytest.mark.parametrize("others", [[], [(3, 3)]], ids=["all go on", "one begins anew"])
@pytest.mark.parametrize("glue", [[(4,), (1, 2, 3), (0, 0)], [(2,)], [(), (5, 1)]], ids=str)
def test_prompts_of_many_lengths(tiny_llama: CausalLM, glue, others) -> None:
    """And then more tokens, of rows that branch and are dropped."""
    kept = PrefixCache()
    texts = Population(tiny_llama.completion(PROMPT, 5).expand((30,)), kept=kept, keep=True).run()
    ended = [tuple(row[:n]) for row, n in zip(texts.tokens.tolist(), texts.lengths.tolist(), strict=True)]
    prompts = [(*PROMPT, *text, *glue[i % len(glue)]) for i, text in enumerate(dict.fromkeys(ended))] + others
    with measure() as cost:
        on = kept.start(tiny_llama, prompts)
    anew = tiny_llama.start(prompts)
    assert (cost.prompt_tokens == sum(map(len, prompts))) == bool(others)
    parents = torch.tensor([*range(len(prompts) - 1, 0, -2), 0, 0])
    for step in range(3):
        assert torch.allclose(on.log_probs, anew.log_probs, atol=2e-5)
        assert torch.allclose(on.hidden, anew.hidden, atol=2e-4)
        parents = parents if step == 0 else torch.arange(len(parents)).flip(0)
        tokens = torch.randint(6, (len(parents),))
        on, anew = on.extend(parents, tokens), anew.extend(parents, tokens)


class Begun(CausalLM):
    """A network that is always told something first."""

    def start(self, prompts):
        return super().start(self.wrap(prompts))

    def forced_log_probs(self, prompts, tokens):
        return super().forced_log_probs(self.wrap(prompts), tokens)

    def _score(self, prompts, tokens, warp):
        return super()._score(self.wrap(prompts), tokens, warp)

    def wrap(self, prompts):
        return [(5, 5, *prompt) for prompt in prompts]


def voices(lm: CausalLM) -> dict[str, LM]:
    """LMs whose network reads something other than the prompt."""
    persona = Prompted(lm, before=[3, 3])
    return {
        "before": persona,
        "after": Prompted(lm, after=[2]),
        "twice": Prompted(persona, before=[1]),
        "mixture": Mixture([persona, lm]),
        "product": Product([persona, lm], [0.5, 0.5]),
        "a class of one's own": Begun(lm.model),
    }


@pytest.mark.parametrize("name", ["before", "after", "twice", "mixture", "product", "a class of one's own"])
@pytest.mark.parametrize("engine", [ImportanceSampling(12, 2), SMC(12, 2, twist="prefix"), SVI(num_steps=2)], ids=repr)
def test_a_prompted_network_reads_what_it_always_reads(tiny_llama: CausalLM, name: str, engine: Engine) -> None:
    run = engine.run(story, voices(tiny_llama)[name], seed=SEED)
    for site, found in run.completions.items():
        assert found.source is not None
        log_p = found.source.log_prob(found.tokens).double()
        assert torch.allclose(run.log_prior[site], log_p.cpu(), atol=2e-5), site


def test_the_last_completion_keeps_nothing(tiny_llama: CausalLM) -> None:
    def one(lm):
        reward("r", lambda t: (t == 1).double().sum(-1), completion("x", lm, PROMPT, max_new_tokens=5).tokens)

    runner = Runner(Program(one, (tiny_llama,)))
    with isolated(SEED):
        runner.finish(Particles(20))
    assert runner.kept.bytes == 0
