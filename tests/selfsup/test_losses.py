"""Losses without labels: slow obvious twins, what is degenerate, and what may not get a gradient."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from steadygrad.selfsup import (
    barlow_twins,
    byol,
    covariance_term,
    info_nce,
    nt_xent,
    simsiam,
    variance_term,
    vicreg,
)

G = torch.Generator().manual_seed(0)
N, D = 6, 4
A, B, P, Q = (torch.randn(N, D, generator=G, dtype=torch.float64) for _ in range(4))


def cos(x, y):
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return dot / math.sqrt(sum(a * a for a in x)) / math.sqrt(sum(b * b for b in y))


def softmax_loss(own, others):
    return -math.log(math.exp(own) / sum(map(math.exp, others)))


def test_info_nce():
    q, k = A.tolist(), B.tolist()
    wanted = [
        softmax_loss(cos(q[n], k[n]) / 0.3, [cos(q[n], k[m]) / 0.3 for m in range(N)]) for n in range(N)
    ]
    assert info_nce(A, B, 0.3).item() == pytest.approx(sum(wanted) / N)


def test_nt_xent():
    z = A.tolist() + B.tolist()
    wanted = [
        softmax_loss(
            cos(z[i], z[(i + N) % (2 * N)]) / 0.3, [cos(z[i], z[k]) / 0.3 for k in range(2 * N) if k != i]
        )
        for i in range(2 * N)
    ]
    assert nt_xent(A, B, 0.3).item() == pytest.approx(sum(wanted) / (2 * N))


def covariance(z):
    z = z.tolist()
    means = [sum(r[j] for r in z) / N for j in range(D)]
    return [
        [sum((r[i] - means[i]) * (r[j] - means[j]) for r in z) / (N - 1) for j in range(D)] for i in range(D)
    ]


def slow_terms(z):
    c = covariance(z)
    v = sum(max(0.0, 1 - math.sqrt(c[j][j] + 1e-4)) for j in range(D)) / D
    return v, sum(c[i][j] ** 2 for i in range(D) for j in range(D) if i != j) / D


def test_vicreg_and_its_terms():
    a, b = 0.4 * A, 0.4 * B
    (va, ca), (vb, cb) = slow_terms(a), slow_terms(b)
    assert variance_term(a).item() == pytest.approx(va) and va > 0.1
    assert covariance_term(a).item() == pytest.approx(ca)
    invariance = (a - b).square().mean().item()
    assert vicreg(a, b).item() == pytest.approx(25 * invariance + 25 * (va + vb) / 2 + ca + cb)
    assert vicreg(a, b, 0.0, 2.0, 0.0).item() == pytest.approx(va + vb)


def test_barlow_twins():
    def standard(z):
        return [
            [
                (x - sum(col) / N) / math.sqrt(sum((y - sum(col) / N) ** 2 for y in col) / N + 1e-5)
                for x in col
            ]
            for col in z.T.tolist()
        ]

    a, b = standard(A), standard(B)
    c = [[sum(x * y for x, y in zip(p, q, strict=True)) / N for q in b] for p in a]
    on = sum((1 - c[i][i]) ** 2 for i in range(D))
    off = sum(c[i][j] ** 2 for i in range(D) for j in range(D) if i != j)
    assert barlow_twins(A, B, 0.1).item() == pytest.approx(on + 0.1 * off)
    assert barlow_twins(A, B, 0.0).item() == pytest.approx(on)


def test_simsiam_and_byol():
    rows = [z.tolist() for z in (P, Q, A, B)]
    first = sum(cos(p, z) for p, z in zip(rows[0], rows[3], strict=True)) / N
    second = sum(cos(p, z) for p, z in zip(rows[1], rows[2], strict=True)) / N
    assert simsiam(P, Q, A, B).item() == pytest.approx(-(first + second) / 2)
    assert byol(P, Q, A, B).item() == pytest.approx(2 - 2 * first + 2 - 2 * second)


@pytest.mark.parametrize("loss", [simsiam, byol])
def test_targets_get_no_gradient(loss):
    p, q, a, b = (z.clone().requires_grad_() for z in (P, Q, A, B))
    loss(p, q, a, b).backward()
    assert a.grad is None and b.grad is None and p.grad.abs().sum() > 0 and q.grad.abs().sum() > 0


TWO = {
    "info_nce": info_nce,
    "nt_xent": nt_xent,
    "vicreg": vicreg,
    "barlow_twins": barlow_twins,
    "simsiam": lambda a, b: simsiam(a, b, b, a),
    "byol": lambda a, b: byol(a, b, b, a),
}
BATCHES = ("info_nce", "nt_xent", "vicreg", "barlow_twins")


@pytest.mark.parametrize("name", BATCHES)  # the others stop it on purpose
def test_gradient_is_that_of_finite_differences(name):
    assert torch.autograd.gradcheck(lambda a: TWO[name](a, B), (0.7 * A).requires_grad_())


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_hidden(name, bad):
    a = A.clone()
    a[2, 1] = bad
    assert TWO[name](a, B).isnan()


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("z", [torch.zeros(N, D), torch.ones(N, D)], ids=["zero", "alike"])
def test_collapsed_embeddings_have_a_finite_loss_and_gradient(name, z):
    a = z.clone().requires_grad_()
    loss = TWO[name](a, z)
    loss.backward()
    assert loss.isfinite() and a.grad.isfinite().all() and a.grad.norm() < 1e3


def test_loss_of_embeddings_that_are_all_alike():
    one = torch.ones(N, D)
    assert info_nce(one, one).item() == pytest.approx(math.log(N))
    assert nt_xent(one, one).item() == pytest.approx(math.log(2 * N - 1))
    assert simsiam(one, one, one, one).item() == pytest.approx(-1)
    assert barlow_twins(one, one).item() == pytest.approx(D)


@pytest.mark.parametrize("name", TWO)
def test_half_precision_is_computed_in_float32(name):
    a, b = A.bfloat16(), B.bfloat16()
    out = TWO[name](a, b)
    assert out.dtype == torch.float32 and torch.equal(out, TWO[name](a.float(), b.float()))


@pytest.mark.parametrize("name", BATCHES)
def test_one_sample_is_refused_with_the_next_move(name):
    with pytest.raises(ValueError, match="at least 2, got 1.*drop_last=True"):
        TWO[name](A[:1], B[:1])


@pytest.mark.parametrize("name", ["simsiam", "byol"])
def test_one_sample_is_enough_without_negatives(name):
    assert TWO[name](A[:1], B[:1]).isfinite()


@pytest.mark.parametrize("name", TWO)
def test_bad_shapes_are_named(name):
    with pytest.raises(ValueError, match="one shape"):
        TWO[name](A, B[:, :2])
    with pytest.raises(ValueError, match="must be .N, D."):
        TWO[name](A[None], B[None])
    with pytest.raises(ValueError, match="float dtype"):
        TWO[name](A.long(), B.long())


@pytest.mark.parametrize(
    "call",
    [
        partial(info_nce, temperature=0.0),
        partial(nt_xent, temperature=math.inf),
        partial(vicreg, invariance=-1.0),
        partial(vicreg, variance=math.nan),
        partial(vicreg, covariance=math.inf),
        partial(barlow_twins, off_diagonal=-0.1),
    ],
)
def test_bad_settings_are_named(call):
    (name,) = call.keywords
    with pytest.raises(ValueError, match=name):
        call(A, B)


def test_variance_term_of_a_bad_target():
    with pytest.raises(ValueError, match="target"):
        variance_term(A, 0.0)


def test_losses_compile_to_the_same_value():
    compiled = torch.compile(nt_xent, backend="eager", fullgraph=True)
    assert torch.equal(compiled(A, B), nt_xent(A, B))


def test_a_batch_of_equal_views_teaches_barlow_twins_nothing_but_its_diagonal():
    z = F.normalize(A)
    assert barlow_twins(z, z, 0.0).item() == pytest.approx(0, abs=1e-3)
