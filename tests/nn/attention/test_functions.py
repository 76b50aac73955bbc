"""The functions: z-loss, soft cap, attention with a cap, the largest logit, normalising."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from steadygrad.nn import attention as A
from tests.nn.attention import oracles

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# z-loss


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_z_loss_equals_the_formula(dtype):
    logits = (5 * rand(6, 7)).to(dtype)
    target = torch.tensor([1, -100, 3, 0, -100, 2])
    mask = torch.tensor([True, True, False, True, True, True])
    counts = (target != -100) & mask
    want = oracles.z_loss(oracles.anything(logits), 0.5, counts.numpy())
    got = A.z_loss(logits, 0.5, target, mask=mask)
    np.testing.assert_allclose(got.item(), want, rtol=1e-12 if dtype == torch.float64 else 1e-6)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    shaped = A.z_loss(logits.view(2, 3, 7).mT, 0.5, target.view(2, 3), mask=mask.view(2, 3), dim=1)
    assert torch.equal(shaped, got)
    assert torch.equal(
        A.z_loss(logits, 0.5, target.where(target == -100, -1), -1, mask=~mask), A.z_loss(logits, 0.0)
    )


def test_z_loss_gradient():
    logits = rand(4, 5, dtype=torch.float64).requires_grad_()
    mask = torch.tensor([True, False, True, True])
    assert torch.autograd.gradcheck(lambda x: A.z_loss(x, 0.3, mask=mask), logits)


def test_z_loss_pulls_log_z_to_zero_where_cross_entropy_does_not():
    logits = torch.zeros(1, 4, requires_grad=True)
    shifted = logits + 30.0
    (F.cross_entropy(shifted, torch.tensor([1])) + A.z_loss(shifted, 1e-4)).backward()
    np.testing.assert_allclose(logits.grad.sum().item(), 2e-4 * (30 + math.log(4)), rtol=1e-3)


def test_z_loss_of_rows_that_do_not_count_gives_no_gradient_whatever_is_in_them():
    logits = torch.tensor([[1.0, 2.0], [math.inf, math.nan], [-math.inf, -math.inf]], requires_grad=True)
    loss = A.z_loss(logits, 1.0, mask=torch.tensor([True, False, False]))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and not logits.grad[1:].any()


def test_z_loss_at_the_edges():
    assert A.z_loss(torch.full((2, 3), 1e18), 1.0).isfinite()
    assert A.z_loss(torch.full((2, 3), 3e4, dtype=torch.float16), 1e-4).isfinite()
    assert A.z_loss(torch.tensor([[0.0, -math.inf]]), 1.0) == 0
    for bad, kind in ((math.nan, "isnan"), (math.inf, "isinf")):
        assert getattr(A.z_loss(torch.tensor([[1.0, bad]])), kind)()
    assert A.z_loss(torch.tensor([[-math.inf, -math.inf]])).isinf()
    empty = torch.zeros(0, 5, requires_grad=True)
    A.z_loss(empty).backward()
    assert A.z_loss(empty) == 0
    assert A.z_loss(torch.zeros(2, 3), mask=torch.zeros(2, dtype=torch.bool)) == 0
    np.testing.assert_allclose(A.z_loss(torch.zeros(2, 8), 1.0).item(), math.log(8) ** 2, rtol=1e-6)


def test_z_loss_refuses():
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="coefficient must be at least 0"):
        A.z_loss(logits, -1e-4)
    with pytest.raises(ValueError, match="target must have the shape"):
        A.z_loss(logits, target=torch.zeros(3, dtype=torch.long))
    with pytest.raises(TypeError, match="mask must be bool"):
        A.z_loss(logits, mask=torch.ones(2))
    with pytest.raises(TypeError, match="logits must be a float tensor"):
        A.z_loss(torch.zeros(2, 3, dtype=torch.long))


def test_z_loss_compiles():
    compiled = torch.compile(A.z_loss, backend="aot_eager", fullgraph=True)
    logits, target = rand(3, 5), torch.tensor([0, -100, 1])
    torch.testing.assert_close(compiled(logits, 1.0, target), A.z_loss(logits, 1.0, target))


# soft cap


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_cap_logits_equals_the_formula(dtype):
    logits = (40 * rand(50)).to(dtype)
    want = [30 * math.tanh(x / 30) for x in logits.tolist()]
    got = A.soft_cap_logits(logits, 30.0)
    assert got.dtype == dtype and bool((got.abs() <= 30).all())
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, 8e-3)
    np.testing.assert_allclose(oracles.anything(got), want, rtol=tolerance)


def test_soft_cap_logits_at_the_edges():
    logits = torch.tensor([-math.inf, math.inf, math.nan, 0.0, 1e30, -1e30], requires_grad=True)
    capped = A.soft_cap_logits(logits, 5.0)
    assert capped[0] == -math.inf and capped[1] == math.inf and capped[2].isnan()
    assert capped[3:].tolist() == [0.0, 5.0, -5.0]
    capped[[0, 1, 3, 4, 5]].sum().backward()
    assert logits.grad[[0, 1, 3, 4, 5]].tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert A.soft_cap_logits(logits, math.inf) is logits
    assert A.soft_cap_logits(torch.zeros(0, 3), 1.0).shape == (0, 3)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="cap must be positive"):
            A.soft_cap_logits(logits, bad)
    x = rand(5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: A.soft_cap_logits(x, 0.7), x)


SDPA = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "bool": {"attn_mask": torch.ones(4, 6, dtype=torch.bool).tril(1)},
    "float": {"attn_mask": rand(2, 1, 4, 6, seed=5)},
    "rows_masked": {"attn_mask": torch.tensor([True, False, True, False])[:, None].expand(4, 6)},
    "minus_inf_rows": {"attn_mask": torch.tensor([0.0, -math.inf, 0.0, 0.0])[:, None].expand(4, 6)},
    "gqa": {"enable_gqa": True},
}


def qkv(name, dtype=torch.float32):
    heads = 2 if name == "gqa" else 4
    return rand(2, 4, 4, 8, seed=1, dtype=dtype), *(rand(2, heads, 6, 8, seed=s, dtype=dtype) for s in (2, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SDPA)
def test_soft_capped_attention_without_a_reached_cap_is_torchs(name, dtype):
    q, k, v = qkv(name, dtype)
    given = {
        n: m.to(dtype) if isinstance(m, torch.Tensor) and m.is_floating_point() else m
        for n, m in SDPA[name].items()
    }
    want = F.scaled_dot_product_attention(q, k, v, **given)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
    for cap in (1e7, math.inf):
        got = A.soft_capped_attention(q, k, v, cap, **given)
        assert got.dtype == dtype and got.isfinite().all()
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SDPA)
def test_soft_capped_attention_gradient(name):
    tensors = [t[:1].double().requires_grad_() for t in qkv(name)]
    given = {n: m[:1].double() if n == "attn_mask" and m.ndim == 4 else m for n, m in SDPA[name].items()}
    given = {n: m.double() if n == "attn_mask" and m.is_floating_point() else m for n, m in given.items()}
    run = lambda q, k, v: A.soft_capped_attention(q, k, v, 0.5, **given)  # noqa: E731
    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
    run(*tensors).sum().backward()
    assert all(t.grad.isfinite().all() for t in tensors)


def test_soft_capped_attention_drops_out_as_torch():
    q, k, v = qkv("plain")
    torch.manual_seed(0)
    want = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
    torch.manual_seed(0)
    got = A.soft_capped_attention(q, k, v, 1e6, dropout_p=0.5)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_soft_capped_attention_of_nothing():
    q, k, v = rand(1, 2, 0, 4), rand(1, 2, 3, 4), rand(1, 2, 3, 4)
    assert A.soft_capped_attention(q, k, v, 1.0).shape == (1, 2, 0, 4)
    assert not A.soft_capped_attention(k, q, q, 1.0).any()
    with pytest.raises(ValueError, match="exclude each other"):
        A.soft_capped_attention(k, k, v, 1.0, torch.ones(3, 3), is_causal=True)


def test_soft_capped_attention_compiles():
    compiled = torch.compile(A.soft_capped_attention, backend="aot_eager", fullgraph=True)
    q, k, v = qkv("plain")
    torch.testing.assert_close(compiled(q, k, v, 1.0), A.soft_capped_attention(q, k, v, 1.0))


# the largest logit


@pytest.mark.parametrize("chunk_size", [1, 3, 1024])
@pytest.mark.parametrize("name", SDPA)
def test_max_logit_per_head_in_chunks(name, chunk_size):
    q, k, _ = qkv(name)
    given = SDPA[name]
    keys = k.repeat_interleave(2, 1) if name == "gqa" else k
    logits = np.einsum("bhid,bhjd->bhij", q.double(), keys.double()) * given.get("scale", 8**-0.5)
    mask = given.get("attn_mask", torch.ones(4, 6, dtype=torch.bool).tril() if name == "causal" else None)
    if mask is not None:
        added = np.where(mask, 0.0, -np.inf) if mask.dtype == torch.bool else mask.numpy()
        logits = logits + added
    got = A.max_logit_per_head(q, k, **given, chunk_size=chunk_size)
    np.testing.assert_allclose(got, logits.max((0, 2, 3)), rtol=1e-5)
    assert got.shape == (4,)


def test_max_logit_per_head_at_the_edges():
    q, k, _ = qkv("plain")
    assert A.max_logit_per_head(q[0, 0], k[0, 0]).shape == ()
    half = A.max_logit_per_head(q.bfloat16(), k.bfloat16())
    torch.testing.assert_close(half, A.max_logit_per_head(q.bfloat16().float(), k.bfloat16().float()))
    assert half.dtype == torch.float32
    big = torch.full((1, 1, 1, 8), 300.0, dtype=torch.float16)
    assert A.max_logit_per_head(big, big, scale=1.0).item() == 720000.0  # beyond float16
    assert A.max_logit_per_head(q[:, :, :0], k).tolist() == [-math.inf] * 4
    assert A.max_logit_per_head(q, k[:, :, :0]).tolist() == [-math.inf] * 4
    assert A.max_logit_per_head(q[:0], k[:0]).tolist() == [-math.inf] * 4
    nothing = torch.zeros(4, 6, dtype=torch.bool)
    assert A.max_logit_per_head(q, k, nothing).tolist() == [-math.inf] * 4
    q[1, 2, 0, 0] = math.nan
    assert A.max_logit_per_head(q, k).isnan().tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        A.max_logit_per_head(q, k, chunk_size=0)


# normalising


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_normalising_equals_the_formulas(dtype):
    x = (3 + 2 * rand(5, 4, 8)).to(dtype)
    wide = oracles.anything(x)
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 8e-3)
    wants = {
        A.rms_normalise: wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6),
        A.layer_normalise: (wide - wide.mean(-1, keepdims=True))
        / np.sqrt(wide.var(-1, keepdims=True) + 1e-6),
        A.l2_normalise: wide / np.linalg.norm(wide, axis=-1, keepdims=True),
    }
    for normalise, want in wants.items():
        got = normalise(x)
        assert got.dtype == dtype
        np.testing.assert_allclose(oracles.anything(got), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("normalise", [A.rms_normalise, A.layer_normalise, A.l2_normalise])
def test_normalising_at_the_edges(normalise):
    assert not normalise(torch.zeros(2, 4)).any()
    assert normalise(torch.zeros(0, 4)).shape == (0, 4)
    x = torch.ones(3, 4)
    x[0, 1], x[1, 2] = math.inf, math.nan
    out = normalise(x)
    assert out[0].isnan().any() and out[1].isnan().any() and out[2].isfinite().all()
    # float16 squares of 300 are beyond its range
    assert normalise(torch.tensor([300.0, -300.0], dtype=torch.float16)).isfinite().all()
    with pytest.raises(ValueError, match="eps must be positive"):
        normalise(x, eps=0.0)
    y = rand(3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(normalise, y)


def test_cosine_scale():
    assert A.cosine_scale(3) == math.log2(6)
    with pytest.raises(ValueError, match="at least 3"):
        A.cosine_scale(2)
