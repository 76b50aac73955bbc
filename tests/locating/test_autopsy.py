"""Reading a graph afterwards, against the same operation run under watch and against autograd's own gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.graph import Graph
from steadygrad.locating import autopsy, capture_stacks, line_of, suspects_of_gradient
from steadygrad.locating.derivative import singular


def leaf(*values):
    return torch.tensor(values, requires_grad=True)


# operation, a point where its derivative fails, a point where it is fine
POINTS = {
    "sqrt": (torch.sqrt, 0.0, 1.0),
    "rsqrt": (torch.rsqrt, 0.0, 1.0),
    "reciprocal": (torch.reciprocal, 0.0, 2.0),
    "log": (torch.log, 0.0, 1.0),
    "log2": (torch.log2, 0.0, 1.0),
    "log10": (torch.log10, 0.0, 1.0),
    "log1p": (torch.log1p, -1.0, 0.0),
    "acos": (torch.acos, 1.0, 0.5),
    "asin": (torch.asin, -1.0, 0.0),
    "acosh": (torch.acosh, 1.0, 2.0),
    "atanh": (torch.atanh, 1.0, 0.0),
    "logit": (torch.logit, 0.0, 0.5),
    "erfinv": (torch.erfinv, 1.0, 0.5),
    "exp": (torch.exp, 1000.0, 1.0),
    "half power": (lambda x: x**0.5, 0.0, 1.0),
    "power by tensor": (lambda x: torch.pow(x, torch.tensor(0.25)), 0.0, 1.0),
    "negative power": (lambda x: x**-2, 0.0, 1.0),
    "division": (lambda x: torch.ones(2) / x, 0.0, 1.0),
    "hypot": (lambda x: torch.hypot(x, x), 0.0, 1.0),
    "xlogy": (lambda x: torch.xlogy(x, x), 0.0, 1.0),
    "entropy": (torch.special.entr, 0.0, 0.5),
    "square": (torch.square, 0.0, 1.0),
    "norm": (torch.norm, 0.0, 1.0),
    "tanh": (torch.tanh, 0.0, 100.0),
    "atan2": (lambda x: torch.atan2(x, x), 0.0, 1.0),
}


@pytest.mark.parametrize("name", POINTS)
def test_a_point_is_singular_where_autograd_gives_no_finite_gradient(name):
    function, *points = POINTS[name]
    for point in points:
        x = leaf(point, point)
        y = function(x)
        node = y.grad_fn
        told = singular(node)
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert (told is not None) == (not bool(grad.isfinite().all())), (point, told, grad)


def test_eigenvalues_that_are_equal():
    x = torch.eye(3).requires_grad_()
    vectors = torch.linalg.eigh(x)[1]
    assert singular(vectors.grad_fn)[1] == 2
    apart = torch.diag(torch.tensor([1.0, 2.0, 3.0])).requires_grad_()
    assert singular(torch.linalg.eigh(apart)[1].grad_fn) is None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.a(x).tanh())


def named(model):
    return dict(model.named_parameters())


@pytest.mark.parametrize(
    ("fault", "op", "count"),
    [
        (lambda out: (out * 0).log().mean(), "log", None),
        (lambda out: (out / (out * 0)).mean(), "div", None),
        (lambda out: (out.abs() * 1e3 + 100).exp().mean(), "exp", 10),
        (lambda out: (-out.abs() - 1).sqrt().mean(), "sqrt", 10),
        (lambda out: out.masked_fill(torch.ones(5, 1) > 0, -torch.inf).softmax(0).mean(), "softmax", 10),
        (lambda out: F.cross_entropy(out, torch.full((5,), -100)), "nll_loss", 1),
        (lambda out: out[:0].mean(), "mean", 1),
        (lambda out: (-1 - out.abs()).acosh().mean(), "acosh", None),
    ],
)
def test_a_loss_that_is_not_finite(fault, op, count):
    model = Net()
    found = autopsy([fault(model(torch.randn(5, 3)))], named(model))
    assert (found.kind, found.op) == ("forward", op)
    assert found.upstream.startswith("b.") and found.module == "b" and found.downstream == ""
    if count is not None:
        assert found.count == count


def test_in_the_middle_of_a_model():
    model = Net()
    hidden = (model.a(torch.randn(5, 3)) * 1e3).exp().exp()
    found = autopsy([model.b(hidden).mean()], named(model))
    assert (found.op, found.upstream[0], found.downstream[0]) == ("exp", "a", "b")


def test_an_overflow_behind_a_relu_is_the_product_s():
    a, b = torch.full((2, 2), 1e30, requires_grad=True), torch.full((2, 2), 1e30)
    found = autopsy([F.relu(a @ b).square().mean()], {"a": a})
    assert found.op == "mm"
    assert "overflows float32" in found.detail


def test_data_and_parameters_that_were_broken_before():
    model = Net()
    x = torch.randn(5, 3)
    x[3, 1] = torch.nan
    found = autopsy([model(x).mean()], named(model))
    assert (found.kind, found.sample) == ("data", 3)
    with torch.no_grad():
        model.b.weight[0, 0] = torch.inf
    found = autopsy([model(torch.randn(5, 3)).mean()], named(model))
    assert (found.kind, found.upstream) == ("optimizer", "b.weight")


def test_a_mask_and_a_branch_left_out_are_passed_over():
    x = leaf(0.0, 1.0, 2.0)
    safe = torch.where(x > 0, x.log(), torch.zeros(()))
    found = autopsy([(safe.sum() + (x * 0 - 1).sqrt().sum())], {"x": x})
    assert found.op == "sqrt"


def test_a_finite_loss_has_no_suspect():
    model = Net()
    assert autopsy([model(torch.randn(5, 3)).mean()], named(model)) is None


def test_a_graph_that_was_freed_or_changed_in_place_is_no_error():
    x = leaf(1.0, 2.0)
    y = x * 2
    loss = y.log().sum() * torch.inf
    with torch.no_grad():
        y.add_(1)  # the version that log kept is gone
    autopsy([loss], {"x": x})
    z = (leaf(1.0, 2.0) * 0).log().sum()
    z.backward()
    autopsy([z], {})


def test_saved_tensor_hooks_are_not_run():
    called = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: called.append(1) or t):
        loss = (leaf(1.0, 2.0) * 0).log().sum()
    autopsy([loss], {})
    assert called == []


def test_the_operation_between_bad_and_finite_gradients():
    model = Net()
    hidden = model.a(torch.randn(5, 3))
    distance = (hidden * 0).square().sum(1, keepdim=True).sqrt()  # the producer
    side = model.b(hidden.detach())
    loss = distance.mean() + side.mean() + ((side * 0).detach() * side).mean()
    loss.backward(retain_graph=True)
    bad = [p for p in model.parameters() if not p.grad.isfinite().all()]
    good = [p for p in model.parameters() if p.grad.isfinite().all()]
    assert bad and good
    found = suspects_of_gradient([loss], bad, good, named(model))
    assert [s.op for s in found] == ["sqrt"]
    assert (found[0].module, found[0].count) == ("a", 5)
    assert suspects_of_gradient([loss], good, bad, named(model)) == []


def test_the_likeliest_spoils_no_finite_gradient():
    a, b = leaf(1.0, 1.0), leaf(1.0, 1.0)
    guilty = (a * 0).sqrt()
    loss = guilty.sum() + torch.where(b > 2, (b * 0).sqrt() * 0 + 1, b).sum()
    found = suspects_of_gradient([loss], [a], [b], {"a": a, "b": b})
    assert [s.upstream for s in found] == ["a"]


def test_the_line_is_found_one_step_later():
    def forward():
        x = leaf(0.0, 4.0)
        first = (x + 1).sqrt()
        second = (x * 1).sqrt()  # second root
        return (first + second).sum()

    (suspect,) = suspects_of_gradient([forward()], [], [], {}) or [None]
    assert suspect is None  # no parameter is bad
    loss = forward()
    leaves = list(Graph([loss]).leaves.values())
    (suspect,) = suspects_of_gradient([loss], leaves, [], {})
    assert (suspect.node, suspect.nth) == ("Sqrt", 1)
    with capture_stacks():
        later = forward()
    site = line_of(suspect.node, suspect.nth, [later])
    with open(__file__) as file:
        text = file.read().splitlines()
    assert text[site.line - 1].endswith("# second root")
    assert line_of("Erfinv", 0, [later]).line == 0
    assert line_of(suspect.node, suspect.nth, [loss]).line == 0  # nothing was kept


def test_names_are_found_among_live_modules(apart):
    model = Net()
    found = autopsy([(model(torch.randn(5, 3)) * 0).log().mean()])
    assert found.upstream.endswith(("b.weight", "b.bias"))


def test_a_point_whose_gradient_is_stopped_comes_after_the_producer():
    a, b = leaf(-1.0, -1.0), leaf(-1.0, -1.0)
    stopped = F.relu(a + b).sqrt()  # the ReLU lets no gradient through
    loss = (a * 0).sqrt().sum() + stopped.sum()
    loss.backward(retain_graph=True)
    assert not a.grad.isfinite().any() and b.grad.isfinite().all()
    found = suspects_of_gradient([loss], [a], [b], {"a": a, "b": b})
    assert [s.nth for s in found] == [0, 1]
    assert found[0].position < found[1].position
