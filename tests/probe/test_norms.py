"""Gradient norms against a slow reference in float64, over every kind of tensor."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steadygrad.probe.loss import LossKeeper
from steadygrad.probe.norms import gradient_norms, total_norm

torch.manual_seed(0)
SPARSE = torch.sparse_coo_tensor(
    [[0, 0, 2]], torch.tensor([1.0, 2.0, 3.0]), (4,), check_invariants=True
)  # 0 twice


def _csr():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR support beta
        return torch.eye(3).to_sparse_csr()


ZOO = {
    "plain": torch.randn(3, 4),
    "scalar": torch.tensor(-2.0),
    "empty": torch.zeros(0, 5),
    "zero": torch.zeros(7),
    "float64": torch.randn(5, dtype=torch.float64),
    "bfloat16": (torch.randn(1000) * 3).bfloat16(),
    "float16_whose_squares_overflow": torch.full((200,), 2.0**13).half(),
    "float32_whose_squares_overflow": torch.full((3,), 1e30),
    "denormal": torch.full((4,), 1e-42),
    "complex": torch.randn(4, dtype=torch.complex64),
    "conjugated": torch.randn(4, dtype=torch.complex64).conj(),
    "sparse": SPARSE,
    "transposed": torch.randn(4, 6).T,
    "expanded": torch.randn(3, 1).expand(3, 50),
    "strided": torch.randn(40)[::3],
    "float8": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
    "csr": _csr(),
}


def reference(t):
    if t.layout is not torch.strided:
        t = t.to_dense()
    return math.sqrt(float(t.to(torch.complex128 if t.is_complex() else torch.float64).abs().square().sum()))


@pytest.mark.parametrize("name", ZOO)
def test_norm_of_each_kind(name):
    (norm,) = gradient_norms([ZOO[name]])
    assert norm == pytest.approx(reference(ZOO[name]), rel=1e-6)


def test_all_kinds_at_once_and_their_total():
    norms = gradient_norms([*ZOO.values(), None])
    wanted = [reference(t) for t in ZOO.values()]
    assert norms[:-1] == pytest.approx(wanted, rel=1e-6) and math.isnan(norms[-1])
    assert total_norm(norms) == pytest.approx(math.hypot(*wanted), rel=1e-6)


def test_total_is_that_of_torch():
    grads = [torch.randn(5, 4), torch.randn(9), torch.randn(2, 2)]
    assert total_norm(gradient_norms(grads)) == pytest.approx(
        float(torch.nn.utils.get_total_norm(grads)), rel=1e-6
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_non_finite_is_inf_and_missing_is_nan(value, dtype):
    bad = torch.ones(4, dtype=dtype)
    bad[2] = value
    norms = gradient_norms([torch.ones(4), bad, None, torch.empty(2, device="meta")])
    assert norms[0] == 2 and norms[1] == math.inf and np.isnan(norms[2:]).all()
    assert total_norm(norms) == math.inf


def test_scale_is_divided_out():
    assert gradient_norms([torch.full((4,), 512.0)], scale=1024.0)[0] == 1.0


def test_nothing_at_all():
    assert gradient_norms([]).shape == (0,) and total_norm(gradient_norms([])) == 0.0
    assert total_norm(gradient_norms([None])) == 0.0


def test_gradients_are_not_touched():
    state = torch.get_rng_state()
    grads = [t.clone() for t in (ZOO["plain"], ZOO["bfloat16"], ZOO["transposed"])]
    copies, versions = [g.clone() for g in grads], [g._version for g in grads]
    gradient_norms(grads)
    assert all(torch.equal(a, b) for a, b in zip(grads, copies, strict=True))
    assert versions == [g._version for g in grads] and torch.equal(state, torch.get_rng_state())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=8), max_size=6))
def test_any_values(values):
    grads = [torch.tensor(v, dtype=torch.float32) for v in values]
    # Squares of float32 end at 1e-45: norms below 1e-22 are 0.
    assert gradient_norms(grads) == pytest.approx([reference(g) for g in grads], rel=1e-5, abs=1e-18)


def test_loss_sums_micro_batches_and_starts_anew_after_a_step():
    keeper = LossKeeper()
    assert keeper.read() == (None, 0)
    keeper.saw([torch.tensor(1.0)])
    keeper.saw([torch.tensor(2.0), torch.tensor(0.5)])
    assert keeper.read() == (3.5, 2)
    assert keeper.read() == (3.5, 2), "a second optimizer steps on the same backward passes"
    keeper.saw([torch.tensor(7.0)])
    assert keeper.read() == (7.0, 1)


def test_loss_does_not_count_what_is_evaluated_inside_a_step():
    keeper = LossKeeper()
    keeper.saw([torch.tensor(1.0)])
    keeper.in_step = True
    keeper.saw([torch.tensor(5.0)])
    keeper.in_step = False
    assert keeper.read() == (1.0, 1)
