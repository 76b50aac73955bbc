"""Measures of embeddings: against their formulas written out, and on what is degenerate."""

import math

import pytest
import torch

from steadygrad.probe import embeddings as measures
from steadygrad.probe.embeddings import (
    alignment,
    effective_rank,
    embedding_spread,
    embedding_stats,
    show,
    uniformity,
    unit,
)

G = torch.Generator().manual_seed(0)
Z = torch.randn(20, 6, generator=G) + 0.5
W = Z + 0.3 * torch.randn(20, 6, generator=G)


def rows(z):
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in z.double().tolist()]


def test_spread_is_the_root_of_the_summed_variances_at_unit_length():
    u = rows(Z)
    wanted = 0.0
    for j in range(6):
        mean = sum(r[j] for r in u) / 20
        wanted += sum((r[j] - mean) ** 2 for r in u) / 20
    assert embedding_spread(Z).item() == pytest.approx(math.sqrt(wanted), rel=1e-5)


def test_spread_is_one_in_all_directions_whatever_the_dimension():
    for dims in (8, 64):
        z = torch.randn(4000, dims, generator=G)
        assert embedding_spread(z).item() == pytest.approx(1, abs=0.01)
        assert embedding_spread(z * 1e-9).item() == pytest.approx(1, abs=0.01)


def test_effective_rank_is_the_entropy_of_the_singular_values():
    for z in (Z, Z.T, Z * 1e-20):
        sigma = torch.linalg.svdvals(z.double())
        p = sigma / sigma.sum()
        assert effective_rank(z).item() == pytest.approx(math.exp(-(p * p.log()).sum().item()), rel=1e-5)


def test_effective_rank_counts_directions():
    z = torch.randn(50, 3, generator=G) @ torch.randn(3, 40, generator=G)
    assert 1 < effective_rank(z).item() <= 3
    assert effective_rank(torch.ones(9, 4)).item() == pytest.approx(1)
    assert effective_rank(torch.zeros(9, 4)).item() == 0


def test_alignment_and_uniformity_are_the_means_over_pairs():
    u, v = rows(Z), rows(W)
    apart = [sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) for a, b in zip(u, v, strict=True)]
    assert alignment(Z, W).item() == pytest.approx(sum(apart) / 20, rel=1e-4)
    assert alignment(Z, W, 1.0).item() == pytest.approx(sum(map(math.sqrt, apart)) / 20, rel=1e-4)
    pairs = [
        math.exp(-2 * sum((x - y) ** 2 for x, y in zip(u[i], u[j], strict=True)))
        for i in range(20)
        for j in range(i)
    ]
    assert uniformity(Z).item() == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_in_every_measure(bad):
    z = Z.clone()
    z[3, 2] = bad
    values = (embedding_spread(z), effective_rank(z), alignment(z, W), uniformity(z))
    assert all(v.isnan() for v in values)
    stats = embedding_stats(Z, z)
    assert (stats.samples, stats.dims) == (20, 6)
    assert all(map(math.isnan, (stats.spread, stats.effective_rank, stats.alignment, stats.uniformity)))


def test_all_alike_and_all_zero_are_collapsed():
    for z in (torch.full((16, 4), 3.0), torch.zeros(16, 4)):
        stats = embedding_stats(z, z)
        assert (stats.spread, stats.effective_rank, stats.alignment, stats.uniformity) == (0, 0, 0, 0)


def test_one_sample_tells_nothing_of_a_batch():
    stats = embedding_stats(Z[:1], W[:1])
    assert stats.alignment > 0
    assert all(map(math.isnan, (stats.spread, stats.effective_rank, stats.uniformity)))


def test_half_precision_is_measured_in_float32():
    half = Z.bfloat16()
    assert embedding_spread(half).dtype == torch.float32
    assert embedding_stats(half) == embedding_stats(half.float())


def test_a_zero_row_has_no_gradient():
    z = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    out = unit(z)
    out[:, 0].sum().backward()
    assert out.tolist() == [[0.0, 0.0], [pytest.approx(0.6), pytest.approx(0.8)]]
    assert z.grad[0].tolist() == [0.0, 0.0] and z.grad[1].isfinite().all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: embedding_spread(torch.zeros(0, 4)),
        lambda: effective_rank(torch.tensor(1.0)),
        lambda: alignment(Z, Z[:5]),
        lambda: alignment(Z, W, 0.0),
        lambda: uniformity(Z[:1]),
        lambda: uniformity(Z, math.inf),
        lambda: embedding_stats(Z, W[:, :2]),
        lambda: show(Z, W[:5]),
        lambda: show(torch.tensor(1.0)),
    ],
)
def test_bad_input_is_named(call):
    with pytest.raises(ValueError, match="must|needs"):
        call()


def test_listeners_are_shown_detached_tensors_and_what_cannot_be_read_is_not(monkeypatch):
    seen = []
    monkeypatch.setattr(measures, "embedding_listeners", [lambda *given: seen.append(given)])
    z = Z.clone().requires_grad_()
    show(z * 1, z)
    show(torch.arange(3))
    show(torch.empty(3, 2, device="meta"))
    torch.func.vmap(lambda row: (show(row), row)[1])(Z)
    ((first, second),) = seen
    assert not first.requires_grad and torch.equal(first, Z) and torch.equal(second, Z)
