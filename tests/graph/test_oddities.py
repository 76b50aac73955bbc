"""Oddities of a loss: each planted once, with its twin that is fine, and what looks odd and is meant."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad.graph.loss import read_loss
from steadygrad.graph.oddities import find_oddities
from steadygrad.graph.walk import Graph
from steadygrad.records import Oddity

N = 32


def find(*roots: Tensor, outputs: Sequence[Tensor] = (), **more) -> tuple[Oddity, ...]:
    graph = Graph(roots)
    return find_oddities(graph, roots, read_loss(graph, roots, outputs), **more)


def kinds(*roots: Tensor, **more) -> list[str]:
    found = find(*roots, **more)
    for oddity in found:
        assert oddity.message.count(". ") == 0 and any(char.isdigit() for char in oddity.message)
        assert all(isinstance(value, (int, float)) for value in oddity.evidence.values())
    return [oddity.kind for oddity in found]


def x(*shape: int, seed: int = 0) -> Tensor:
    made: Tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_() * 1
    return made


def t(*shape: int, seed: int = 9) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def y(*shape: int, classes: int = 5) -> Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(4))


Build = Callable[[], Tensor]
bits = (t(N, 1) > 0).float()
ODD: dict[str, tuple[str, Build]] = {
    "softmax": ("softmax_before_cross_entropy", lambda: F.cross_entropy(x(N, 5).softmax(1), y(N))),
    "softmax of images": (
        "softmax_before_cross_entropy",
        lambda: F.cross_entropy(x(4, 5, 3, 3).softmax(1), y(4, 3, 3), label_smoothing=0.1),
    ),
    "softmax, views": (
        "softmax_before_cross_entropy",
        lambda: F.cross_entropy(x(4, 8, 5).softmax(2).view(N, 5), y(N)),
    ),
    "softmax twice by hand": (
        "softmax_before_cross_entropy",
        lambda: -x(N, 5).softmax(1).log_softmax(1).gather(1, y(N, 1)).mean(),
    ),
    "sigmoid": ("sigmoid_before_cross_entropy", lambda: F.cross_entropy(x(N, 5).sigmoid(), y(N))),
    "one unit": ("one_unit_softmax", lambda: F.binary_cross_entropy(x(N, 1).softmax(1), bits)),
    "one unit, classes": (
        "one_unit_softmax",
        lambda: F.cross_entropy(x(N, 1), torch.zeros(N, dtype=torch.long)),
    ),
    "one unit, squares": ("one_unit_softmax", lambda: F.mse_loss(x(N, 1).softmax(-1), bits)),
    "double sigmoid": (
        "sigmoid_before_bce_logits",
        lambda: F.binary_cross_entropy_with_logits(x(N, 1).sigmoid(), bits),
    ),
    "nll of scores": ("nll_without_log_softmax", lambda: F.nll_loss(x(N, 5), y(N))),
    "nll of probabilities": ("nll_without_log_softmax", lambda: F.nll_loss(x(N, 5).softmax(1), y(N))),
    "broadcast by hand": ("broadcast_in_loss", lambda: ((x(N, 1) - t(N)) ** 2).mean()),
    "broadcast the other way": ("broadcast_in_loss", lambda: ((t(N, 1) - x(N)) ** 2).mean()),
    "broadcast of absolutes": ("broadcast_in_loss", lambda: (x(N, 1) - t(N)).abs().mean()),
    "broadcast by views": ("broadcast_in_loss", lambda: (x(N, 1) - t(N)).pow(2).sum(1).mean()),
    "broadcast in a log likelihood": (
        "broadcast_in_loss",
        lambda: -(bits[:, 0] * (p := x(N, 1).sigmoid()).log() + (1 - bits[:, 0]) * (1 - p).log()).mean(),
    ),
    "out of a sigmoid": ("bounded_output", lambda: F.mse_loss(x(N, 2).sigmoid(), 3 * t(N, 2))),
    "out of a relu": ("bounded_output", lambda: F.mse_loss(x(N, 2).relu(), t(N, 2))),
    "out of a tanh": ("bounded_output", lambda: ((x(N, 2).tanh() - 5 * t(N, 2)) ** 2).mean()),
    "constant values": ("constant_target", lambda: F.mse_loss(x(N), torch.full((N,), 3.0))),
    "constant classes": ("constant_target", lambda: F.cross_entropy(x(N, 5), torch.full((N,), 3))),
    "sum": ("loss_sum", lambda: F.cross_entropy(x(N, 5), y(N), reduction="sum")),
    "sum of squares": ("loss_sum", lambda: ((x(N, 5) - t(N, 5)) ** 2).sum()),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_is_told(name: str) -> None:
    kind, build = ODD[name]
    assert kinds(build()) == [kind]


FINE: dict[str, Build] = {
    "cross entropy": lambda: F.cross_entropy(x(N, 5), y(N)),
    "log softmax twice": lambda: F.cross_entropy(x(N, 5).log_softmax(1), y(N)),
    "log of a softmax": lambda: F.nll_loss(x(N, 5).softmax(1).log(), y(N)),
    "sigmoids made to sum to 1": lambda: (
        -((p := x(N, 5).sigmoid()) / p.sum(1, keepdim=True)).gather(1, y(N, 1)).log().mean()
    ),
    "softmax inside": lambda: F.cross_entropy(x(N, 7).softmax(1) @ x(7, 5), y(N)),
    "softmax with squares": lambda: F.mse_loss(x(N, 5).softmax(1), F.one_hot(y(N), 5).float()),
    "attention to one key": lambda: F.mse_loss(x(N, 1).softmax(1) * x(N, 3), t(N, 3)),
    "sigmoid": lambda: F.binary_cross_entropy(x(N, 1).sigmoid(), bits),
    "log likelihood": lambda: -(bits * (p := x(N, 1).sigmoid()).log() + (1 - bits) * (1 - p).log()).mean(),
    "logits": lambda: F.binary_cross_entropy_with_logits(x(N, 1), bits),
    "gate before logits": lambda: F.binary_cross_entropy_with_logits(x(N, 1).sigmoid() * x(N, 1), bits),
    "same shapes": lambda: F.mse_loss(x(N), t(N)),
    "square table": lambda: F.mse_loss(x(N, N), t(N, N)),
    "rows fitted to a table": lambda: ((x(N, 1) - t(N, N)) ** 2).mean(),
    "a mean fitted": lambda: ((x(3) - t(N, 3)) ** 2).mean(),
    "labels of one value": lambda: ((x(N, 1) - 1) ** 2).mean(),
    "pairwise distances": lambda: F.mse_loss(torch.cdist(x(N, 3), x(N, 3, seed=1)), t(N, N)),
    "pairwise in the model": lambda: F.mse_loss((x(N, 1) - x(N, seed=1)).tanh().mean(1), t(N).tanh()),
    "similarities": lambda: F.cross_entropy(x(N, 4) @ x(N, 4, seed=1).T, torch.arange(N)),
    "positives first": lambda: F.cross_entropy(x(N, 5), torch.zeros(N, dtype=torch.long)),
    "chamfer": lambda: ((x(N, 1) - t(N)) ** 2).amin(1).mean(),
    "tanh in range": lambda: F.mse_loss(x(N, 2).tanh(), t(N, 2).sigmoid()),
    "relu in range": lambda: F.mse_loss(x(N, 2).relu(), t(N, 2).abs()),
    "relu inside": lambda: F.mse_loss(x(N, 2).relu() @ x(2, 2), t(N, 2)),
    "a rare outlier": lambda: F.mse_loss(x(N, 2).relu(), torch.cat([t(N - 1, 2).abs(), -torch.ones(1, 2)])),
    "real or fake": lambda: F.mse_loss(x(N), torch.ones(N)) + F.mse_loss(x(N, seed=1), torch.zeros(N)),
    "all fake": lambda: F.binary_cross_entropy_with_logits(x(N), torch.zeros(N)),
    "one image of one class": lambda: F.cross_entropy(x(2, 5, 8, 8), torch.full((2, 8, 8), 3)),
    "sum, scaled down": lambda: F.mse_loss(x(N, 5), t(N, 5), reduction="sum") / 1000,
    "few equal targets": lambda: F.mse_loss(x(4), torch.full((4,), 3.0)),
    "sum over columns": lambda: ((x(N, 5) - t(N, 5)) ** 2).sum(1).mean(),
    "sum, divided": lambda: F.cross_entropy(x(N, 5), y(N), reduction="sum") / N,
    "sum, divided by the mask": lambda: (
        (F.cross_entropy(x(N, 5), y(N), reduction="none") * bits[:, 0]).sum() / bits.sum()
    ),
    "critic": lambda: x(N).mean() - x(N, seed=1).mean(),
}


@pytest.mark.parametrize("name", FINE)
def test_what_is_meant_is_left_alone(name: str) -> None:
    assert kinds(FINE[name]()) == []


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("call", [F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss])
def test_a_broadcast_inside_torch(call: Callable[..., Tensor]) -> None:
    assert kinds(call(x(N, 1), t(N))) == ["broadcast_in_loss"]
    assert kinds(call(x(N), t(N, 1))) == ["broadcast_in_loss"]
    assert kinds(call(x(N, 1), t(N, N))) == []
    assert kinds(call(x(N, 3), t(1, 3))) == []


def test_a_broadcast_with_the_prediction_known() -> None:
    p = x(N, 1)
    (oddity,) = find(((p - t(N)) ** 2).mean(), outputs=[p])
    assert oddity.evidence["size"] == N


def test_the_floor_of_a_softmax_is_the_loss_of_a_sure_and_right_model() -> None:
    sure = (100.0 * F.one_hot(y(N), 5)).requires_grad_()
    loss = F.cross_entropy((sure * 1).softmax(1), y(N))
    (oddity,) = find(loss)
    assert oddity.evidence["floor"] == pytest.approx(loss.item(), rel=1e-5)


def test_terms_are_named_where_there_are_several() -> None:
    loss = F.mse_loss(x(N), t(N)) + F.cross_entropy(x(N, 5).softmax(1), y(N))
    (oddity,) = find(loss)
    assert "cross_entropy" in oddity.where


# ------------------------------------------------------------------------------------------------- parameters


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


def named(*modules: nn.Module) -> dict[Tensor, str]:
    return {p: name for module in modules for name, p in module.named_parameters()}


def test_all_parameters_reached() -> None:
    net = model()
    assert kinds(F.mse_loss(net(t(N, 3)), t(N, 2)), parameters=named(net)) == []


def test_a_trunk_cut_off() -> None:
    net = model()
    hidden = net[:2](t(N, 3)).detach()
    (oddity,) = find(F.mse_loss(net[2](hidden), t(N, 2)), parameters=named(net))
    assert oddity.kind == "unused_parameters"
    assert oddity.evidence == {"count": 2, "share": 0.5}
    assert "0.weight" in oddity.where and "2.weight" not in oddity.where
    net[0].requires_grad_(False)  # frozen on purpose
    assert kinds(F.mse_loss(net(t(N, 3)), t(N, 2)), parameters=named(net)) == []


def test_a_loss_of_no_parameter_of_the_optimizer() -> None:
    net, other = model(), model()
    loss = F.mse_loss(other(t(N, 3)), t(N, 2))
    assert kinds(loss, parameters=named(net)) == ["detached", "untrained_parameters"]
    assert kinds(loss, parameters=named(net), others=list(other.parameters())) == ["detached"]
    constant = torch.tensor(1.0, requires_grad=True)
    assert kinds(constant, parameters=named(net)) == ["detached"]


def test_parameters_in_no_optimizer() -> None:
    net, extra = model(), nn.Linear(2, 2)
    loss = F.mse_loss(extra(net(t(N, 3))), t(N, 2))
    (oddity,) = find(loss, parameters=named(net))
    assert oddity.kind == "untrained_parameters"
    assert oddity.evidence["count"] == 2 and oddity.evidence["share"] == pytest.approx(2 / 6)
    assert kinds(loss, parameters=named(net), others=list(extra.parameters())) == []


def test_inputs_that_need_a_gradient_are_no_parameters() -> None:
    net = model()
    point = t(N, 3).requires_grad_()
    assert kinds(F.mse_loss(net(point), t(N, 2)), parameters=named(net)) == []


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nothing_is_said_of_parameters_that_cannot_be_seen() -> None:
    net = model()
    point = t(N, 3).requires_grad_()
    out = net[2](torch.utils.checkpoint.checkpoint(net[:2], point, use_reentrant=True))
    assert kinds(F.mse_loss(out, t(N, 2)), parameters=named(net)) == []
    loss = F.mse_loss(net(t(N, 3)), t(N, 2))
    cut = Graph([loss], max_nodes=2)
    assert cut.truncated
    assert find_oddities(cut, [loss], read_loss(cut, [loss]), named(net)) == ()


def test_numbers_are_finite() -> None:
    for _, build in ODD.values():
        for oddity in find(build()):
            assert all(not math.isnan(value) for value in oddity.evidence.values())
