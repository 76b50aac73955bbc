"""The terms of a loss, against what torch gives on the raw predictions and targets."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadygrad.graph.loss import SeenTerm, read_loss
from steadygrad.graph.walk import Graph

REDUCTIONS = ("mean", "sum", "by_hand", "rows")
SHAPES = ((), (24,), (24, 1), (24, 5), (6, 4, 5), (3, 2, 4, 5))
CLASS_SHAPES = ((24, 5), (6, 5, 4), (3, 5, 2, 4))


def number(value: Tensor | float) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def read(*roots: Tensor, outputs=(), **more) -> tuple[SeenTerm, ...]:
    return read_loss(Graph(roots), roots, outputs, **more)


def only(*roots: Tensor, outputs=(), **more) -> SeenTerm:
    (seen,) = read(*roots, outputs=outputs, **more)
    return seen


def prediction(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    made: Tensor = 0.3 + torch.randn(shape, generator=draw).requires_grad_() * 1.5
    return made


def targets(*shape: int, seed: int = 1) -> Tensor:
    """Columns of different spread around 2."""
    draw = torch.Generator().manual_seed(seed)
    spread = torch.arange(1.0, shape[-1] + 1) if shape else torch.tensor(1.0)
    return 2.0 + spread * torch.randn(shape, generator=draw)


def labels(*shape: int, classes: int = 5) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.randint(0, classes, shape, generator=draw).clamp(max=classes - 2)


def columns(value: Tensor) -> Tensor:
    """[rows, columns] by the rule of the documentation, spelled out."""
    if value.ndim > 3:
        return torch.stack([value[:, c].reshape(-1) for c in range(value.shape[1])], 1)
    return value.reshape(-1, value.shape[-1] if value.ndim > 1 else 1)


def reduced(loss: Tensor, how: str) -> tuple[Tensor, float]:
    """The loss and what it does to the mean of its elements."""
    if how == "sum":
        return loss.sum(), loss.numel()
    if how == "rows" and loss.ndim > 1:
        return loss.flatten(1).sum(1).mean(), loss[0].numel()
    return loss.mean(), 1.0


def best_constant(kind: str, target: Tensor) -> float:
    """The smallest mean loss of a constant per column, by trying many."""
    total = 0.0
    for column in columns(target).T:
        tried = torch.cat(
            [torch.linspace(number(column.min()), number(column.max()), 501), column]
        ).unsqueeze(1)
        total += number(ELEMENTS[kind](*torch.broadcast_tensors(tried, column)).mean(1).min())
    return total / columns(target).shape[1]


ELEMENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda p, t: (p - t) ** 2,
    "l1": lambda p, t: (p - t).abs(),
    "smooth_l1": lambda p, t: F.smooth_l1_loss(p, t, beta=0.7, reduction="none"),
    "huber": lambda p, t: F.huber_loss(p, t, delta=1.3, reduction="none"),
}
FUSED: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": lambda p, t, reduction: F.smooth_l1_loss(p, t, beta=0.7, reduction=reduction),
    "huber": lambda p, t, reduction: F.huber_loss(p, t, delta=1.3, reduction=reduction),
}


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ELEMENTS)
def test_differences(kind: str, shape: tuple[int, ...], how: str) -> None:
    p, t = prediction(*shape), targets(*shape)
    if how in ("mean", "sum"):
        loss, weight = FUSED[kind](p, t, reduction=how), number(t.numel() if how == "sum" else 1)
    else:
        loss, weight = reduced(FUSED[kind](p, t, reduction="none"), how)
    seen = only(loss, outputs=[p])
    term = seen.term
    assert (term.kind, term.elements, term.repeats, term.output) == (kind, t.numel(), 1, "")
    assert term.value == pytest.approx(number(ELEMENTS[kind](p, t).mean()), rel=1e-4)
    assert term.weight == pytest.approx(weight, rel=1e-5)
    assert term.value * term.weight == pytest.approx(number(loss), rel=1e-5)
    assert term.trivial == pytest.approx(best_constant(kind, t), rel=1e-3, abs=1e-6)
    assert term.target_mean == pytest.approx(number(t.mean()), rel=1e-4)
    assert term.target_rms == pytest.approx(number(t.square().mean().sqrt()), rel=1e-4)
    assert term.target_std == pytest.approx(
        number(columns(t).std(0, unbiased=False).mean()), rel=1e-4, abs=1e-6
    )
    assert term.prediction_rms == pytest.approx(number(p.square().mean().sqrt()), rel=1e-4)
    if t.numel() > 1:
        assert term.reduction == ("sum" if how == "sum" else "mean")


BY_HAND: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor], float]] = {
    "power": ("mse", lambda p, t: ((p - t) ** 2).mean(), 1.0),
    "swapped": ("mse", lambda p, t: (t - p).pow(2).sum(), 120.0),
    "square": ("mse", lambda p, t: (p - t).square().sum(1).mean(), 5.0),
    "half": ("mse", lambda p, t: 0.5 * torch.square(t - p).sum() / len(p), 2.5),
    "product": ("mse", lambda p, t: ((d := p - t) * d).mean(), 1.0),
    "through views": ("mse", lambda p, t: ((p.view(-1) - t.view(-1)).view(8, 15) ** 2).mean(), 1.0),
    "absolute": ("l1", lambda p, t: (p - t).abs().mean(), 1.0),
    "one norm": ("l1", lambda p, t: torch.norm(p - t, p=1), 120.0),
    "one norm of rows": ("l1", lambda p, t: torch.linalg.vector_norm(p - t, ord=1, dim=1).mean(), 5.0),
    "distance": ("l1", lambda p, t: torch.dist(p, t, p=1), 120.0),
    "stacked": ("mse", lambda p, t: torch.stack([((p - t) ** 2).mean(), ((p - t) ** 2).mean()]).mean(), 1.0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_differences_by_hand(name: str) -> None:
    kind, form, weight = BY_HAND[name]
    p, t = prediction(24, 5), targets(24, 5)
    loss = form(p, t)
    term = only(loss, outputs=[p]).term
    assert term.kind == kind
    assert term.value == pytest.approx(number(ELEMENTS[kind](p, t).mean()), rel=1e-4)
    assert term.weight == pytest.approx(weight, rel=1e-4)
    if name != "through views":  # one column there
        assert term.trivial == pytest.approx(best_constant(kind, t), rel=1e-3)


ROOTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rmse": lambda p, t: F.mse_loss(p, t).sqrt(),
    "rmse by hand": lambda p, t: torch.sqrt(((p - t) ** 2).mean() + 1e-12),
    "norm": lambda p, t: torch.norm(p - t),
    "norm of rows": lambda p, t: torch.norm(p - t, dim=1).mean(),
    "distance": lambda p, t: torch.dist(p, t),
    "root of a sum": lambda p, t: ((p - t) ** 2).sum(1).sqrt().sum(),
}


@pytest.mark.parametrize("name", ROOTS)
def test_the_weight_through_a_root_is_the_derivative(name: str) -> None:
    p, t = prediction(24, 5), targets(24, 5)
    loss = ROOTS[name](p, t)
    term = only(loss, outputs=[p]).term
    mse = number((p - t).square().mean())
    more = ROOTS[name](t + (p - t) * math.sqrt(1.002), t)  # the same errors with 1.002 times the square
    assert (term.kind, term.value) == ("mse", pytest.approx(mse, rel=1e-5))
    assert term.weight == pytest.approx(number(more - loss) / (0.002 * mse), rel=1e-2)
    assert term.trivial == pytest.approx(best_constant("mse", t), rel=1e-4)


def test_a_hand_written_loss_without_its_prediction_has_a_value_only() -> None:
    p, t = prediction(24, 5), targets(24, 5)
    term = only(((p - t) ** 2).mean()).term
    assert term.value == pytest.approx(number((p - t).square().mean()), rel=1e-5)
    assert math.isnan(term.trivial) and math.isnan(term.target_rms) and math.isnan(term.prediction_rms)


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Tanh(), nn.ReLU(), nn.Softmax(1), nn.Identity()])
def test_a_prediction_is_read_from_what_the_graph_kept(last: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5), last)
    p, t = model(prediction(24, 3).detach()), targets(24, 5)
    term = only(((p - t) ** 2).mean()).term
    assert term.prediction_rms == pytest.approx(number(p.square().mean().sqrt()), rel=1e-4)
    assert term.trivial == pytest.approx(best_constant("mse", t), rel=1e-3)


def test_the_chosen_values_of_a_q_network_are_read() -> None:
    q = nn.Linear(3, 5)(prediction(24, 3).detach())
    action, t = labels(24), targets(24)
    for chosen in (q.gather(1, action.unsqueeze(1)).squeeze(1), q[torch.arange(24), action]):
        term = only(((t - chosen) ** 2).mean()).term
        assert term.trivial == pytest.approx(number(t.var(unbiased=False)), rel=1e-3)


# ----------------------------------------------------------------------------------------------------- classes


def entropy(probabilities: Tensor) -> float:
    return number(-torch.special.xlogy(probabilities, probabilities).sum())


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize("factor", [False, True])
@pytest.mark.parametrize("shape", CLASS_SHAPES)
def test_class_indices(shape: tuple[int, ...], factor: bool, how: str) -> None:
    p, t = prediction(*shape), labels(shape[0], *shape[2:])
    t.view(-1)[::4] = -100
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0]) if factor else None
    if how in ("mean", "sum"):
        loss = F.cross_entropy(p, t, weight=weight, reduction=how)
    else:
        loss, _ = reduced(F.cross_entropy(p, t, weight=weight, reduction="none"), how)
    term = only(loss).term
    kept = t[t != -100]
    counts = torch.bincount(kept, minlength=5) * (1.0 if weight is None else weight)
    assert (term.kind, term.classes, term.elements) == ("cross_entropy", 5, len(kept))
    assert term.value == pytest.approx(number(F.cross_entropy(p, t, weight=weight)), rel=1e-4)
    assert term.value * term.weight == pytest.approx(number(loss), rel=1e-4)
    assert term.trivial == pytest.approx(entropy(counts / counts.sum()), rel=1e-4)
    assert term.reduction == ("sum" if how == "sum" else "mean")
    assert math.isnan(term.target_rms)
    assert math.isfinite(term.prediction_rms)


def test_one_unbatched_sample() -> None:
    p = prediction(5)
    term = only(F.cross_entropy(p, torch.tensor(2))).term
    assert (term.classes, term.elements, term.trivial) == (5, 1, 0.0)
    assert term.value == pytest.approx(number(F.cross_entropy(p, torch.tensor(2))), rel=1e-5)


INDICES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torch": F.cross_entropy,
    "module": lambda p, t: nn.NLLLoss()(nn.LogSoftmax(1)(p), t),
    "gather": lambda p, t: -p.log_softmax(1).gather(1, t.unsqueeze(1)).mean(),
    "index": lambda p, t: -p.log_softmax(1)[torch.arange(len(t)), t].mean(),
    "log of chosen": lambda p, t: -torch.log(p.softmax(1)[torch.arange(len(t)), t]).mean(),
    "log of gathered": lambda p, t: -torch.log(p.softmax(1).gather(1, t.unsqueeze(1)) + 1e-9).sum() / len(t),
    "renormalised": lambda p, t: (
        -torch.log(
            ((q := p.softmax(1)) / q.sum(1, keepdim=True)).gather(1, t[:, None]).clamp(1e-7, 1 - 1e-7)
        ).mean()
    ),
    "softmax by hand": lambda p, t: (
        -torch.log(((q := p.exp()) / q.sum(1, keepdim=True)).gather(1, t[:, None]).clamp(1e-7, 1)).mean()
    ),
    "one-hot": lambda p, t: -(F.one_hot(t, 5) * p.log_softmax(1)).sum(1).mean(),
    "one-hot of log": lambda p, t: (
        -(torch.log(p.softmax(1).clamp(1e-9)) * F.one_hot(t, 5).float()).sum(1).mean()
    ),
    "distribution": lambda p, t: -torch.distributions.Categorical(logits=p).log_prob(t).mean(),
    "einsum": lambda p, t: -torch.einsum("nc,nc->n", p.log_softmax(1), F.one_hot(t, 5).float()).mean(),
    "soft": lambda p, t: F.cross_entropy(p, F.one_hot(t, 5).float()),
    "transposed": lambda p, t: F.cross_entropy(p.view(4, 6, 5).transpose(1, 2), t.view(4, 6)),
}


@pytest.mark.parametrize("name", INDICES)
def test_all_ways_to_write_a_cross_entropy_are_one(name: str) -> None:
    p, t = prediction(24, 5), labels(24)
    term = only(INDICES[name](p, t)).term
    assert (term.kind, term.classes, term.elements, term.repeats) == ("cross_entropy", 5, 24, 1)
    assert term.value == pytest.approx(number(F.cross_entropy(p, t)), rel=1e-4)
    assert term.weight == pytest.approx(1.0, rel=1e-4)
    assert term.trivial == pytest.approx(entropy(torch.bincount(t, minlength=5) / 24), rel=1e-4)
    assert term.reduction == "mean"


@pytest.mark.parametrize("shape", CLASS_SHAPES)
def test_soft_targets(shape: tuple[int, ...]) -> None:
    p, t = prediction(*shape), targets(*shape).softmax(1)
    loss = F.cross_entropy(p, t)
    term = only(loss).term
    mean = t.movedim(1, -1).reshape(-1, 5).mean(0)
    rows = t.numel() // 5
    assert term.elements == rows
    assert term.value * term.weight == pytest.approx(number(loss), rel=1e-4)
    assert term.value == pytest.approx(number(F.cross_entropy(p, t, reduction="sum")) / rows, rel=1e-4)
    assert term.trivial == pytest.approx(entropy(mean), rel=1e-4)


def test_label_smoothing_is_a_soft_target() -> None:
    p, t = prediction(24, 5), labels(24)
    smooth = 0.8 * F.one_hot(t, 5) + 0.2 / 5
    one, other = only(F.cross_entropy(p, t, label_smoothing=0.2)).term, only(F.cross_entropy(p, smooth)).term
    assert one.kind == other.kind == "cross_entropy"
    assert one.value == pytest.approx(other.value, rel=1e-5)
    assert one.trivial == pytest.approx(entropy(smooth.mean(0)), rel=1e-5)
    assert one.weight == pytest.approx(1.0, rel=1e-5)


def test_two_labels_for_the_same_logits_are_one_soft_target() -> None:
    p, a = prediction(24, 5), labels(24)
    b = a.flip(0)
    term = only(0.3 * F.cross_entropy(p, a) + 0.7 * F.cross_entropy(p, b)).term
    soft = 0.3 * F.one_hot(a, 5) + 0.7 * F.one_hot(b, 5)
    assert term.value == pytest.approx(number(F.cross_entropy(p, soft)), rel=1e-5)
    assert term.trivial == pytest.approx(entropy(soft.mean(0)), rel=1e-5)


@pytest.mark.parametrize("form", ["torch", "log", "by hand", "sum"])
def test_divergence_from_fixed_distributions(form: str) -> None:
    p, t = prediction(24, 5), targets(24, 5).softmax(1)
    log = p.log_softmax(1)
    loss = {
        "torch": lambda: F.kl_div(log, t, reduction="batchmean"),
        "log": lambda: F.kl_div(log, t.log(), log_target=True, reduction="batchmean"),
        "by hand": lambda: (t * (t.log() - log)).sum(1).mean(),
        "sum": lambda: F.kl_div(log, t, reduction="sum") / 12,
    }[form]()
    term = only(loss).term
    assert (term.kind, term.elements, term.classes) == ("kl_div", 24, 5)
    assert term.value == pytest.approx(number(F.kl_div(log, t, reduction="batchmean")), rel=1e-4)
    assert term.value * term.weight == pytest.approx(number(loss), rel=1e-4)
    mean = t.mean(0, keepdim=True).log().expand(24, 5)
    assert term.trivial == pytest.approx(number(F.kl_div(mean, t, reduction="batchmean")), rel=1e-3)


def test_ctc_has_a_value_and_no_yardstick() -> None:
    log = prediction(10, 2, 4).log_softmax(2)
    lengths = torch.tensor([10, 10]), torch.tensor([3, 3])
    loss = F.ctc_loss(log, torch.tensor([[1, 2, 3], [3, 2, 1]]), *lengths, reduction="sum")
    term = only(loss).term
    assert (term.kind, term.elements, term.classes) == ("ctc", 2, 4)
    assert term.value * term.weight == pytest.approx(number(loss), rel=1e-5)
    assert math.isnan(term.trivial)


# ----------------------------------------------------------------------------------------------------- binary


@pytest.mark.parametrize("how", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("logits", [False, True])
def test_binary(logits: bool, shape: tuple[int, ...], how: str) -> None:
    x, t = prediction(*shape), (targets(*shape) > 2.3).float()
    call, p = (F.binary_cross_entropy_with_logits, x) if logits else (F.binary_cross_entropy, x.sigmoid())
    if how in ("mean", "sum"):
        loss = call(p, t, reduction=how)
    else:
        loss, _ = reduced(call(p, t, reduction="none"), how)
    term = only(loss).term
    mean = columns(t).mean(0)
    best = sum(entropy(torch.stack([m, 1 - m])) for m in mean) / len(mean)
    assert (term.kind, term.elements) == ("bce_logits" if logits else "bce", t.numel())
    assert term.value == pytest.approx(number(call(p, t)), rel=1e-4)
    assert term.value * term.weight == pytest.approx(number(loss), rel=1e-4)
    assert term.trivial == pytest.approx(best, rel=1e-4, abs=1e-6)
    assert term.output == ("" if logits else "Sigmoid")
    assert term.out_of_range == 0


@pytest.mark.parametrize("form", ["sigmoid", "padded", "logsigmoid"])
def test_binary_by_hand(form: str) -> None:
    x, t = prediction(24, 5), targets(24, 5).sigmoid()
    p = x.sigmoid()
    loss = {
        "sigmoid": lambda: -(t * p.log() + (1 - t) * (1 - p).log()).mean(),
        "padded": lambda: -(t * (p + 1e-9).log() + (1 - t) * (1 - p + 1e-9).log()).mean(),
        "logsigmoid": lambda: -(t * F.logsigmoid(x) + (1 - t) * F.logsigmoid(-x)).mean(),
    }[form]()
    term, torchs = only(loss).term, only(F.binary_cross_entropy(p, t)).term
    assert (term.kind, term.elements) == ("bce", 120)
    assert term.value == pytest.approx(torchs.value, rel=1e-5)
    assert term.trivial == pytest.approx(torchs.trivial, rel=1e-5)
    assert term.weight == pytest.approx(1.0, rel=1e-5)


def test_a_positive_weight_moves_the_best_constant() -> None:
    x, t = prediction(24, 5), (targets(24, 5) > 2.3).float()
    weight = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0])
    term = only(F.binary_cross_entropy_with_logits(x, t, pos_weight=weight)).term
    tried = torch.linspace(-6, 6, 1001).view(-1, 1, 1).expand(-1, 24, 5)
    all_t = t.expand(1001, 24, 5)
    loss = F.binary_cross_entropy_with_logits(tried, all_t, pos_weight=weight, reduction="none")
    assert term.trivial == pytest.approx(number(loss.mean(1).amin(0).mean()), rel=1e-3)


# ----------------------------------------------------------------------------------------------------- structure


def test_masked_elements_do_not_count() -> None:
    p, t = prediction(24, 5), targets(24, 5)
    mask = (torch.arange(120).view(24, 5) % 3 > 0).float()
    kept = mask.bool()
    for loss in (
        (F.mse_loss(p, t, reduction="none") * mask).sum() / mask.sum(),
        (((p - t) * mask) ** 2).sum() / mask.sum(),
        F.mse_loss(p, t, reduction="none")[kept].mean(),
    ):
        term = only(loss, outputs=[p]).term
        assert (term.elements, term.value) == (int(mask.sum()), pytest.approx(number(loss), rel=1e-5))
        spread = sum(number(((c - c[m].mean())[m] ** 2).sum()) for c, m in zip(t.T, kept.T, strict=True))
        assert term.trivial == pytest.approx(spread / number(mask.sum()), rel=1e-4)


def test_the_steps_of_a_sequence_are_one_term() -> None:
    p, t = prediction(7, 6, 5), labels(7, 6)
    loss = sum(F.cross_entropy(p[i], t[i]) for i in range(7))
    assert isinstance(loss, Tensor)
    term = only(loss).term
    assert (term.repeats, term.elements) == (7, 42)
    assert term.value * term.weight == pytest.approx(number(loss), rel=1e-5)
    assert term.trivial == pytest.approx(entropy(torch.bincount(t.view(-1), minlength=5) / 42), rel=1e-5)
    assert term.reduction == "mean"


def test_heads_of_different_weight_stay_apart() -> None:
    p, t = prediction(2, 24, 5), labels(24)
    one, two = read(F.cross_entropy(p[0], t) + 0.3 * F.cross_entropy(p[1], t))
    assert {round(one.term.weight, 5), round(two.term.weight, 5)} == {1.0, 0.3}


def test_a_sum_of_kinds_is_explained_term_by_term() -> None:
    x, t = prediction(24, 5), labels(24)
    y = targets(24, 5)
    loss = (
        2 * F.cross_entropy(x, t)
        + F.mse_loss(x, y, reduction="sum") / 7
        - (-F.l1_loss(x, y))
        + x.exp().mean()
    )
    seen = read(loss, outputs=[x])
    assert sorted(s.term.kind for s in seen) == ["cross_entropy", "l1", "mse"]
    told = sum(s.term.value * s.term.weight for s in seen)
    assert told == pytest.approx(number(loss - x.exp().mean()), rel=1e-5)


def test_what_is_broadcast_counts_as_often() -> None:
    p, t = prediction(24, 5), targets(24, 5)
    for loss, weight in (
        ((F.mse_loss(p, t) * torch.tensor([1.0, 2.0, 4.0])).sum(), 7.0),
        ((F.mse_loss(p, t, reduction="none").mean(1, keepdim=True) + torch.zeros(24, 3)).mean(), 1.0),
        ((F.mse_loss(p, t) + F.mse_loss(p, t, reduction="none")).mean(), 2.0),
    ):
        seen = read(loss)
        assert sum(s.term.weight for s in seen) == pytest.approx(weight, rel=1e-5)
        assert sum(s.term.weight * s.term.value for s in seen) == pytest.approx(loss.item(), rel=1e-5)


def test_several_roots() -> None:
    x, t, y = prediction(24, 5), labels(24), targets(24, 5)
    assert len(read(F.cross_entropy(x, t), F.mse_loss(x, y))) == 2
    assert read(torch.ones(3)) == ()


@pytest.mark.parametrize(
    ("last", "low", "share"),
    [
        (nn.Sigmoid(), -1.0, 2 / 3),
        (nn.ReLU(), -1.0, 1 / 3),
        (nn.Tanh(), 0.0, 1 / 3),
        (nn.Hardtanh(0, 2), 0.0, 0.0),
    ],
)
def test_targets_out_of_the_range_of_the_output(last: nn.Module, low: float, share: float) -> None:
    t = torch.tensor([low, 0.5, 2.0]).repeat(8)
    term = only(F.mse_loss(last(prediction(24)), t)).term
    assert term.output == type(last).__name__.replace("ReLU", "Relu")
    assert term.out_of_range == pytest.approx(share)


def test_a_target_with_a_history_moves() -> None:
    p = prediction(24)
    assert only(F.mse_loss(p, p * 0.9 + 1)).term.target_moves
    assert not only(F.mse_loss(p, targets(24))).term.target_moves


def test_a_bootstrapped_target_moves() -> None:
    q, after = prediction(24, 2), prediction(24, 2, seed=5).detach()
    done = torch.arange(24) % 6 == 0
    t = 1 + 0.99 * after.amax(1) * ~done
    chosen = q[:, 0]
    assert only(F.mse_loss(chosen, t), outputs_without_grad=[after]).term.target_moves
    assert only(
        F.smooth_l1_loss(chosen, 0.9 * after[:, 0]), outputs_without_grad=[after[:, 0]]
    ).term.target_moves
    assert not only(
        F.mse_loss(chosen, targets(24)), outputs_without_grad=[after, after[:, 0]]
    ).term.target_moves
    assert not only(F.mse_loss(chosen, torch.ones(24)), outputs_without_grad=[after]).term.target_moves


def test_large_targets_are_measured_in_part() -> None:
    p, t = prediction(40, 3, 64, 64), targets(40, 3, 64, 64)
    term = only(F.mse_loss(p, t)).term
    assert term.value == pytest.approx(number(F.mse_loss(p, t)), rel=1e-4)
    assert term.trivial == pytest.approx(number(columns(t).var(0).mean()), rel=0.05)
    assert term.elements == t.numel()


# ----------------------------------------------------------------------------------------------------- not taken


@pytest.mark.parametrize("seed", range(3))
def test_policy_gradients_are_no_cross_entropy(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    p, action = prediction(64, 5), labels(64)
    signed, positive = torch.randn(64, generator=draw), torch.rand(64, generator=draw) + 0.1
    log = torch.distributions.Categorical(logits=p).log_prob(action)
    for advantage in (signed, positive):
        assert read(-(log * advantage).mean()) == ()
        assert read((F.cross_entropy(p, action, reduction="none") * advantage).mean()) == ()
        steps = [-each * reward for each, reward in zip(log, advantage, strict=True)]
        assert read(torch.stack(steps).sum()) == ()
    assert read((torch.exp(log - log.detach()) * positive).mean()) == ()


def test_sequences_of_different_lengths_are_a_cross_entropy() -> None:
    p, t = prediction(4, 5, 12), labels(4, 12)
    mask = (torch.arange(12) < torch.tensor([[12], [6], [3], [9]])).float()
    loss = ((F.cross_entropy(p, t, reduction="none") * mask).sum(1) / mask.sum(1)).mean()
    term = only(loss).term
    assert (term.kind, term.elements) == ("cross_entropy", 30)
    assert term.value * term.weight == pytest.approx(number(loss), rel=1e-5)


def test_a_likelihood_with_its_own_variance_is_no_squared_difference() -> None:
    p, t = prediction(24, 5), targets(24, 5)
    spread = prediction(24, 5, seed=3)
    assert read((0.5 * (p - t) ** 2 / spread.exp() + 0.5 * spread).mean(), outputs=[p]) == ()
    assert read(-torch.distributions.Normal(p, spread.exp()).log_prob(t).mean(), outputs=[p]) == ()
    learned = torch.tensor(0.7, requires_grad=True)
    term = only(torch.exp(-learned) * F.mse_loss(p, t) + learned).term
    assert term.weight == pytest.approx(math.exp(-0.7), rel=1e-5)


def test_a_variational_bound_is_its_reconstruction() -> None:
    mean, log_var, x = prediction(24, 5), prediction(24, 5, seed=4), (targets(24, 5) > 2).float()
    divergence = -0.5 * (1 + log_var - mean.pow(2) - log_var.exp()).sum()
    decoded = (mean * 2).sigmoid()
    term = only(F.binary_cross_entropy(decoded, x, reduction="sum") + divergence).term
    assert (term.kind, term.reduction, term.weight) == ("bce", "sum", pytest.approx(120))


def test_contrastive_and_adversarial_losses() -> None:
    a, b = F.normalize(prediction(24, 5)), F.normalize(prediction(24, 5, seed=6))
    term = only(F.cross_entropy(a @ b.T / 0.1, torch.arange(24))).term
    assert term.trivial == pytest.approx(math.log(24), rel=1e-5)  # the uniform guess
    real, fake = prediction(24), prediction(24, seed=7)
    ones, zeros = torch.ones(24), torch.zeros(24)
    call = F.binary_cross_entropy_with_logits
    told = only(call(real, ones) + call(fake, zeros)).term
    assert (told.repeats, told.trivial) == (2, pytest.approx(math.log(2)))
    assert only(call(fake, ones)).term.trivial == 0
    assert read(real.mean() - fake.mean()) == ()
    assert read(torch.log(1 - fake.sigmoid()).mean()) == ()  # minimised, so nothing is a target


def test_two_model_values_compared_and_focal_weights_are_left() -> None:
    a, b, t = prediction(24, 5), prediction(24, 5, seed=8), labels(24)
    assert read(((a - b) ** 2).mean()) == ()
    loss = F.cross_entropy(a, t, reduction="none")
    assert read((loss * (1 - torch.exp(-loss)) ** 2).mean()) == ()
    assert read(-F.mse_loss(a, targets(24, 5))) == ()


def test_scores_that_are_no_log_probabilities() -> None:
    term = only(F.nll_loss(prediction(24, 5), labels(24))).term
    assert term.kind == "nll" and math.isnan(term.trivial)
    own = prediction(24, 5)
    exact = own - torch.log(own.exp().sum(1, keepdim=True))
    assert only(F.nll_loss(exact, labels(24))).term.kind == "cross_entropy"


def test_reading_changes_nothing() -> None:
    torch.manual_seed(0)
    model, x, t = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5)), torch.randn(24, 3), labels(24)
    grads, states = [], []
    called: list[int] = []
    for look in (False, True):
        model.zero_grad()
        out = model(x)
        loss = F.cross_entropy(out, t, label_smoothing=0.1) + ((out - 1) ** 2).mean().sqrt()
        if look:
            out.register_hook(lambda grad: called.append(1))
            loss.grad_fn.register_prehook(lambda grads: called.append(1))  # type: ignore[union-attr]
            state = torch.get_rng_state()
            assert len(read(loss, outputs=[out])) == 2
            assert torch.equal(state, torch.get_rng_state())
            assert called == []  # hooks belong to the user's backward
        loss.backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        states.append(torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_packed_tensors_are_not_unpacked() -> None:
    unpacked = []

    def unpack(value: Tensor) -> Tensor:
        unpacked.append(value)
        return value

    p = prediction(24, 5)
    with torch.autograd.graph.saved_tensors_hooks(lambda value: value, unpack):
        losses = [
            F.cross_entropy(p, labels(24)),
            (F.mse_loss(p, targets(24, 5), reduction="none") * targets(24, 5)).sum(),
        ]
    assert read(*losses) == ()
    assert unpacked == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    p, t = prediction(24, 5).to(dtype), targets(24, 5).to(dtype)
    assert only(F.mse_loss(p, t)).term.value == pytest.approx(
        number(F.mse_loss(p.float(), t.float())), rel=1e-2
    )
    assert only(F.cross_entropy(p, labels(24))).term.trivial > 0


def test_a_loss_that_is_not_finite_is_read() -> None:
    p = torch.full((24, 5), math.nan, requires_grad=True)
    term = only(F.mse_loss(p * 1, targets(24, 5))).term
    assert math.isnan(term.value) and term.trivial > 0
    assert math.isnan(only(F.cross_entropy(p * 1, labels(24))).term.value)
