from steadygrad.records import LossTerm, Portrait
from steadygrad.repair.remedies.hold import hold_targets
from tests.repair.remedies.step_cases import built, case

MOVING = Portrait(terms=(LossTerm("mse", 1.0, 1.0, 1.0, "mean", 8, 1.0, 1.0, 0.0, 1.0, target_moves=True),))


def test_targets_are_held_where_the_model_makes_them():
    assert built(hold_targets, case()) == {}
    for known in (case(codes=["M113"]), case(portrait=MOVING), case(likely=["bootstrapped_target"])):
        assert [r.plan["hold_targets"] for r in built(hold_targets, known).values()] == [20, 100]
    assert [*built(hold_targets, case(codes=["M113"], steps=3000))][-1] == "targets held for 300 steps"
