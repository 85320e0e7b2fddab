"""``guide="auto"`` over a Markov chain and long texts: a table per position and previous token."""

import pyro
import pytest
import torch

from ppl_align import SMC, SVI, CallableLM, ImportanceSampling, MarkovLM, Mixture, completion, reward
from ppl_align.core.errors import InputError
from ppl_align.guides import AutoGuide
from ppl_align.guides.markov import MarkovGuide
from ppl_align.guides.table import TableGuide


def rewarded_chain(vocab, length, beta, seed=0, eos=False, positions=False, prompt=()):
    """A random chain with a reward s(previous, token) added over tokens: ``(program, log Z, best table)``.

    By backward recursion: what follows an EOS is worth nothing."""
    g = torch.Generator().manual_seed(seed)
    shape = (length, vocab, vocab) if positions else (vocab, vocab)
    lm = MarkovLM(torch.randn(shape, generator=g), torch.randn(vocab, generator=g), eos_id=0 if eos else None)
    score, first = torch.randn(vocab, vocab, generator=g).double(), torch.randn(vocab, generator=g).double()

    def total(tokens):
        before = torch.cat([torch.zeros_like(tokens[..., :1], dtype=torch.bool), (tokens == 0)[..., :-1]], -1)
        over = (before.cumsum(-1) > 0) if eos else torch.zeros_like(before)
        start = torch.full_like(tokens[..., :1], prompt[-1] if prompt else 0)
        previous = torch.cat([start, tokens[..., :-1]], -1)
        each = score[previous, tokens]
        each = torch.cat([each[..., :1] if prompt else first[tokens[..., :1]], each[..., 1:]], -1)
        return each.masked_fill(over, 0.0).sum(-1)

    def program():
        x = completion("x", lm, list(prompt), max_new_tokens=length)
        reward("r", total, x.tokens, beta=beta)

    best = torch.zeros(length, vocab + 1, vocab, dtype=torch.float64)
    soft = torch.zeros(vocab, dtype=torch.float64)
    table = lm.log_table.double() if positions else lm.log_table.double().expand(length, vocab, vocab)
    for t in range(length - 1, -1, -1):
        best[t, :vocab] = score / beta + soft
        best[t, vocab] = first / beta + soft
        here = torch.logsumexp(table[t] + best[t, :vocab], -1)
        log_z = here[prompt[-1]] if prompt else torch.logsumexp(lm.log_initial.double() + best[t, vocab], -1)
        soft = here.clone()
        if eos:
            soft[0] = 0.0
    return program, float(log_z), best


CHAINS = [
    {"eos": False},
    {"eos": True},
    {"positions": True},
    {"eos": True, "positions": True, "prompt": (2,)},
    {"prompt": (1, 2)},
]


@pytest.mark.parametrize("options", CHAINS, ids=str)
def test_it_can_be_the_posterior_of_a_reward_that_adds_over_tokens(options):
    """Every draw then has weight Z: the recursion and the guide are both exact."""
    program, log_z, best = rewarded_chain(4, 20, 0.8, **options)
    guide = AutoGuide(program)
    with pyro.get_param_store().scope():
        guide()
    assert isinstance(guide.sites["x"], MarkovGuide)
    guide.sites["x"].by_place.data.copy_(best)
    run = ImportanceSampling(64, 4, proposal=guide).run(program)
    assert float(run.log_weight.std()) < 1e-4
    assert float(run.log_weight.mean()) == pytest.approx(log_z, abs=1e-4)


@pytest.mark.parametrize(
    "options", [pytest.param(c, marks=[pytest.mark.statistical] * (c not in CHAINS[3:])) for c in CHAINS], ids=str
)
def test_auto_learns_it(options):
    """log Z - ELBO = KL(q||p*), by the recursion; untrained, it is KL(p0||p*)."""
    program, log_z, _ = rewarded_chain(4, 20, 1.5, **options)
    trained = SVI(num_steps=100, num_particles=16, num_replicates=20, guide="auto").run(program, seed=0)
    untrained = ImportanceSampling(16, 20).run(program, seed=0)
    gap, before = (log_z - float(run.log_weight.mean()) for run in (trained, untrained))
    error = float(trained.log_weight.std()) / trained.log_weight.numel() ** 0.5
    assert before > 0.5, "there is something to learn"
    assert gap < 0.2 * before
    assert gap > -4 * error, "an ELBO is below log Z"


def test_auto_takes_what_fits():
    lm = MarkovLM(torch.zeros(5, 5), torch.zeros(5))

    def kind_of(lm, length):
        guide = AutoGuide(lambda: completion("x", lm, [1], max_new_tokens=length))
        with pyro.get_param_store().scope():
            guide()
        return type(guide.sites["x"])

    assert kind_of(lm, 3) is TableGuide
    assert kind_of(lm, 20) is MarkovGuide
    assert kind_of(lm, 200) is MarkovGuide
    assert kind_of(Mixture([lm, lm]), 20) is MarkovGuide  # not the optimum there, but a guide
    assert kind_of(CallableLM(5, lambda prefix: torch.zeros(len(prefix), 5)), 20) is MarkovGuide
    with pytest.raises(InputError, match="one table per position would need"):
        kind_of(CallableLM(3000, lambda prefix: torch.zeros(len(prefix), 3000)), 20)
    with pytest.raises(InputError, match='use guide="markov"'):
        SVI(num_steps=1, guide="table").run(rewarded_chain(5, 20, 1.0)[0])


def test_weights_are_exact_whatever_it_has_learned():
    program, log_z, _ = rewarded_chain(3, 12, 0.8, eos=True)
    guide = SVI(num_steps=3, num_particles=8, num_replicates=1, guide="markov").run(program).guide
    for engine in (ImportanceSampling(512, 40, proposal=guide), SMC(128, 40, proposal=guide, twist="prefix")):
        z = (engine.run(program, seed=1).log_evidence - log_z).exp()
        assert abs(float(z.mean()) - 1) < 4.5 * float(z.std()) / 40**0.5


def test_of_a_longer_text_it_says_what_it_can():
    short, long = rewarded_chain(3, 10, 0.8)[0], rewarded_chain(3, 14, 0.8)[0]
    guide = SVI(num_steps=3, num_particles=8, num_replicates=1, guide="markov").run(short).guide
    assert ImportanceSampling(8, 1, proposal=guide).run(long).log_weight.isfinite().all()
