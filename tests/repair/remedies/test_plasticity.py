"""New starts for units where some are dead, and for loaded weights where nothing explodes."""

import pytest

from steadygrad.repair.remedies.initialisation import reinitialise, zero_bias
from steadygrad.repair.remedies.plasticity import renew_units, shrink_and_perturb
from tests.repair.remedies.step_cases import built
from tests.repair.remedies.surgery_cases import HEAD, layer, surveyed


def with_links(kind="stuck", **more):
    found = surveyed(kind, **more)
    found.survey["structure"].update(links=[["0", "2"], ["2", "4"]], loaded=True)
    return found


@pytest.mark.parametrize("builder", [renew_units, shrink_and_perturb])
def test_nothing_without_a_survey(builder):
    assert not built(builder, surveyed(likely=["dead_units"]))


def test_units_are_renewed_where_some_may_be_dead():
    assert not built(renew_units, with_links())
    found = built(renew_units, with_links(likely=["dead_units"]))
    assert [next(iter(r.plan)) for r in found.values()] == ["dormant_reset", "continual_backprop"]
    for remedy in found.values():
        assert next(iter(remedy.plan.values()))["links"] == [["0", "2"], ["2", "4"]]
    first, second = found.values()
    assert not first.combines_with(second)


def test_loaded_weights_are_shrunk_unless_the_run_explodes():
    (remedy,) = built(shrink_and_perturb, with_links()).values()
    assert remedy.plan == {"shrink_and_perturb": {"shrink": 0.6, "std": 0.01, "seed": 0}}
    assert not built(shrink_and_perturb, with_links("exploded"))


@pytest.mark.parametrize("builder", [reinitialise, zero_bias])
def test_loaded_weights_are_not_drawn_anew(builder):
    fresh = surveyed(layers=[layer("a"), HEAD])
    assert built(builder, fresh)
    fresh.survey["structure"]["loaded"] = True
    assert not built(builder, fresh)
