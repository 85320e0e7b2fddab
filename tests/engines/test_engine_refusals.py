"""What engines refuse, in one clear line."""

from __future__ import annotations

import pytest
import torch

from ppl_align import SMC, SVI, Enumeration, ImportanceSampling, completion, reward
from ppl_align.core.errors import AllDeadError, InputError, RunError
from ppl_align.testing.programs import FIXED, PROGRAMS


def impossible():
    x = completion("x", FIXED, [0], max_new_tokens=2)
    reward("never", lambda t: torch.full(t.shape[:-1], -torch.inf), x.tokens)


@pytest.mark.parametrize("engine", [Enumeration(), ImportanceSampling(8, 2), SMC(8, 2, twist="prefix")], ids=str)
def test_all_dead_is_an_error_that_says_where(engine):
    with pytest.raises(AllDeadError, match=r"every particle has weight zero.*'never'.*Try"):
        engine.run(impossible)


def test_a_prefix_closed_rejection_kills_on_the_way():
    def program():
        x = completion("x", FIXED, [0], max_new_tokens=3)
        reward("no", lambda t: torch.full(t.shape[:-1], -torch.inf), x.tokens, prefix_closed=True)

    with pytest.raises(AllDeadError, match="after 1 tokens of 'x'"):
        SMC(8, 2, twist="prefix").run(program)


def test_svi_refuses_hard_rejections():
    with pytest.raises(RunError, match=r"hard rejection.*'has a 2'"):
        SVI(num_steps=2).run(PROGRAMS["hard_rejection"])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ImportanceSampling(0), "num_particles"),
        (lambda: ImportanceSampling(num_replicates=0), "num_replicates"),
        (lambda: ImportanceSampling(proposal=3), "proposal"),
        (lambda: SMC(num_particles=2.5), "num_particles"),
        (lambda: SMC(ess_threshold=1.5), "ess_threshold"),
        (lambda: SMC(resampling="sistematic"), "did you mean 'systematic'"),
        (lambda: SMC(twist="prefx"), "did you mean 'prefix'"),
        (lambda: SMC(every="sentences"), "did you mean 'sentence'"),
        (lambda: SMC(every=0), "every"),
        (lambda: SVI(num_particles=1), "num_particles"),
        (lambda: SVI(guide="haed"), "did you mean 'head'"),
        (lambda: SVI(learning_rate=-1.0), "learning_rate"),
        (lambda: Enumeration(max_sequences=0), "max_sequences"),
        (lambda: Enumeration(max_sequences=10).run(PROGRAMS["fixed_length"]), "more than 10"),
        (lambda: ImportanceSampling().run("positive_review"), "a Pyro program"),
        (lambda: SVI(guide="head").run(PROGRAMS["with_eos"]), "no hidden states"),
        (lambda: SVI(guide="lora").run(PROGRAMS["with_eos"]), "no weights to adapt"),
        (lambda: ImportanceSampling().run(lambda: None), "no latent site"),
    ],
)
def test_bad_configurations_are_one_clear_line(make, says):
    with pytest.raises(InputError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)
