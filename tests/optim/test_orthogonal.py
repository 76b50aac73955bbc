"""Newton-Schulz against the singular value decomposition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from steadygrad.optim import orthogonalise
from steadygrad.optim.orthogonal import orthogonalise_each
from tests.optim.cases import draw
from tests.optim.oracles import newton_schulz

CONVERGES = (1.5, -0.5, 0.0)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (1, 6), (6, 1), (3, 4, 7)])
def test_agrees_with_the_polynomial_of_the_singular_values(shape):
    g = draw(0, torch.float64, (shape,))[0]
    got = orthogonalise(g).numpy().reshape(-1, *shape[-2:])
    for one, matrix in zip(got, g.numpy().reshape(-1, *shape[-2:]), strict=True):
        np.testing.assert_allclose(one, newton_schulz(matrix), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_converges_to_the_polar_factor(shape):
    g = draw(1, torch.float64, (shape,))[0]
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    torch.testing.assert_close(orthogonalise(g, 60, CONVERGES), u @ vt, rtol=1e-9, atol=1e-9)


def test_agrees_with_torch():
    muon = pytest.importorskip("torch.optim._muon")
    g = draw(2, shapes=((16, 40),))[0]
    theirs = muon._zeropower_via_newtonschulz(g, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    torch.testing.assert_close(orthogonalise(g), theirs.float(), rtol=0, atol=0.02)
    torch.testing.assert_close(orthogonalise(g, dtype=torch.bfloat16), theirs.float(), rtol=0, atol=0.03)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-7, 1e7, 1e20, 1e37])
def test_any_scale_gives_the_same(scale):
    g = draw(3, shapes=((6, 10),))[0]
    tolerance = 1e-2 if scale < 1e-38 else 2e-5  # denormal: the entries themselves have lost digits
    torch.testing.assert_close(orthogonalise(g * scale), orthogonalise(g), rtol=0, atol=tolerance)


def test_one_matrix_of_a_stack_does_not_touch_another():
    g = draw(4, shapes=((3, 4, 6),))[0]
    g[1] *= 1e-20
    g[2] = 0
    got = orthogonalise(g)
    torch.testing.assert_close(got[0], orthogonalise(g[0]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[1], orthogonalise(g[1]), rtol=1e-5, atol=1e-6)
    assert (got[2] == 0).all()
    g[0, 0, 0] = math.nan
    got = orthogonalise(g)
    assert got[0].isnan().all() and got[1:].isfinite().all()
    g[0, 0, 0] = math.inf
    assert orthogonalise(g)[0].isnan().any()


def test_dtypes_and_empty():
    for dtype, wide in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64,) * 2,
    ):
        assert orthogonalise(torch.ones(2, 3, dtype=dtype)).dtype == wide
    assert orthogonalise(torch.ones(0, 3)).shape == (0, 3)
    g = torch.ones(2, 3)
    orthogonalise(g)
    assert torch.equal(g, torch.ones(2, 3))


def test_weights_of_any_shape():
    shapes = ((4, 6), (4, 6), (4, 2, 3), (6, 4, 1, 1), (2, 3, 2, 2, 2))
    updates = draw(5, torch.float64, shapes)
    for u, got in zip(updates, orthogonalise_each(updates), strict=True):
        want = newton_schulz(u.flatten(1).numpy()).reshape(u.shape)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("bad", [torch.ones(3), torch.ones(2, 2, dtype=torch.complex64)])
def test_bad_matrices(bad):
    with pytest.raises(ValueError, match="two dimensions or more"):
        orthogonalise(bad)


def test_bad_steps():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        orthogonalise(torch.ones(2, 2), steps=0)
