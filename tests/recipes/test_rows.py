"""Residual blocks put into a Sequential: the equation, what is kept, and what is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from steadygrad.nn.activations import SquaredReLU
from steadygrad.nn.residual import Residual
from steadygrad.recipes import rows
from steadygrad.recipes.edits import Edits


def changed(model, width=rows.linear_width, norm=rows.layer_norm_for, dropout=0.0, example=None):
    todo = Edits(model)
    example = torch.zeros(2, 4) if example is None else example
    rows.add_residuals(todo, example, width, norm, dropout)
    return todo


def row(count=3, width=4, act=nn.ReLU):
    return [m for _ in range(count) for m in (nn.Linear(width, width), act())]


def blocks(model):
    return sum(isinstance(m, Residual) for m in model.modules())


def test_the_equation():
    model = nn.Sequential(
        nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)
    )
    stem, _, first, _, second, _, head = model
    changed(model, example=torch.zeros(1, 3))
    x = torch.randn(5, 3)
    h = stem(x).tanh()
    for weight in (first, second):
        h = h + weight(F.layer_norm(h, (4,)).tanh())
    torch.testing.assert_close(model(x), head(F.layer_norm(h, (4,)).tanh()))


def test_convolutions_with_their_norms_and_dropout():
    norms = [nn.BatchNorm2d(4) for _ in range(2)]
    convs = [nn.Conv2d(4, 4, 3, padding="same") for _ in range(2)]
    model = nn.Sequential(
        *(m for c, n in zip(convs, norms, strict=True) for m in (c, n, nn.ReLU(), nn.Dropout2d(0.3))),
        nn.Conv2d(4, 1, 1),
    )
    drops = [m for m in model if isinstance(m, nn.Dropout2d)]
    todo = changed(model, rows.conv_width, rows.batch_norm_for, None, torch.zeros(2, 4, 5, 5))
    assert [b.fn[3] for b in list(model)[:2]] == drops  # of whole channels, as they were
    assert [b.fn[0] for b in list(model)[:2]] == norms and [b.fn[2] for b in list(model)[:2]] == convs
    assert isinstance(model[2], nn.BatchNorm2d) and model[2] is not norms[1]
    assert len(todo.changes) == 1 and "2 layers" in todo.changes[0]
    model.eval()
    x = torch.randn(2, 4, 5, 5)
    h = x
    for norm, conv in zip(norms, convs, strict=True):
        h = h + conv(norm(h).relu())
    torch.testing.assert_close(model(x), model[4](model[2](h).relu()))


def test_undo_gives_the_same_tree_and_function():
    model = nn.Sequential(*row(2), nn.Linear(4, 1))
    shape, x = str(model), torch.randn(2, 4)
    before = model(x)
    todo = changed(model)
    assert str(model) != shape
    todo.undo()
    assert str(model) == shape and torch.equal(model(x), before)


LEFT = {
    "one layer": [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)],
    "no activation": [nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)],
    "other widths": [nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU()],
    "softmax": [nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 4), nn.Softmax(-1)],
    "softmax over channels": [nn.Linear(4, 4), nn.Softmax2d(), nn.Linear(4, 4), nn.Softmax2d()],
    "halved": [nn.Linear(4, 4), nn.GLU(), nn.Linear(2, 2), nn.GLU()],
    "widths change": [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU()],
}


@pytest.mark.parametrize("layers", LEFT.values(), ids=LEFT)
def test_left_alone(layers):
    model = nn.Sequential(*layers)
    assert changed(model).changes == [] and list(model) == layers


def test_two_rows_of_different_width_and_named_children():
    layers = {
        f"{kind}{i}": m
        for i, w in enumerate((4, 4, 5))
        for kind, m in (("fc", nn.Linear(w, w)), ("act", SquaredReLU()))
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        if name == "fc2":
            model.add_module("up", nn.Linear(4, 5))
        model.add_module(name, layer)
    model.add_module("fc3", nn.Linear(5, 5))
    model.add_module("act3", nn.ReLU())
    model.add_module("head", nn.Linear(5, 5))
    changed(model)
    names = [n for n, _ in model.named_children()]
    assert names == ["fc0", "fc1", "fc1_norm", "fc1_act", "up", "fc2", "fc3", "fc3_norm", "fc3_act", "head"]
    assert model(torch.randn(2, 4)).shape == (2, 5)


@pytest.mark.parametrize(
    ("conv", "width"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), 4),
        (nn.Conv1d(4, 4, 5, padding=4, dilation=2), 4),
        (nn.Conv3d(2, 2, 1), 2),
        (nn.Conv2d(4, 4, 3), None),
        (nn.Conv2d(4, 4, 3, padding=1, stride=2), None),
        (nn.Conv2d(4, 8, 3, padding=1), None),
        (nn.Conv2d(4, 4, 3, padding="valid"), None),
        (nn.Conv2d(4, 4, 4, padding="same"), 4),
        (nn.Linear(4, 4), None),
    ],
)
def test_which_convolutions_keep_the_shape(conv, width):
    assert rows.conv_width(conv) == width


def test_what_makes_the_output_stays():
    model = nn.Sequential(*row(2), nn.Linear(4, 4), nn.Sigmoid())
    last = model[4]
    todo = changed(model)
    assert blocks(model) == 2 and model[4] is last and isinstance(model[5], nn.Sigmoid)
    assert todo.changes[0] == "the model: 1 layer kept (makes the output)"


class Masked(nn.Linear):
    """A subclass whose forward is its own: an autoregressive mask, which a norm would break."""

    def forward(self, x):
        return F.linear(x, self.weight.tril(), self.bias)


def shared_layer():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(4, 1))


def tied_weights():
    model = nn.Sequential(*row(), nn.Linear(4, 1))
    for layer in (model[2], model[4]):
        layer.weight = model[0].weight
    return model


def frozen():
    model = nn.Sequential(*row(), nn.Linear(4, 1))
    model[:6].requires_grad_(False)
    return model


def hooked():
    model = nn.Sequential(*row(), nn.Linear(4, 1))
    for module in model[:6]:
        module.register_forward_hook(lambda *_: None)
    return model


def spectral():
    model = nn.Sequential(*row(), nn.Linear(4, 1))
    for layer in model[:6:2]:
        nn.utils.parametrizations.spectral_norm(layer)
    return model


def old_spectral():
    model = nn.Sequential(*row(), nn.Linear(4, 1))
    for layer in model[:6:2]:
        nn.utils.spectral_norm(layer)
    return model


class Own(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


class Sliced(nn.Module):
    """Calls parts of its Sequential: the numbers in it mean something."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(*row(4), nn.Linear(4, 1))

    def forward(self, x):
        return self.net[4:](self.net[:4](x))


class Reader(nn.Module):
    """Finds a weight by its place in the Sequential, where another would be after a change."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(*row(2), nn.Linear(4, 4))

    def forward(self, x):
        return F.linear(self.net(x), self.net[2].weight)


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.later = nn.Linear(4, 1), nn.Sequential(*row(), nn.Linear(4, 1))

    def forward(self, x):
        return self.head(x) if self.training else self.later(x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*row(2))

    def forward(self, x):
        return x + self.body(x)


STAYS = {
    "shared layer": (shared_layer, "3 layers kept (used in several places)"),
    "tied weights": (tied_weights, "3 layers kept (tied)"),
    "frozen": (frozen, "3 layers kept (frozen)"),
    "hooks": (hooked, "3 layers kept (hooked)"),
    "old spectral norm": (old_spectral, "3 layers kept (hooked)"),
    "parametrised": (spectral, None),
    "subclass of a layer": (
        lambda: nn.Sequential(Masked(4, 4), nn.ReLU(), Masked(4, 4), nn.ReLU(), nn.Linear(4, 1)), None
    ),
    "subclass of Sequential": (lambda: Own(*row(), nn.Linear(4, 1)), None),
    "called in parts": (Sliced, "used from outside"),
    "weights used by hand": (Reader, "1 layer kept (used from outside of its Sequential)"),
    "not met": (Idle, "3 layers kept (not met by the example)"),
    "residual blocks": (lambda: nn.Sequential(Block(), Block(), nn.Linear(4, 1)), "in a residual block"),
    "Residual": (
        lambda: nn.Sequential(Residual(nn.Sequential(*row(2)), 4), nn.Linear(4, 1)), "in a residual block"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "why"), STAYS.values(), ids=STAYS)
def test_stays_and_says_why(build, why):
    model = build()
    shape, before = str(model), blocks(model)
    names = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    todo = changed(model)
    assert str(model) == shape and blocks(model) == before
    assert [n for n, _ in model.named_parameters(remove_duplicate=False)] == names
    assert len(todo.changes) == 0 if why is None else len(todo.changes) > 0
    assert all(why in change for change in todo.changes)


def test_the_layers_after_a_frozen_one_are_changed():
    model = nn.Sequential(*row(5), nn.Linear(4, 1))
    model[:4].requires_grad_(False)
    kept = list(model)[:4]
    changed(model)
    assert list(model)[:4] == kept and blocks(model) == 3


def test_one_activation_for_all_layers_is_no_obstacle():
    act = nn.ReLU()
    model = nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(4, 4), act)), nn.Linear(4, 1))
    changed(model)
    assert blocks(model) == 3


def test_a_net_that_is_used_twice_is_changed_once():
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = nn.Sequential(*row(), nn.Linear(4, 1))
            self.right = self.left

        def forward(self, x):
            return self.left(x) - self.right(x + 1)

    model = Siamese()
    todo = changed(model)
    assert blocks(model) == 3 and model.right is model.left and len(todo.changes) == 1


def test_a_deep_net_under_a_skip_is_changed():
    class Denoiser(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(*row(6), nn.Linear(4, 4))

        def forward(self, x):
            return x - self.net(x) + x

    model = Denoiser()
    changed(model)
    assert blocks(model) == 6


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_new_modules_have_dtype_and_mode_of_the_layer(dtype, training):
    model = nn.Sequential(*row(), nn.Linear(4, 1)).to(dtype).train(training)
    changed(model, dropout=0.1, example=torch.zeros(2, 4, dtype=dtype))
    assert blocks(model) == 3
    assert all(p.dtype == dtype for p in model.parameters())
    assert all(m.training == training for m in model.modules())


def test_the_last_norm_is_a_fresh_one():
    model = nn.Sequential(
        *(m for _ in range(2) for m in (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.PReLU())), nn.Linear(4, 1)
    )
    model[4].weight.data.fill_(0.0)
    model[4].running_mean.fill_(7.0)
    changed(model)
    assert model[2].weight.tolist() == [1.0] * 4 and model[2].running_mean.tolist() == [0.0] * 4
    assert model[1].fn[0].running_mean.tolist() == [7.0] * 4


def test_the_run_on_the_example_leaves_no_trace():
    model = nn.Sequential(
        *(m for _ in range(2) for m in (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())), nn.Linear(4, 1)
    )
    state = torch.get_rng_state()
    changed(model, example=torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert model[0].fn[0].num_batches_tracked == 0


def test_a_compiled_model_is_changed_as_the_model_itself():
    model = nn.Sequential(*row(3), nn.Linear(4, 1))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(2, 4)
    compiled(x)  # a graph of the old structure is there
    todo = changed(compiled)
    assert todo.changes == ["the model: 3 layers made pre-activation residual blocks"]
    assert torch.equal(compiled(x), model(x)) and blocks(model) == 3
