"""The verdicts of `CHOICES`, one by one: what torch and pytorch_optimizer do right, and what they do not."""

from __future__ import annotations

import importlib.util
import math
import pickle
import sys

import numpy as np
import pytest
import torch

from steadygrad import clip, optim
from steadygrad.optim import CHOICES
from tests.optim.cases import arrays, draw, give, parameters

SOME = ((6, 4), (5, 8))
FOUND = importlib.util.find_spec("pytorch_optimizer") is not None
needs_peer = pytest.mark.skipif(not FOUND, reason="pytorch_optimizer is not installed")


@pytest.fixture(scope="module")
def peer():
    return pytest.importorskip("pytorch_optimizer")


def weights(dtype=torch.float32):
    return parameters(dtype, SOME)


def step(optimizer, params, seed=0, size=1.0):
    give(params, [size * g for g in draw(seed, params[0].dtype, SOME)])
    optimizer.step()


def moved(cls, size: float, num_steps: int = 1, **settings) -> float:
    """How far one matrix goes for gradients of that scale."""
    params = weights()
    before = params[0].detach().clone()
    optimizer = cls(params, **settings)
    for seed in range(num_steps):
        step(optimizer, params, seed, size)
    return (params[0].detach() - before).norm().item()


def agree(a, b, rtol=1e-5, atol=1e-6):
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=rtol, atol=atol)


def both(ours, theirs, num_steps=20, **to):
    """Two optimizers on the same gradients; each is made from its parameters."""
    a, b = weights(), weights()
    mine, other = ours(a), theirs(b)
    for seed in range(num_steps):
        step(mine, a, seed)
        step(other, b, seed)
        agree(a, b, **to)


def test_every_choice_is_shown_by_a_test_and_can_be_had():
    assert len({c.name for c in CHOICES}) == len(CHOICES) >= 19
    for c in CHOICES:
        assert hasattr(sys.modules[__name__], c.checked_by), c.name
        assert c.paper.startswith("https://") and c.why.endswith(".")
        if c.verdict == "steadygrad":
            assert hasattr(optim, c.use.removeprefix("steadygrad.optim.").split("(")[0]), c.use
        if c.verdict == "pytorch_optimizer" and FOUND and "." in (first := c.use.split("(")[0].split(";")[0]):
            name = first.split(",")[0].removeprefix("pytorch_optimizer.")
            assert name.startswith("cautious") or hasattr(importlib.import_module("pytorch_optimizer"), name)


# ---- built here


@needs_peer
def test_lars_of_others_overwrites_the_gradient_and_leaps_from_zero(peer):
    a, b = weights(), weights()
    mine = optim.LARS(a, lr=0.5, weight_decay=0.01, min_rms=0.0)
    other = peer.LARS(b, lr=0.5, weight_decay=0.01)
    for seed in range(20):
        step(mine, a, seed)
        step(other, b, seed)
        agree(a, b)  # the same at one learning rate
    assert not torch.equal(b[0].grad, draw(19, shapes=SOME)[0]), "fixed: look at the verdict again"
    assert torch.equal(a[0].grad, draw(19, shapes=SOME)[0])

    zeros = torch.nn.Parameter(torch.zeros(4, 3))
    leaps = peer.LARS([zeros], lr=0.01)
    zeros.grad = torch.full((4, 3), 1e6)
    leaps.step()
    assert zeros.abs().max().item() == pytest.approx(1e4)


@needs_peer
def test_lamb_of_others_starts_ten_times_too_fast_and_clamps_large_layers(peer):
    settings = {"lr": 0.01, "weight_decay": 0.0}
    params = weights()
    before = params[0].detach().clone()
    step(peer.Lamb(params, **settings), params)
    assert ((params[0] - before).norm() / before.norm()).item() == pytest.approx(0.1, rel=1e-3)
    params = weights()
    step(optim.LAMB(params, **settings), params)
    assert ((params[0] - before).norm() / before.norm()).item() == pytest.approx(0.01, rel=1e-3)

    large = torch.nn.Parameter(100 * before)
    optimizer = peer.Lamb([large], **settings)
    large.grad = torch.randn(6, 4)
    optimizer.step()
    assert ((large - 100 * before).norm() / (100 * before).norm()) < 0.005  # 0.1 without the clamp

    # with its correction made right (AdamD's switch), its decay inside and the clamp here, the two agree
    theirs = {"adam_debias": True, "weight_decouple": False, "weight_decay": 0.1, "lr": 0.01}
    both(
        lambda p: optim.LAMB(p, lr=0.01, weight_decay=0.1, max_norm=10.0, betas=(0.0, 0.0)),
        lambda p: peer.Lamb(p, betas=(0.0, 0.0), **theirs),
        rtol=1e-4,
    )


@needs_peer
def test_novograd_of_others_overwrites_the_gradient_and_overflows_in_half_precision(peer):
    settings = {"lr": 0.01, "betas": (0.95, 0.98), "weight_decay": 0.01}
    a, b = weights(), weights()
    mine = optim.NovoGrad(a, **settings)
    other = peer.NovoGrad(b, grad_averaging=False, weight_decouple=False, **settings)
    for seed in range(20):
        step(mine, a, seed)
        step(other, b, seed)
        agree(a, b)
    assert not torch.equal(b[0].grad, draw(19, shapes=SOME)[0]), "fixed: look at the verdict again"

    for cls, stops in ((peer.NovoGrad, True), (optim.NovoGrad, False)):
        half = torch.nn.Parameter(torch.ones(100, dtype=torch.float16))
        optimizer = cls([half], lr=0.1)
        half.grad = torch.full((100,), 50.0, dtype=torch.float16)
        optimizer.step()
        assert bool((half == 1).all()) is stops


@needs_peer
def test_fromage_of_others_leaps_from_zero(peer):
    both(lambda p: optim.Fromage(p, lr=0.02), lambda p: peer.Fromage(p, lr=0.02))
    for cls, far in ((peer.Fromage, 1e4), (optim.Fromage, 1e-5)):
        zeros = torch.nn.Parameter(torch.zeros(4, 3))
        optimizer = cls([zeros], lr=0.01)
        zeros.grad = torch.full((4, 3), 1e6)
        optimizer.step()
        assert zeros.abs().max().item() == pytest.approx(far, rel=1e-3)
    assert "CC BY-NC-SA" in sys.modules[peer.Fromage.__module__].__doc__


@needs_peer
def test_nero_of_others_kills_neurons_with_one_input_and_freezes_after_a_nan(peer):
    both(lambda p: optim.Nero(p, lr=0.02), lambda p: peer.Nero(p, lr=0.02, eps=0.0), rtol=1e-4, atol=1e-5)

    for cls, dead in ((peer.Nero, True), (optim.Nero, False)):
        narrow = torch.nn.Parameter(torch.ones(4, 1))
        optimizer = cls([narrow], lr=0.01)
        narrow.grad = torch.ones(4, 1)
        optimizer.step()
        assert bool((narrow == 0).all()) is dead

    for cls, shown in ((peer.Nero, False), (optim.Nero, True)):
        params = weights()
        optimizer = cls(params, lr=0.01)
        step(optimizer, params)
        give(params, draw(1, shapes=SOME))
        params[0].grad[0, 0] = math.nan
        optimizer.step()
        assert bool(params[0].isnan().any()) is shown
        before = params[0].detach().clone()
        for seed in range(3):
            step(optimizer, params, seed)
        if not shown:
            assert (params[0] - before)[0].norm() < 1e-6 < (params[0] - before)[1].norm()


@needs_peer
def test_nobody_else_has_atan2(peer):
    assert not any("atan" in name.lower() for name in [*dir(torch.optim), *dir(peer)])


@needs_peer
def test_scion_of_others_depends_on_the_scale_of_the_gradient(peer):
    norm = sys.modules[peer.SCION.__module__].LMONorm
    pairs = [
        ({}, {}),
        ({"constrained": True}, {"constraint": True}),
        ({"norm": "sign"}, {"norm_type": norm.SIGN}),
        ({"norm": "row"}, {"norm_type": norm.COL, "norm_kwargs": {"transpose": True}}),
        ({"norm": "input"}, {"norm_type": norm.SPECTRAL, "norm_kwargs": {"max_scale": True}}),
    ]
    for mine, theirs in pairs:
        both(
            lambda p, s=mine: optim.Scion(p, lr=0.01, scale=2.0, momentum=0.9, **s),
            lambda p, s=theirs: peer.SCION(p, lr=0.01, scale=2.0, momentum=0.1, **s),
            rtol=0.0,
            atol=5e-3 if "norm" not in mine or mine["norm"] == "input" else 1e-6,  # theirs is in bfloat16
        )

    def vector(cls, scale, **settings):
        p = torch.nn.Parameter(torch.zeros(8))
        optimizer = cls([p], lr=1.0, scale=1.0, **settings)
        p.grad = torch.full((8,), scale)
        optimizer.step()
        return p.abs().max().item()

    assert vector(peer.SCION, 1e-9) < 0.1 and vector(optim.Scion, 1e-9) == pytest.approx(1.0)
    assert vector(peer.SCION, 1e20) == 0 and vector(optim.Scion, 1e20) == pytest.approx(1.0)
    settings = {"lr": 1.0, "scale": 1.0}
    assert moved(peer.SCION, 1e20, **settings) == 0
    assert moved(peer.SCION, 1e-10, **settings) < 0.2 * moved(peer.SCION, 1.0, **settings)
    for scale in (1e-20, 1e-10, 1e20):
        assert moved(optim.Scion, scale, **settings) == pytest.approx(
            moved(optim.Scion, 1.0, **settings), 1e-3
        )
    five = torch.nn.Parameter(torch.ones(2, 2, 2, 2, 2))
    five.grad = torch.ones_like(five)
    with pytest.raises(NotImplementedError):
        peer.SCION([five]).step()
    optim.Scion([five]).step()


def test_muon_of_torch_is_right_on_matrices_of_usual_scale_and_only_there():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with torch 2.9")
    for adjust in ("original", "match_rms_adamw"):
        for nesterov in (True, False):
            settings = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": adjust, "nesterov": nesterov}
            both(
                lambda p, s=settings: optim.MuonAdamW(p, **s),
                lambda p, s=settings: torch.optim.Muon(p, **s),
                rtol=0.0,
                atol=0.02,  # 20 steps of 0.02 in bfloat16 there
            )
    settings = {"lr": 1.0, "weight_decay": 0.0, "adjust_lr_fn": "original"}
    assert moved(torch.optim.Muon, 1e-11, **settings) < 0.2 * moved(torch.optim.Muon, 1.0, **settings)
    assert moved(torch.optim.Muon, 1e20, **settings) == 0
    for scale in (1e-20, 1e-11, 1e20):
        assert moved(optim.MuonAdamW, scale, **settings) == pytest.approx(
            moved(optim.MuonAdamW, 1.0, **settings), 1e-3
        )
    with pytest.raises(ValueError, match="2D"):
        torch.optim.Muon([torch.nn.Parameter(torch.ones(2, 2, 3, 3))])


# ---- torch's


@needs_peer
def test_stableadamw_of_others_is_right_but_for_parameters_that_come_late(peer):
    """That the two agree otherwise: tests/clip/test_update.py."""
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0}

    def late(cls) -> float:
        params = weights()
        optimizer = cls(params, **settings)
        for seed in range(30):
            give(params, draw(seed, shapes=SOME))
            params[1].grad = None
            optimizer.step()
        before = params[1].detach().clone()
        step(optimizer, params)
        return (params[1].detach() - before).square().mean().sqrt().item()

    assert late(torch.optim.AdamW) == pytest.approx(0.01, rel=1e-3)
    assert late(peer.StableAdamW) < 0.003


def test_adafactor_of_torch_keeps_the_scale_within_its_limits():
    class Twin:
        """Shazeer & Stern 2018, Algorithm 4, for a matrix, with a fixed rho_t = lr."""

        def __init__(self, w):
            self.w, self.t = w, 0
            self.row, self.column = np.zeros((w.shape[0], 1)), np.zeros((1, w.shape[1]))

        def __call__(self, g, lr=0.01):
            self.t += 1
            b = 1 - self.t**-0.8
            self.row = b * self.row + (1 - b) * (g**2).mean(1, keepdims=True)
            self.column = b * self.column + (1 - b) * (g**2).mean(0, keepdims=True)
            u = g / np.sqrt(self.row @ self.column / self.row.mean())
            u /= max(1.0, math.sqrt((u**2).mean()))
            rate = min(lr, self.t**-0.5) * max(1e-3, math.sqrt((self.w**2).mean()))
            self.w = self.w - rate * u
            return self.w

    params = weights(torch.float64)
    optimizer = torch.optim.Adafactor(params, lr=0.01)
    twins = [Twin(w) for w in arrays(params)]
    for seed in range(20):
        step(optimizer, params, seed)
        for p, twin, g in zip(params, twins, draw(seed, torch.float64, SOME), strict=True):
            np.testing.assert_allclose(p.detach().numpy(), twin(g.numpy()), rtol=1e-9, atol=1e-12)
    near = moved(torch.optim.Adafactor, 1.0)
    for scale in (1e-6, 1e-3, 1e3, 1e6):
        assert moved(torch.optim.Adafactor, scale) == pytest.approx(near, rel=1e-3)
    assert moved(torch.optim.Adafactor, 1e10) == 0, "fixed: look at the verdict again"


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.AdamW])
def test_bound_holds_under_every_kind_of_optimizer(cls):
    params = weights()
    optimizer = cls(params, lr=10.0)
    with optim.BoundedUpdates(optimizer, max_ratio=0.01):
        for seed in range(5):
            before = [p.detach().clone() for p in params]
            step(optimizer, params, seed, 10.0**seed)
            for p, b in zip(params, before, strict=True):
                assert 0.0099 < (p.detach() - b).norm() / b.norm() < 0.010001


def test_normalised_sgd_is_sgd_on_normalised_gradients():
    params = weights()
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    buffers = [np.zeros_like(w) for w in arrays(params)]
    want = arrays(params)
    for seed in range(20):
        give(params, [10.0 ** (seed - 10) * g for g in draw(seed, shapes=SOME)])
        clip.normalise_by_tensor_norm_([p.grad for p in params])
        optimizer.step()
        for i, g in enumerate(arrays(draw(seed, torch.float64, SOME))):
            buffers[i] = 0.9 * buffers[i] + g / np.sqrt((g**2).sum())
            want[i] = want[i] - 0.1 * buffers[i]
    for p, w in zip(params, want, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-4, atol=1e-5)


# ---- pytorch_optimizer's


@needs_peer
def test_sign_steps_of_others_are_right(peer):
    params, other = weights(torch.float64), weights(torch.float64)
    lion = peer.Lion(params, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    sign = peer.SignSGD(other, lr=0.01, momentum=0.9)
    want, buffers = arrays(params), [np.zeros(s) for s in SOME]
    signs, averages = arrays(other), [np.zeros(s) for s in SOME]
    for seed in range(20):
        step(lion, params, seed)
        step(sign, other, seed)
        for i, g in enumerate(arrays(draw(seed, torch.float64, SOME))):
            direction = np.sign(0.9 * buffers[i] + 0.1 * g)
            want[i] = want[i] - 0.01 * (direction + 0.1 * want[i])
            buffers[i] = 0.99 * buffers[i] + 0.01 * g
            averages[i] = 0.9 * averages[i] + 0.1 * g
            signs[i] = signs[i] - 0.01 * np.sign(averages[i])
    for p, w in zip([*params, *other], [*want, *signs], strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-9, atol=1e-12)
    upwards = weights()
    step(peer.Lion(upwards, lr=0.01, maximize=True), upwards)
    assert torch.equal(upwards[0].grad, -draw(0, shapes=SOME)[0]), "fixed: look at the verdict again"


@needs_peer
def test_adopt_of_others_is_right(peer):
    """Taniguchi et al. 2024, Algorithm 2 (the clipped variant)."""
    params = weights(torch.float64)
    optimizer = peer.ADOPT(params, lr=0.01, weight_decay=0.1, weight_decouple=True)
    want = arrays(params)
    m, v = [np.zeros(s) for s in SOME], [np.zeros(s) for s in SOME]
    for seed in range(20):
        step(optimizer, params, seed)
        for i, g in enumerate(arrays(draw(seed, torch.float64, SOME))):
            want[i] = want[i] * (1 - 0.01 * 0.1)
            if seed == 0:
                v[i] = g**2
                continue
            c = (seed + 1) ** 0.25
            m[i] = 0.9 * m[i] + 0.1 * np.clip(g / np.maximum(np.sqrt(v[i]), 1e-6), -c, c)
            want[i] = want[i] - 0.01 * m[i]
            v[i] = 0.9999 * v[i] + 0.0001 * g**2
    for p, w in zip(params, want, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-9, atol=1e-12)
    late = weights()
    optimizer = peer.ADOPT(late, lr=0.01)
    give(late, draw(0, shapes=SOME))
    late[1].grad = None
    optimizer.step()
    before = late[1].detach().clone()
    step(optimizer, late, 1)
    assert not torch.equal(late[1], before), "fixed: its first gradient should fill v only"


def restarts(make, num_steps=10) -> bool:
    """Whether a run that was saved half way ends as one that was not."""
    params = weights()
    optimizer = make(params)
    for seed in range(num_steps):
        step(optimizer, params, seed)
    half = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = make(half)
    other.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    for seed in range(num_steps, 2 * num_steps):
        step(optimizer, params, seed)
        step(other, half, seed)
    return all(torch.equal(p, q) for p, q in zip(params, half, strict=True))


@needs_peer
def test_stable_spam_of_others_keeps_the_scale_and_restarts(peer):
    near = moved(peer.StableSPAM, 1.0, 10, lr=0.01)
    for scale in (1e-3, 1e3, 1e6):
        assert moved(peer.StableSPAM, scale, 10, lr=0.01) == pytest.approx(near, rel=1e-3)
    assert restarts(lambda p: peer.StableSPAM(p, lr=0.01))
    params = weights()
    step(peer.StableSPAM(params), params)
    assert not torch.equal(params[0].grad, draw(0, shapes=SOME)[0]), "fixed: look at the verdict again"


@needs_peer
def test_soap_of_others_keeps_the_scale_and_restarts(peer):
    near = moved(peer.SOAP, 1.0, 5, lr=0.01, weight_decay=0.0)
    assert near > 0.01
    for scale in (1e-3, 1e3):
        assert moved(peer.SOAP, scale, 5, lr=0.01, weight_decay=0.0) == pytest.approx(near, rel=0.05)
    assert restarts(lambda p: peer.SOAP(p, lr=0.01))


@needs_peer
def test_schedule_free_of_others_keeps_the_scale_of_adam(peer):
    near = moved(peer.ScheduleFreeAdamW, 1.0, 5, lr=0.01)
    for scale in (1e-3, 1e3):
        assert moved(peer.ScheduleFreeAdamW, scale, 5, lr=0.01) == pytest.approx(near, rel=1e-3)
    params = weights()
    step(peer.ScheduleFreeAdamW(params), params)
    assert not torch.equal(params[0].grad, draw(0, shapes=SOME)[0]), "fixed: look at the verdict again"


@needs_peer
def test_cautious_of_others_leaves_out_what_goes_uphill(peer):
    params = weights()
    optimizer = peer.Lion(params, lr=0.01, cautious=True)
    for seed in range(5):
        before = params[0].detach().clone()
        step(optimizer, params, seed)
        uphill = (params[0].detach() - before) * draw(seed, shapes=SOME)[0] > 0
        assert not uphill.any()
    assert (params[0].detach() == before).any()  # some were left out
