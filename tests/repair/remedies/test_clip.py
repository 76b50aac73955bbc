import math

from steadygrad.repair.remedies.clip import adaptive_clip, clip, healthy_norm, update_clip, weight_clip
from tests.repair.remedies.step_cases import built, case


def test_the_level_is_learned_from_steps_in_which_the_run_still_learned():
    assert list(built(clip, case(alarm_at=40))) == ["clip at 1.2", "clip at 1"]
    assert built(clip, case(alarm_at=40))["clip at 1.2"].plan == {"clip_norm": 1.2}


def test_without_a_healthy_norm_the_usual_levels_are_tried():
    for unknown in (
        case("stuck", alarm_at=40),
        case(alarm_at=40, loss_best=1.95),
        case(alarm_at=5, healthy_steps=5),
        case(alarm_at=40, norm_before=math.nan),
        case(),  # it has grown slowly, with no step that was healthy for sure
    ):
        assert healthy_norm(unknown) is None
        assert list(built(clip, unknown)) == ["clip at 1", "clip at 0.1"]


def test_a_rule_that_learns_needs_a_run_that_was_well():
    assert built(adaptive_clip, case(alarm_at=40))["clip by z-score"].plan == {
        "adaptive_clip": {"name": "ZClip"}
    }
    assert (
        built(adaptive_clip, case(alarm_at=4, healthy_steps=4)) == built(adaptive_clip, case("stuck")) == {}
    )


def test_updates_are_clipped_for_adam_alone():
    assert list(built(update_clip, case(optimizer="AdamW"))) == ["updates clipped"]
    assert built(update_clip, case(optimizer="SGD")) == {}


def test_weights_are_bounded_for_an_objective_without_bound():
    assert built(weight_clip, case("exploded")) == {}
    alone = built(weight_clip, case("unbounded", likely=["unbounded_objective"]))
    assert [r.plan["weight_clip"] for r in alone.values()] == [{"max": 0.1}, {"max": 0.01}]
    pair = built(weight_clip, case("unbounded", likely=["unbounded_objective"], optimizers=2))
    assert {r.plan["weight_clip"]["optimizer"] for r in pair.values()} == {0, 1}
    assert list(built(clip, case("unbounded", alarm_at=40)))[-1] == "clip at 0.1"
