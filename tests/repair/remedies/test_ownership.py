from dataclasses import replace

import pytest

from steadygrad.repair.remedies.ownership import own_parameters
from tests.repair.remedies.step_cases import built, case


def known(*kinds, codes=("M105",)):
    survey = {"unowned": {"models": [{"kind": kind, "count": 4} for kind in kinds]}} if kinds else {}
    return replace(case(codes=codes), survey=survey)


def test_it_needs_the_finding_and_the_parameters():
    assert built(own_parameters, known()) == {}
    assert built(own_parameters, known("copy", codes=())) == {}


@pytest.mark.parametrize(
    ("kinds", "safety", "leads", "says"),
    [
        (["copy"], "exact", True, "from the model that runs"),
        (["copy", "copy"], "exact", True, "from the model that runs"),
        (["replaced"], "tuning", True, "from the model that runs"),
        (["forgotten"], "tuning", False, "every parameter that is trained"),
        (["copy", "forgotten"], "tuning", False, "every parameter that is trained"),
    ],
)
def test_a_copy_is_sure_and_a_forgotten_part_is_tried(kinds, safety, leads, says):
    (remedy,) = built(own_parameters, known(*kinds)).values()
    assert remedy.plan == {"own_parameters": 1} and remedy.serves == ("loop_mistake",)
    assert remedy.safety == safety and (remedy.lead is not None) is leads
    assert says in remedy.advice and remedy.name.startswith(str(4 * len(kinds)))
