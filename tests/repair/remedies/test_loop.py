from dataclasses import replace

from steadygrad.repair.remedies.loop import clear_after_step, train_mode, zero_gradients
from tests.repair.remedies.step_cases import built, case


def test_a_mistake_that_was_seen_is_mended_first():
    assert built(zero_gradients, case()) == built(train_mode, case()) == {}
    zero = built(zero_gradients, case(codes=["M101"]))["zero_grad"]
    train = built(train_mode, case(codes=["M103"]))["train mode"]
    assert zero.plan == {"zero_gradients": 1} and train.plan == {"train_mode": 1}
    assert zero.lead and train.lead


def test_lines_that_clear_before_the_step_are_moved_where_they_were_seen():
    seen = {"clearing": {"steps": 5, "clears": []}}
    assert built(clear_after_step, case(codes=["M105"])) == {}, "nothing was cleared: a layer is not used"
    assert built(clear_after_step, replace(case(), survey=seen)) == {}
    remedy = built(clear_after_step, replace(case(codes=["M105"]), survey=seen))["zero_grad behind the step"]
    assert remedy.plan == {"clear_after_step": 1} and remedy.lead and remedy.safety == "exact"
