"""Each safe form: torch's own operation where that is finite, finite where it is not."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steadygrad.repair.effects.safe import safely
from steadygrad.repair.effects.safe_forms import knee

INF = math.inf


class Row(NamedTuple):
    name: str
    call: Callable[..., Tensor]
    unsafe: tuple[Tensor, ...]  # arguments with something that torch cannot do
    safe: tuple[Tensor, ...]  # the same shapes, nothing unsafe
    rest: tuple = ()
    kwargs: dict = {}

    @property
    def id(self) -> str:
        return f"{self.name}-{self.rest or self.kwargs or ''}"


def of(*values: float) -> tuple[Tensor]:
    return (torch.tensor(values),)


ONES = torch.ones(2, 3)
PLAIN = of(0.3, 0.5, 0.7)
MASKED = torch.tensor([[-INF, -INF, -INF], [1.0, 2.0, -INF]])
ROWS = torch.tensor([[0.5, -1.0, 2.0], [1.0, 2.0, 0.3]])
LABELS = torch.tensor([0, 1])
IGNORED = torch.tensor([-100, -100])

TABLE = [
    Row("log", torch.log, of(0.0, 0.5, 2.0), PLAIN),
    Row("log", torch.log, of(-1.0, 0.5, 2.0), PLAIN),
    Row("log2", torch.log2, of(0.0, 0.5, 2.0), PLAIN),
    Row("log10", torch.log10, of(0.0, 0.5, 2.0), PLAIN),
    Row("log1p", torch.log1p, of(-1.0, 0.5, 2.0), PLAIN),
    Row("log1p", torch.log1p, of(-3.0, 0.5, 2.0), PLAIN),
    Row("sqrt", torch.sqrt, of(0.0, -1e-9, 2.0), PLAIN),
    Row("rsqrt", torch.rsqrt, of(0.0, -1.0, 2.0), PLAIN),
    Row("pow", torch.pow, of(0.0, -1.0, 2.0), PLAIN, (0.5,)),
    Row("pow", torch.pow, of(-1.0, 0.5, 2.0), PLAIN, (1.5,)),
    Row("pow", torch.pow, of(0.0, -0.5, 2.0), PLAIN, (-1,)),
    Row("pow", torch.pow, of(0.0, -0.5, 2.0), PLAIN, (-0.5,)),
    Row("exp", torch.exp, of(100.0, 0.5, 2.0), PLAIN),
    Row("exp", torch.exp, of(1e38, 0.5, 2.0), PLAIN),
    Row("exp2", torch.exp2, of(200.0, 0.5, 2.0), PLAIN),
    Row("expm1", torch.expm1, of(100.0, 0.5, 2.0), PLAIN),
    Row("div", torch.div, (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])), (ONES, 2 * ONES)),
    Row("div", torch.div, (torch.tensor([1.0, 1e30]), torch.tensor([2.0, 1e-30])), (ONES, 2 * ONES)),
    Row("div", torch.div, of(1.0, 0.0), PLAIN, (0,)),
    Row("__rdiv__", torch.Tensor.__rdiv__, of(0.0, 2.0), PLAIN, (1.0,)),
    Row("reciprocal", torch.reciprocal, of(0.0, 2.0), PLAIN),
    Row("acos", torch.acos, of(1.0, -1.00001, 0.2), PLAIN),
    Row("asin", torch.asin, of(1.0, -1.00001, 0.2), PLAIN),
    Row("atanh", torch.atanh, of(1.0, -1.5, 0.2), PLAIN),
    Row("erfinv", torch.erfinv, of(1.0, -1.5, 0.2), PLAIN),
    Row("acosh", torch.acosh, of(1.0, 0.5, 2.0), of(1.5, 2.0, 3.0)),
    Row("logit", torch.logit, of(1.0, 0.0, 0.2), PLAIN),
    Row("hypot", torch.hypot, (torch.zeros(2), torch.tensor([0.0, 1.0])), (ONES, ROWS)),
    Row("xlogy", torch.xlogy, (torch.zeros(2), torch.tensor([0.0, 1.0])), (ONES, 2 * ONES)),
    Row("softmax", torch.softmax, (MASKED,), (ROWS,), (-1,)),
    Row("softmax", F.softmax, (MASKED,), (ROWS,), kwargs={"dim": 1}),
    Row("log_softmax", torch.log_softmax, (MASKED[:1],), (ROWS,), (1,)),
    Row("logsumexp", torch.logsumexp, (MASKED,), (ROWS,), (1,)),
    Row("norm", torch.norm, (torch.full((3,), 1e30),), (ROWS,)),
    Row("norm", torch.norm, (1e25 * ROWS,), (ROWS,), kwargs={"dim": 1, "keepdim": True}),
    Row("linalg_norm", torch.linalg.norm, (1e25 * ROWS,), (ROWS,), kwargs={"dim": 1}),
    Row("linalg_vector_norm", torch.linalg.vector_norm, (1e25 * ROWS,), (ROWS,)),
    Row("mean", torch.mean, (torch.ones(0),), (ROWS,)),
    Row("mean", torch.mean, (torch.ones(0, 3),), (ROWS,), (0,)),
    Row("cross_entropy", F.cross_entropy, (ROWS,), (ROWS,), kwargs={"target": IGNORED}),
    Row("cross_entropy", F.cross_entropy, (MASKED,), (ROWS,), kwargs={"target": LABELS}),
    Row("cross_entropy", F.cross_entropy, (MASKED,), (ROWS,), kwargs={"target": LABELS, "label_smoothing": 0.1}),
    Row("nll_loss", F.nll_loss, (ROWS,), (ROWS,), kwargs={"target": IGNORED}),
    Row("nll_loss", F.nll_loss, (MASKED,), (ROWS,), kwargs={"target": LABELS}),
    Row("kl_div", F.kl_div, (MASKED,), (ROWS,), kwargs={"target": ONES / 3, "reduction": "batchmean"}),
    Row("mse_loss", F.mse_loss, (torch.ones(0), torch.ones(0)), (ONES, ROWS)),
    Row("l1_loss", F.l1_loss, (torch.ones(0), torch.ones(0)), (ONES, ROWS)),
]  # fmt: skip


def run(row: Row, args: tuple[Tensor, ...], call: Callable[..., Tensor]) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.clone().requires_grad_() for x in args]
    kwargs = dict(row.kwargs)
    target = [kwargs.pop("target")] if "target" in kwargs else []
    out = call(*leaves, *target, *row.rest, **kwargs)
    grads = torch.autograd.grad(out.sum(), leaves, allow_unused=True)
    return out.detach(), [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]


def as_safe(row: Row) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: safely(row.name, row.call, args, kwargs)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_finite_where_torch_is_not(row: Row) -> None:
    plain, plain_grads = run(row, row.unsafe, row.call)
    assert not all(bool(x.isfinite().all()) for x in (plain, *plain_grads)), (
        "torch can do it: the row tests nothing"
    )
    out, grads = run(row, row.unsafe, as_safe(row))
    assert out.shape == plain.shape and out.dtype == plain.dtype
    masked = (plain == -INF) if row.name == "log_softmax" else torch.zeros_like(out, dtype=torch.bool)
    assert bool((out.isfinite() | masked).all()), out
    assert all(bool(g.isfinite().all()) for g in grads), grads


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_torch_bit_for_bit_where_nothing_is_unsafe(row: Row) -> None:
    if row.name == "div" and row.rest:
        row = row._replace(rest=(2.0,))
    if row.kwargs.get("target") is IGNORED:
        row = row._replace(kwargs={"target": LABELS})
    plain, plain_grads = run(row, row.safe, row.call)
    out, grads = run(row, row.safe, as_safe(row))
    assert torch.equal(out, plain) and out.dtype == plain.dtype
    assert all(torch.equal(g, p) for g, p in zip(grads, plain_grads, strict=True))


ELEMENTWISE = [
    row for row in TABLE if row.unsafe[0].dim() == 1 and row.name in ("log", "sqrt", "pow", "div", "acos")
]


@pytest.mark.parametrize("row", ELEMENTWISE, ids=lambda row: row.id)
def test_other_elements_of_an_unsafe_tensor_keep_their_values(row: Row) -> None:
    plain, plain_grads = run(row, row.unsafe, row.call)
    out, grads = run(row, row.unsafe, as_safe(row))
    for ours, torchs in zip((out, *grads), (plain, *plain_grads), strict=True):
        fine = plain.isfinite() & torch.stack([g.isfinite() for g in plain_grads]).all(0)
        assert torch.equal(ours[fine], torchs[fine])


@pytest.mark.parametrize("name", ["log", "sqrt", "exp", "softmax", "acos", "norm"])
def test_a_nan_that_goes_in_comes_out(name: str) -> None:
    x = torch.tensor([math.nan, 0.0])
    rest = (0,) if name == "softmax" else ()
    assert bool(safely(name, getattr(torch, name), (x, *rest), {}).isnan().any())


def test_the_log_of_a_negative_value_pushes_it_back() -> None:
    x = torch.tensor([-2.0, -1.0, 0.005], requires_grad=True)
    out = safely("log", torch.log, (x,), {})
    assert out[0] < out[1] < out[2]
    assert torch.allclose(torch.autograd.grad(out.sum(), x)[0], torch.full((3,), 100.0))


def test_exp_is_torchs_up_to_the_knee_and_rises_beyond() -> None:
    top = knee(torch.float32)
    below = torch.tensor([-200.0, 0.0, 20.0, top])
    assert torch.equal(safely("exp", torch.exp, (below,), {}), below.exp())
    beyond = safely("exp", torch.exp, (torch.tensor([top, top + 1, top + 100]),), {})
    assert bool((beyond.diff() > 0).all())
    assert knee(torch.float16) == pytest.approx(5.545, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["log", "sqrt", "rsqrt", "exp", "reciprocal", "acos"])
def test_other_precisions(name: str, dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 1.0, 800.0 if name == "exp" else 0.5], dtype=dtype, requires_grad=True)
    out = safely(name, getattr(torch, name), (x,), {})
    assert out.dtype == dtype and bool(out.isfinite().all())
    assert bool(torch.autograd.grad(out.sum(), x)[0].isfinite().all())


def test_the_norm_of_zero_can_be_differentiated_twice() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(safely("norm", torch.norm, (x,), {"dim": 1}).sum(), x, create_graph=True)
    assert torch.equal(torch.autograd.grad((grad**2).sum() + (x * 0).sum(), x)[0], torch.zeros(2, 3))


@pytest.mark.parametrize("call", [torch.std, torch.var], ids=["std", "var"])
@pytest.mark.filterwarnings("ignore:.*degrees of freedom:UserWarning")
def test_the_spread_of_one_value_is_zero(call: Callable[..., Tensor]) -> None:
    x = torch.ones(2, 1, requires_grad=True)
    out = safely(call.__name__, call, (x, 1), {})
    assert out.tolist() == [0.0, 0.0]
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == [[0.0], [0.0]]
    assert torch.equal(safely(call.__name__, call, (ROWS, 1), {}), call(ROWS, 1))


@pytest.mark.parametrize("as_bool", [True, False])
def test_attention_of_a_sample_that_is_padding_throughout(as_bool: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(4, 2, batch_first=True)
    x = torch.randn(2, 3, 4)
    padding = torch.tensor([[True, True, True], [False, False, True]])
    mask = padding if as_bool else torch.zeros(2, 3).masked_fill(padding, -INF)
    plain = layer(x, x, x, key_padding_mask=mask)[0]

    call = F.multi_head_attention_forward
    attended = safely(
        "multi_head_attention_forward", call, _attention_args(layer, x), {"key_padding_mask": mask}
    )[0].transpose(0, 1)
    assert bool(plain[0].isnan().all()) and bool(attended.isfinite().all())
    assert torch.allclose(attended[1], plain[1], atol=1e-6)


def _attention_args(layer: torch.nn.MultiheadAttention, x: Tensor) -> tuple:
    x = x.transpose(0, 1)
    bias, out = layer.in_proj_bias, layer.out_proj
    return x, x, x, 4, 2, layer.in_proj_weight, bias, None, None, False, 0.0, out.weight, out.bias


def test_connectionist_loss_of_a_target_that_does_not_fit() -> None:
    log_probs = torch.randn(2, 1, 3).log_softmax(2).requires_grad_()
    args = (log_probs, torch.tensor([[1, 1, 2, 1]]), torch.tensor([2]), torch.tensor([4]))
    assert bool(F.ctc_loss(*args).isinf())
    out = safely("ctc_loss", F.ctc_loss, args, {})
    out.backward()
    assert out.item() == 0.0 and bool(log_probs.grad.isfinite().all())


def test_in_place_and_out() -> None:
    x = torch.tensor([0.0, 4.0])
    y = safely("sqrt_", torch.Tensor.sqrt_, (x,), {})
    assert y is x and x.tolist() == [0.0, 2.0]
    w = torch.tensor([0.0, 4.0], requires_grad=True)
    z = w * 1
    safely("sqrt_", torch.Tensor.sqrt_, (z,), {})
    z.sum().backward()
    assert w.grad.tolist() == [0.0, 0.25]
    given = torch.empty(2)
    assert safely("log", torch.log, (torch.zeros(2),), {"out": given}) is given and bool(given.isinf().all())


def test_integers_masks_and_complex_numbers_are_left_to_torch() -> None:
    assert safely("log", torch.log, (torch.tensor([0, 1]),), {}).tolist() == [-INF, 0.0]
    assert safely("div", torch.div, (torch.tensor([4]), torch.tensor([2])), {}).tolist() == [2.0]
    assert safely("div", torch.div, (torch.tensor([4.0]), torch.tensor([0])), {}).tolist() == [0.0]
    z = torch.tensor([0j])
    assert torch.equal(safely("exp", torch.exp, (z,), {}), z.exp())
