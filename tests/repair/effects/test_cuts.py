"""Gradients pass at the named cuts, and nowhere else does a bit change."""

import inspect

import pytest
import torch
from torch import nn

from steadygrad.repair.effects.change import Change
from steadygrad.repair.effects.effect import NotApplicable
from tests.integrations.trainings import differences
from tests.repair.effects.stepping import under


def detached(h):
    return h.detach()


def by_function(h):
    return torch.detach(h)


def data(h):
    return h.data


def block(h, encode=lambda h: 2 * h):
    with torch.no_grad():
        return encode(h)


@torch.no_grad()
def decorated(h):
    return 2 * h


def switched(h):
    with torch.set_grad_enabled(False):
        return 2 * h


def site(function, op):
    lines, first = inspect.getsourcelines(inspect.unwrap(function))
    wanted = {"detach": "detach(", "data": ".data", "no_grad": ("no_grad", "set_grad_enabled")}[op]
    wanted = (wanted,) if isinstance(wanted, str) else wanted
    line = next(
        i
        for i, text in enumerate(lines)
        if any(w in text for w in wanted) and not text.lstrip().startswith("def")
    )
    return {"file": "test_cuts.py", "line": first + line, "op": op}


CUTS = [
    (detached, "detach"),
    (by_function, "detach"),
    (data, "data"),
    (block, "no_grad"),
    (decorated, "no_grad"),
    (switched, "no_grad"),
]


@pytest.fixture
def passing():
    made = []

    def put_in_force(*sites):
        made.append(Change({"pass_gradients": {"sites": list(sites)}}))
        made[-1].install()

    yield put_in_force
    for change in made:
        change.remove()
    assert torch.overrides._get_current_function_mode() is None


@pytest.mark.parametrize(("cut", "op"), CUTS)
def test_the_named_cut_passes_gradients_and_off_they_stay_off(cut, op, passing):
    h = 3 * torch.ones(2, requires_grad=True)
    before = cut(h)
    passing(site(cut, op))
    after = cut(h)
    assert not before.requires_grad and after.requires_grad and torch.equal(before, after)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        assert not cut(h).requires_grad and not torch.is_grad_enabled()


@pytest.mark.parametrize(("cut", "op"), CUTS)
def test_other_lines_and_other_ops_keep_their_cut(cut, op, passing):
    here = site(cut, op)
    passing({**here, "line": here["line"] + 1}, {**here, "op": "data" if op != "data" else "detach"})
    assert not cut(3 * torch.ones(2, requires_grad=True)).requires_grad


def test_a_cut_seen_through_another_mode_is_the_same(passing):
    passing(site(detached, "detach"))
    with torch.device("cpu"):
        assert detached(3 * torch.ones(2, requires_grad=True)).requires_grad


def test_the_end_of_a_block_that_switches_gradients_on_is_no_cut(passing):
    def inner(h):
        with torch.enable_grad():
            return 2 * h

    lines, first = inspect.getsourcelines(inner)
    passing({"file": "test_cuts.py", "line": first + 1, "op": "no_grad"})
    with torch.no_grad():
        inner(torch.ones(1, requires_grad=True))
        assert not torch.is_grad_enabled()


def test_after_removal_the_cut_is_back():
    change = Change({"pass_gradients": {"sites": [site(detached, "detach")]}})
    change.install()
    change.remove()
    change.remove()
    assert not detached(3 * torch.ones(2, requires_grad=True)).requires_grad


def train(cut, optimizer=torch.optim.Adam, to_none=True):
    torch.manual_seed(0)
    encoder, head = nn.Linear(3, 4), nn.Linear(4, 1)
    chosen = optimizer([*encoder.parameters(), *head.parameters()], lr=0.05)
    x = torch.randn(16, 3)

    def closure():
        chosen.zero_grad(set_to_none=to_none)
        loss = (head(cut(encoder(x))) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        return loss

    for _ in range(4):
        chosen.step(closure)
    return {**encoder.state_dict(), **{f"head.{k}": v for k, v in head.state_dict().items()}}


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.LBFGS])
@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize(("cut", "uncut", "op"), [(detached, lambda h: h, "detach"), (data, lambda h: h, "data"),
                                                  (block, lambda h: 2 * h, "no_grad")])  # fmt: skip
def test_a_training_with_the_cut_passed_is_the_one_without_it(cut, uncut, op, optimizer, to_none):
    right, wrong = train(uncut, optimizer, to_none), train(cut, optimizer, to_none)
    with under({"pass_gradients": {"sites": [site(cut, op)]}}):
        mended = train(cut, optimizer, to_none)
    with under({"pass_gradients": {"sites": [{**site(cut, op), "line": 1}]}}):
        left = train(cut, optimizer, to_none)
    assert differences(mended, right) == [] and differences(mended, wrong) != []
    assert differences(left, wrong) == []


@pytest.mark.parametrize(
    "value", [1, {}, {"sites": []}, {"sites": [{"file": "a", "line": 1, "op": "clone"}]}]
)
def test_values_that_mean_nothing(value):
    with pytest.raises(NotApplicable, match="detach, data, no_grad"):
        Change({"pass_gradients": value})


def test_other_effects_still_see_whose_call_it_is():
    here = {"sites": [site(detached, "detach")]}
    change = Change({"pass_gradients": here, "safe_ops": {"everywhere": True}})
    change.install()
    try:
        assert torch.isfinite(torch.log(torch.zeros(1)))
    finally:
        change.remove()
