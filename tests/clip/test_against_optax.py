"""The rules that JAX users have in optax give the same numbers here. Needs optax, which `make test-all` installs."""

from importlib import import_module

import numpy as np
import pytest
import torch

from steadygrad.clip import (
    centralise_,
    clip_by_block_rms_,
    clip_by_global_norm_,
    clip_by_unit_norm_,
    clip_by_value_,
)

pytest.importorskip("optax", reason="optax is not installed")

SHAPES = [(5, 7), (7,), (3, 2)]
LARGE, SMALL = 30.0, 0.01  # gradients far over every bound, and far below


def given(size, seed=0):
    """Gradients and weights; a matrix has its units in rows, as torch has them."""
    draw = np.random.default_rng(seed)
    grads = [size * draw.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    weights = [draw.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    return grads, weights


def of_optax(make, grads, weights, *, transposed=False):
    """What a transformation of optax makes of the gradients; ``transposed``: its units lie in columns."""
    optax, jnp = import_module("optax"), import_module("jax.numpy")
    turn = (lambda x: x.T) if transposed else (lambda x: x)
    change = make(optax)
    params = [jnp.asarray(turn(w)) for w in weights]
    updates, _ = change.update([jnp.asarray(turn(g)) for g in grads], change.init(params), params)
    return [turn(np.asarray(u)) for u in updates]


RULES = {
    "clip": (lambda g, w: clip_by_value_(g, 0.5), lambda o: o.clip(0.5), False),
    "clip_by_global_norm": (
        lambda g, w: clip_by_global_norm_(g, 2.0),
        lambda o: o.clip_by_global_norm(2.0),
        False,
    ),
    "clip_by_block_rms": (lambda g, w: clip_by_block_rms_(g, 0.3), lambda o: o.clip_by_block_rms(0.3), False),
    "adaptive_grad_clip": (
        lambda g, w: clip_by_unit_norm_(g, w, 0.1),
        lambda o: o.adaptive_grad_clip(0.1),
        True,
    ),
    "centralize": (
        lambda g, w: centralise_(g),
        lambda o: o.centralize(),
        False,
    ),  # over all axes but the first
}


@pytest.mark.parametrize("size", [LARGE, SMALL])
@pytest.mark.parametrize("name", RULES)
def test_the_rule_of_this_name_gives_the_same(name, size):
    ours, theirs, transposed = RULES[name]
    grads, weights = given(size)
    mine = [torch.from_numpy(g.copy()) for g in grads]
    ours(mine, [torch.from_numpy(w.copy()) for w in weights])
    for a, b, before in zip(
        mine, of_optax(theirs, grads, weights, transposed=transposed), grads, strict=True
    ):
        # 1e-6 is in torch's factor for the joint norm: max_norm / (norm + 1e-6)
        np.testing.assert_allclose(a.numpy(), b, rtol=2e-6, atol=1e-8)
        if size == LARGE and name != "centralize":
            assert not np.allclose(a.numpy(), before)
