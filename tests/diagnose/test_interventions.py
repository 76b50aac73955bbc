"""Which change is tried for which cause, and what its outcome is worth."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadygrad.diagnose.advice import ADVICE
from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.interventions import (
    SERVING,
    Intervention,
    Outcome,
    choose,
    confirm,
    recovered,
)
from steadygrad.diagnose.verdict import Verdict
from steadygrad.records import Cause, LossTerm, Portrait

NAN = math.nan


def cause(name, probability=0.5, codes=()):
    return Cause(name, probability, "model", tuple(codes), (), "", f"because of {name}")


def outcome(kind, end, *, start=2.0, trivial=NAN, failed=0.9, skipped=0.0):
    return Outcome(Verdict(kind, NAN, start, end, trivial, ""), failed, skipped)


def plans(causes, facts=None, most=4):
    return [dict(change.plan) for change in choose(causes, facts or Facts(), most)]


def term(weight):
    return LossTerm("mse", 1.0, 1.0, weight, "sum", 64, 1.0, 1.0, 0.0, 1.0)


# ---------------------------------------------------------------------- which
def test_only_what_is_likely_is_tried_and_the_likeliest_first():
    causes = [cause("unsafe_op", 0.05), cause("bad_batch", 0.2), cause("lr_too_large", 0.6)]
    skip = {"skip_nonfinite": 1.0, "skip_above": 20.0}
    assert plans(causes) == [{"lr_factor": 0.1}, skip, {"lr_factor": 0.01}]
    assert plans(causes, most=2) == [{"lr_factor": 0.1}, skip], (
        "a second change comes after everybody's first"
    )
    assert plans(causes, most=1) == [{"lr_factor": 0.1}]
    assert plans([cause("vanishing", 0.9)]) == []


def test_one_change_that_serves_two_causes_runs_once():
    causes = [cause("recurrent_growth", 0.3), cause("attention_logit_growth", 0.4)]
    (change,) = choose(causes, Facts(), most=1)
    assert change.causes == ("attention_logit_growth", "recurrent_growth")
    assert change.cause == "attention_logit_growth"


def test_numbers_of_a_plan_come_from_the_run():
    summed = Facts(portrait=Portrait(terms=(term(0.5), term(64.0))), num_backwards=2)
    assert plans([cause("loss_reduction")], summed) == [{"gradient_factor": 1 / 128}]
    assert plans([cause("loss_reduction")], Facts(portrait=Portrait(terms=(term(1.0),)))) == []
    learned = Facts(healthy_steps=30, norm_before=4.0, loss_first=2.0, loss_best=1.7)
    assert plans([cause("recurrent_growth")], learned) == [{"clip_norm": 6.0}]
    stuck = {"verdict": outcome("stuck", 1.9).verdict}
    for unknown in (
        stuck,
        {"healthy_steps": 3},
        {"norm_before": NAN},
        {"loss_best": 1.9},
        {"loss_first": NAN},
    ):
        assert plans([cause("recurrent_growth")], replace(learned, **unknown)) == [{"clip_norm": 1.0}]
    assert plans([cause("warmup_missing")], Facts(steps=150)) == [{"warmup_steps": 30.0}]
    assert plans([cause("warmup_missing")], Facts(steps=5000)) == [{"warmup_steps": 100.0}]
    assert plans([cause("lr_too_small")]) == [{"lr_factor": 10.0}, {"lr_factor": 100.0}]


def test_what_cannot_be_the_cause_is_not_tried():
    assert plans([cause("momentum_too_large")], Facts(momentum=0.9)) == []
    assert plans([cause("momentum_too_large")], Facts(momentum=0.95)) == [{"momentum": 0.5}]
    assert plans([cause("momentum_too_large")], Facts(betas=(0.99, 0.999))) == [{"momentum": 0.5}]
    assert plans([cause("stale_second_moment")], Facts(betas=(0.9, 0.95))) == []
    assert plans([cause("stale_second_moment")], Facts(betas=(0.9, 0.999))) == [{"beta2": 0.95}]
    assert plans([cause("unscaled_inputs")], Facts(optimizers=2)) == []
    assert plans([cause("unscaled_inputs")]) == [{"standardise_inputs": 1.0}]
    assert plans([cause("loop_mistake", codes=["M102"])]) == []
    both = plans([cause("loop_mistake", codes=["M101", "M103"])])
    assert both == [{"zero_gradients": 1.0}, {"train_mode": 1.0}]


def test_every_cause_that_is_served_is_a_cause():
    assert SERVING.keys() <= ADVICE.keys()


# ---------------------------------------------------------------------- what an outcome is worth
@pytest.mark.parametrize(
    ("twin", "arm", "expected"),
    [
        (outcome("stuck", 2.0), outcome("learned", 1.29), True),
        (outcome("stuck", 2.0), outcome("ok", 1.31), False),  # better, as anything is by chance
        (outcome("stuck", 2.0), outcome("stuck", 1.0), False),
        (outcome("nonfinite", NAN), outcome("learned", 0.1), True),
        (outcome("nonfinite", NAN), outcome("ok", 1.9), False),  # survives, and does not learn
        (outcome("exploded", 1e9), outcome("ok", 1.9), False),  # far below the twin, not below the start
        (outcome("exploded", 1e9, trivial=1.0), outcome("ok", 0.9), False),
        (outcome("exploded", 1e9, start=50.0, trivial=1.0), outcome("learned", 0.6), True),
        (outcome("stuck", 2.0), outcome("unknown", 0.1), False),
        (outcome("stuck", 2.0), outcome("ambiguous", 0.1, skipped=0.6), False),
        (outcome("worse", -1.0, start=-1.2), outcome("ok", -1.5), False),
        (outcome("worse", -1.0, start=-1.2), outcome("ok", -1.7), True),
        (outcome("nonfinite", NAN, start=NAN), outcome("learned", 0.1), False),  # nothing to compare with
    ],
)
def test_recovered_is_judged_against_the_twin(twin, arm, expected):
    assert recovered(twin, arm) is expected


TWIN = outcome("nonfinite", NAN)
GOOD, BAD = outcome("learned", 0.1), outcome("stuck", 2.0)


def test_a_twin_that_trains_has_no_causes():
    change = Intervention("lr / 10", ("lr_too_large",), {"lr_factor": 0.1})
    assert confirm([cause("lr_too_large")], outcome("learned", 0.1, failed=0.1), [(change, GOOD)]) == []


def test_the_more_specific_of_two_confirmed_causes_goes_first():
    causes = [cause("lr_too_large", 0.5), cause("unsafe_op", 0.2)]
    changes = choose(causes, Facts())
    first, second = confirm(causes, TWIN, [(c, GOOD) for c in changes])
    assert (first.cause, second.cause) == ("unsafe_op", "lr_too_large")
    assert first.message == (
        "because of unsafe_op; confirmed: with skip non-finite steps the run trains (loss 0.1, the twin nan)"
    )


def test_what_did_not_help_speaks_against_its_cause():
    causes = [cause("bad_batch", 0.5), cause("lr_too_large", 0.3)]
    skip, lr, lower = choose(causes, Facts())
    ranked = confirm(causes, TWIN, [(skip, BAD), (lr, None), (lower, None)])
    assert [c.cause for c in ranked] == ["lr_too_large", "bad_batch"]
    assert ranked[0].message == "because of lr_too_large"
    said = "; not confirmed: with skip odd steps it does not train (loss 2, the twin nan)"
    assert ranked[1].message.endswith(said)
    assert choose([cause("unsafe_op")], Facts())[0].miss > skip.miss, "it may fail in every batch"


def test_one_of_several_changes_is_enough():
    causes = [cause("lr_too_small", 0.4)]
    ten, hundred = choose(causes, Facts())
    (found,) = confirm(causes, outcome("stuck", 2.0), [(ten, BAD), (hundred, GOOD)])
    assert "; confirmed: with lr x 100 " in found.message and found.probability > 0.4


@given(
    st.lists(st.sampled_from(["unsafe_op", "lr_too_large", "vanishing"]), unique=True, min_size=1),
    st.lists(st.floats(0.03, 0.3), min_size=3, max_size=3),
    st.lists(st.sampled_from([GOOD, BAD, None]), min_size=3, max_size=3),
)
def test_odds_against_none_of_these_move_by_the_weight_of_the_change(names, probabilities, outcomes):
    causes = [cause(n, p) for n, p in zip(names, probabilities, strict=False)]
    changes = choose(causes, Facts())
    arms = list(zip(changes, outcomes, strict=False))
    ranked = confirm(causes, TWIN, arms)
    none_before = 1 - sum(c.probability for c in causes)
    none_after = 1 - sum(c.probability for c in ranked)
    for c in causes:
        tried = [(a, o) for a, o in arms if a.cause == c.cause and o is not None]
        helped = [a.weight for a, o in tried if o is GOOD]
        gain = max(helped) if helped else min((a.miss for a, _ in tried), default=0.0)
        now = next(r.probability for r in ranked if r.cause == c.cause)
        assert math.log(now / none_after) == pytest.approx(math.log(c.probability / none_before) + gain)
