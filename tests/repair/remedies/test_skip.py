from steadygrad.records import FirstNonFinite
from steadygrad.repair.remedies.skip import skip
from tests.repair.remedies.step_cases import built, case

LOG = FirstNonFinite(37, "forward", "head", "log", "train.py", 9, 37, 3, "-inf", "log of 0")


def test_what_is_not_finite_is_skipped_where_there_was_such_a_step():
    found = built(skip, case("nonfinite", codes=["L100"], alarm_at=37, located=LOG))
    assert found["skip non-finite steps"].plan == {"skip_nonfinite": 1}
    assert found["skip non-finite steps"].lead, "nothing was wrong before it"
    assert "skip non-finite steps" not in built(skip, case("exploded", alarm_at=37))


def test_a_run_that_had_grown_before_is_no_reason_to_begin_with_it():
    grown = {"norm_last": 1e6, "norm_before": 1.0, "loss_last": 1e9}
    found = built(skip, case("nonfinite", codes=["G100"], alarm_at=37, **grown))
    assert found["skip non-finite steps"].lead is None


def test_odd_steps_are_a_lead_once_something_is_usual():
    assert built(skip, case("exploded", alarm_at=37))["skip odd steps"].lead
    assert built(skip, case("exploded", alarm_at=3))["skip odd steps"].lead is None
    assert built(skip, case("exploded"))["skip odd steps"].lead is None, "it grew slowly from its start"


def test_a_run_that_is_merely_stuck_has_nothing_to_skip():
    assert built(skip, case("stuck")) == {}
    assert built(skip, case("stuck", codes=["L102"]))["skip odd steps"].plan == {"skip_above": 20.0}
