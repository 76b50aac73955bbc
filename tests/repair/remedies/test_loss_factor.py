import math

import pytest

from steadygrad.records import LossTerm, Portrait, RecurrenceStats
from steadygrad.repair.remedies.loss_factor import mean_loss
from tests.repair.remedies.step_cases import built, case


def portrait(weight=None, steps=0):
    terms = () if weight is None else (LossTerm("mse", 1.0, 1.0, weight, "mean", 8, 1.0, 1.0, 0.0, 1.0),)
    through = (RecurrenceStats("rnn.weight_hh_l0", steps, 0.0, 0.0, 1.0, 1.0),) if steps else ()
    return Portrait(terms=terms, recurrences=through)


@pytest.mark.parametrize(
    ("known", "passes", "divisors", "sure"),
    [
        (portrait(200.0, 200), 1, [200.0], True),  # a sum over time
        (portrait(640.0), 1, [640.0], False),
        (portrait(640.0, 100), 1, [640.0, 100.0], False),
        (portrait(1.0), 16, [16.0], False),  # passes that are added
        (portrait(math.nan, 100), 1, [100.0], False),
        (portrait(None, 100), 1, [100.0], False),
        (portrait(1.0, 100), 1, [], False),  # a mean
        (portrait(), 1, [], False),
        (None, 1, [], False),
    ],
)
def test_the_divisor_is_what_the_loss_is_of_its_mean(known, passes, divisors, sure):
    found = built(mean_loss, case(portrait=known, num_backwards=passes)).values()
    assert [1 / r.plan["gradient_factor"] for r in found] == pytest.approx(divisors)
    assert any(r.lead for r in found) == sure
