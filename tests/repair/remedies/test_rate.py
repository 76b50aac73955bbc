import pytest

from steadygrad.repair.remedies.rate import capped_rate, decay, higher_rate, lower_rate, rewarm, warmup
from tests.repair.remedies.step_cases import built, case


def test_an_explosion_is_met_with_lower_rates_only():
    assert [r.plan["lr_factor"] for r in built(lower_rate, case()).values()] == [0.1, 0.01, 0.001]
    assert built(higher_rate, case()) == built(decay, case()) == {}
    assert "to 0.01" in built(lower_rate, case())["lr / 10"].advice
    assert "to 0" not in built(lower_rate, case(optimizers=2))["lr / 10"].advice, (
        "one number fits one optimizer"
    )


def test_what_is_stuck_may_need_any_rate():
    assert [r.plan["lr_factor"] for r in built(higher_rate, case("stuck")).values()] == [10.0, 100.0, 1000.0]
    assert built(decay, case("ambiguous"))["lr decays to 2 %"].plan == {"lr_decay": 500}
    assert built(decay, case("ambiguous", steps=20)) == {}


@pytest.mark.parametrize(("steps", "wanted"), [(500, 100), (100, 20), (3, 1), (0, 100)])
def test_a_warm_up_takes_a_fifth_of_a_short_run(steps, wanted):
    (remedy,) = built(warmup, case(steps=steps)).values()
    assert remedy.plan == {"warmup_steps": wanted}


def test_schedules_are_bounded_where_they_rise():
    assert built(capped_rate, case()) == {}
    assert list(built(capped_rate, case(lr_jump=1.1))) == ["lr never above 3 x its first"]
    assert list(built(capped_rate, case(lr_peak=1.0))) == ["lr never above 3 x its first"]
    assert built(rewarm, case(lr_jump=1.1)) == {}
    assert built(rewarm, case(lr_jump=20.0))["re-warm-up of 50 steps"].plan == {"rewarm_steps": 50}
