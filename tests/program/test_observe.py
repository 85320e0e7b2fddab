"""Labels, ratings, preferences and pieces of text, against formulas written out and against enumeration."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import logsigmoid
from toys.contracts import contract_of

from ppl_align import SMC, SVI, Enumeration, ImportanceSampling, Rejection, completion, reward
from ppl_align.core.errors import InputError, RewardError
from ppl_align.program.observe import goes_on, label, prefers, rating
from ppl_align.testing import Oracle
from ppl_align.testing.programs import EOS, FIXED, MEMORY, count_score, long_memory

ENDS = long_memory(vocab=3, eos_id=2)
FEATURES = torch.tensor([[0.5, -1.0], [1.5, 0.2], [-0.3, 0.8], [0.9, 0.9]], dtype=torch.float64)


def one_label() -> None:
    """A thumbs-up for the completion."""
    x = completion("x", EOS, [], max_new_tokens=3)
    label("liked", count_score(x.tokens), 1, beta=0.6)


def labels() -> None:
    """Three people about one completion, and a latent of theirs."""
    mood = pyro.sample("mood", dist.Categorical(torch.tensor([0.3, 0.7])))
    x = completion("x", FIXED, [0], max_new_tokens=2)
    label("liked", count_score(x.tokens) + 0.4 * mood, [1, 0, 1], beta=0.8)


def stars() -> None:
    """Two ratings of one completion, from 0 to 3 stars."""
    x = completion("x", EOS, [], max_new_tokens=3)
    rating("stars", count_score(x.tokens), [2, 3], cutpoints=[-0.5, 0.4, 1.1], beta=0.5)


def taste() -> None:
    """A taste that two kinds of evidence inform, and that the completion is to please."""
    which = pyro.sample("taste", dist.Categorical(torch.tensor([0.5, 0.2, 0.3])))
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.5, 0.5]], dtype=torch.float64)[which]
    scores = (weights[..., None, :] * FEATURES).sum(-1)  # [P, 4]
    prefers("pairs", scores[..., :2], scores[..., 2:], beta=0.7)
    label("thumbs", scores, [1, 1, 0, 1], beta=1.3)
    x = completion("x", FIXED, [1], max_new_tokens=2)
    reward("pleases", lambda t: 0.5 * (t == 1).sum(-1) * 1.0, x.tokens, upper=1.0)
    label("also liked", weights[..., 0] * (x.tokens == 0).sum(-1), 1)


def pairs_in_a_plate() -> None:
    """The same comparisons twice: in a plate of the program, and without one, while a plate is elsewhere."""
    with pyro.plate("lanes", 2):
        x = completion("x", FIXED, [[0], [1]], max_new_tokens=1)
        prefers("each lane", count_score(x.tokens), 0.1, beta=0.9)
        label("thumbs", count_score(x.tokens), [1, 0])
    total = count_score(x.tokens).sum(-1, keepdim=True)
    label("on both", total[..., None] * torch.tensor([1.0, 2.0, 3.0]), [1, 0, 0])


def piece() -> None:
    """A piece of two or three tokens that was seen to go on with 1 0 and to end there."""
    middle = completion("middle", ENDS, [0], max_new_tokens=3)
    goes_on("it goes on", middle)
    completion("ending", ENDS, ([0], middle), obs=[1, 0])


def sentence() -> None:
    """A piece that may end at a stop token, and was seen to go on."""
    x = completion("x", ENDS, [0], max_new_tokens=3, stop=1)
    goes_on("it goes on", x)
    completion("ending", ENDS, ([0], x), starts_with=[0])


NEW = {f.__name__: f for f in (one_label, labels, stars, taste, pairs_in_a_plate, piece, sentence)}


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_a_label_is_a_bernoulli():
    oracle = Oracle(one_label)
    r = count_score(oracle.values["x"])
    torch.testing.assert_close(oracle.log_potential, logsigmoid(r / 0.6))


def test_three_labels_of_one_score_are_summed():
    oracle = Oracle(labels)
    score = (count_score(oracle.values["x"]) + 0.4 * oracle.values["mood"]) / 0.8
    torch.testing.assert_close(oracle.log_potential, 2 * logsigmoid(score) + logsigmoid(-score))


def test_ratings_are_ordered_logistic():
    oracle = Oracle(stars)
    below = lambda k: torch.sigmoid((k - count_score(oracle.values["x"])) / 0.5)  # noqa: E731
    two, three = below(1.1) - below(0.4), 1 - below(1.1)
    torch.testing.assert_close(oracle.log_potential, two.log() + three.log())


@pytest.mark.parametrize("stars", range(4))
def test_all_ratings_together_are_certain(stars):
    """P(0) + ... + P(K) = 1, and a middling score gets middling stars."""

    def said(k):
        return lambda: rating("r", pyro.deterministic("s", torch.tensor(0.0)), k, cutpoints=[-1.0, 0.0, 1.0])

    log_p = torch.stack([pyro.poutine.trace(said(k)).get_trace().log_prob_sum() for k in range(4)])
    assert log_p.exp().sum() == pytest.approx(1)
    assert log_p[stars].exp() == pytest.approx([0.2689, 0.2311, 0.2311, 0.2689][stars], abs=1e-4)


def test_numbers_of_python_keep_all_their_digits():
    """A list of floats is no tensor of float32: .1 is .1, to the sixteenth digit."""
    seen = trace(lambda: rating("r", torch.tensor(0.3, dtype=torch.float64), 1, cutpoints=[0.1, 0.7], beta=0.9))
    exact = 1 / (1 + math.exp(-(0.3 - 0.1) / 0.9)) - 1 / (1 + math.exp(-(0.3 - 0.7) / 0.9))
    assert float(seen.nodes["r"]["fn"].log_prob(seen.nodes["r"]["value"]).exp()) == pytest.approx(exact, rel=1e-14)


def test_pairs_and_labels_inform_a_latent_which_tilts_the_text():
    oracle = Oracle(taste)
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.5, 0.5]], dtype=torch.float64)
    scores = weights @ FEATURES.T
    evidence = logsigmoid((scores[:, :2] - scores[:, 2:]) / 0.7).sum(-1)
    sign = torch.tensor([1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    evidence = evidence + logsigmoid(sign * scores / 1.3).sum(-1)
    x, which = oracle.values["x"], oracle.values["taste"]
    liked = logsigmoid(weights[which, 0] * (x == 0).sum(-1))
    torch.testing.assert_close(oracle.log_potential, evidence[which] + 0.5 * (x == 1).sum(-1) + liked)


def test_plates_of_the_program_keep_their_dimension():
    oracle = Oracle(pairs_in_a_plate)
    each = count_score(oracle.values["x"])  # [S, 2]
    total = each.sum(-1)
    want = logsigmoid((each - 0.1) / 0.9).sum(-1) + logsigmoid(each[:, 0]) + logsigmoid(-each[:, 1])
    want = want + logsigmoid(total) + logsigmoid(-2 * total) + logsigmoid(-3 * total)
    torch.testing.assert_close(oracle.log_potential, want)


def test_the_answer_ends_with():
    """p(answer | it is three tokens, then 1 0, then over), by enumeration of all answers."""
    whole = Oracle(partial(completion_only, 6))
    x = whole.values["x"]
    ending = torch.tensor([1, 0, 2])
    fits = ((x[:, 3:] == ending).all(-1)) & (x[:, :3] != 2).all(-1)
    want = {tuple(row.tolist()): float(p) for row, p in zip(x[fits, :3], whole.log_prior[fits], strict=True)}
    found = Oracle(piece)
    assert found.log_evidence == pytest.approx(float(whole.log_prior[fits].logsumexp(0)))
    got = {tuple(row.tolist()): float(p) for row, p in zip(found.values["middle"], found.log_target, strict=True)}
    alive = {ids: p + found.log_evidence for ids, p in got.items() if p > -math.inf}
    assert alive == pytest.approx(want)


def completion_only(width: int) -> None:
    completion("x", ENDS, [0], max_new_tokens=width)
    pyro.factor("nothing", torch.zeros(()))


def test_without_goes_on_an_ended_piece_counts():
    def careless():
        middle = completion("middle", ENDS, [0], max_new_tokens=3)
        completion("ending", ENDS, ([0], middle), obs=[1, 0])

    assert Oracle(careless).log_evidence > Oracle(piece).log_evidence + 0.1


def test_goes_on_allows_a_stop_token_and_no_eos():
    def goes_on_only():
        x = completion("x", ENDS, [0], max_new_tokens=3, stop=1)
        goes_on("it goes on", x)

    oracle = Oracle(goes_on_only)
    first = [next((i for i in row if i in (1, 2)), None) for row in oracle.values["x"].tolist()]
    assert set(first) == {1, 2, None}
    assert oracle.log_potential.tolist() == [-math.inf if ends_with == 2 else 0.0 for ends_with in first]


def test_goes_on_where_there_is_no_eos_says_nothing():
    def fixed():
        goes_on("it goes on", completion("x", MEMORY, [0], max_new_tokens=2))

    assert Oracle(fixed).log_evidence == pytest.approx(0)


ENGINES = {
    "importance": ImportanceSampling(num_particles=64),
    "smc": SMC(num_particles=96, twist="prefix"),
    "rejection": Rejection(num_particles=8, max_draws=2_000_000),
    "exact": Enumeration(),
}


@pytest.mark.parametrize(
    "engine", [pytest.param(e, marks=[pytest.mark.statistical] * (e == "rejection")) for e in ENGINES]
)
def test_engines_keep_their_contract_on_observations(engine):
    # Of rejection's independent draws, 8 a replicate, a third says as much as the weights of the others do.
    report = contract_of(ENGINES[engine], NEW, num_replicates=100 if engine == "rejection" else 300)
    report.raise_if_failed()
    assert not [result for result in report.results if result.status == "refused"]


def test_svi_learns_from_labels():
    found = SVI(num_steps=80, num_particles=16, guide="table").run(one_label, seed=0)
    exact = Oracle(one_label)
    gap = exact.log_evidence - float(exact.elbo(found.guide).detach())
    before = exact.log_evidence - float(exact.elbo(exact.log_prior))
    assert 0 <= gap < before / 4


def trace(statement):
    return pyro.poutine.trace(statement).get_trace()


@pytest.mark.parametrize("program", [piece, sentence])
def test_no_engine_draws_an_ended_piece(program):
    """Importance sampling and SVI draw from within: no weight is lost to draws that ended."""
    exact = Oracle(program)
    (site,) = exact.values
    for engine in (ImportanceSampling(num_particles=400), SVI(num_steps=60, num_particles=32, guide="table")):
        found = engine.run(program, seed=1)
        first = found.particles[site].tokens
        stopped = (first == 1).cumsum(-1) > 0 if program is sentence else torch.zeros_like(first, dtype=torch.bool)
        assert not ((first == 2) & ~stopped).any()
        spread = found.log_weight.exp().std() / found.log_weight.numel() ** 0.5
        assert abs(found.log_weight.exp().mean() - math.exp(exact.log_evidence)) < 4.5 * spread


@pytest.mark.parametrize(
    ("statement", "error", "says"),
    [
        (lambda: label("l", torch.zeros(2), [1, 2]), InputError, "True or False (1 or 0), got 2"),
        (lambda: label("l", torch.zeros(2), "yes"), InputError, "got 'yes'"),
        (lambda: label("l", torch.zeros(2), []), InputError, "got nothing"),
        (lambda: label("l", "good", 1), InputError, "a score is a tensor"),
        (lambda: label("l", torch.zeros(2), 1, beta=0), InputError, "beta must be positive"),
        (lambda: label("l", torch.tensor([0.0, math.nan]), 1), RewardError, "a score is nan"),
        (lambda: prefers("p", torch.tensor([math.inf]), torch.tensor([math.inf])), RewardError, "a score is inf"),
        (lambda: rating("r", torch.zeros(2), 4, [0.0, 1.0]), InputError, "from 0 to 2 (the cutpoints), got 4"),
        (lambda: rating("r", torch.zeros(2), 1.5, [0.0, 1.0]), InputError, "got 1.5"),
        (lambda: rating("r", torch.zeros(2), 1, [1.0, 0.0]), InputError, "increasing finite numbers"),
        (lambda: goes_on("g", torch.zeros(2)), InputError, "what completion(...) returned"),
    ],
)
def test_bad_input_gives_one_clear_line(statement, error, says):
    with pytest.raises(error) as caught:
        trace(statement)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", [*ENGINES.values(), ImportanceSampling(num_particles=3, num_replicates=1)], ids=str)
@pytest.mark.parametrize("lanes", [0, 2])
def test_scores_that_are_one_for_all_need_room_for_the_particles(engine, lanes):
    """[3] might be one number for each of 3 particles: whether it is a batch is never left to their number."""
    scores, obs = torch.tensor([0.1, 0.2, 0.3]).double(), [1, 0, 1]

    def program(scores):
        label("known", scores, obs)
        if lanes:
            with pyro.plate("lanes", lanes):
                completion("x", FIXED, [[0], [1]], max_new_tokens=1)
        else:
            completion("x", FIXED, [0], max_new_tokens=1)

    with pytest.raises(InputError, match=r"'known': a score of shape \[3\] .*, write score.reshape\(\[1, 1, 3\]\)"):
        engine.run(program, scores)
    constant = float(logsigmoid(torch.tensor([0.1, -0.2, 0.3])).sum())
    said = engine.run(program, scores.reshape(1, 1, 3)).factors["known"].double()
    torch.testing.assert_close(said, torch.full_like(said, constant))


def test_by_hand_an_observation_says_nothing():
    label("l", torch.zeros(2), [1, 0])
    prefers("p", torch.zeros(2), torch.zeros(2))
    rating("r", torch.zeros(2), 1, [0.0])
