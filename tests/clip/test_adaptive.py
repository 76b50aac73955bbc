"""ZClip, AutoClip, AdaGC: long runs against the slow twins and the peers, and what is special to each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from steadygrad.clip import AdaGC, AutoClip, ZClip
from tests.clip import oracles
from tests.clip.rules import arrays, gradients, parameters


def noisy_run(num_steps: int, seed: int = 0):
    """Norms that drift, with 10 % of noise and a spike every now and then."""
    r = np.random.default_rng(seed)
    for step in range(num_steps):
        spike = 200.0 if r.random() < 0.02 else 1.0
        yield gradients(step, spike * math.exp(-step / 200) * (1 + 0.1 * r.standard_normal()))


@pytest.mark.parametrize(
    ("rule", "twin", "least"),
    [
        (ZClip(), oracles.ZClip(0.97, 2.5, 25), 4),
        (ZClip(alpha=0.9, z_thres=1.0, warmup_steps=2), oracles.ZClip(0.9, 1.0, 2), 4),
        (AutoClip(), oracles.AutoClip(10, 1000), 90),
        (AutoClip(percentile=92.5, history_length=64), oracles.AutoClip(92.5, 64), 4),
        (AutoClip(percentile=100), oracles.AutoClip(100, 1000), 0),
        (AdaGC(), oracles.AdaGC(1.05, 0.98, 1.0, 100), 200),
        (
            AdaGC(lambda_rel=1.5, beta=0.5, lambda_abs=0.3, warmup_steps=1),
            oracles.AdaGC(1.5, 0.5, 0.3, 1),
            20,
        ),
    ],
    ids=["zclip", "zclip-tight", "autoclip", "autoclip-92.5", "autoclip-100", "adagc", "adagc-loose"],
)
def test_a_run_of_300_steps_agrees_with_the_float64_twin(rule, twin, least):
    num_clipped = 0
    for step, grads in enumerate(noisy_run(300)):
        expected = twin(arrays(grads))
        stats = rule(grads)
        num_clipped += bool(stats.scale < 1)
        for got, want in zip(arrays(grads), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-7, err_msg=f"step {step}")
    assert num_clipped >= least


def test_zclip_cuts_the_wilder_the_closer_to_the_mean():
    cut = []
    for size in (2.0, 10.0, 1e6):
        rule = ZClip()
        for step in range(50):
            rule(gradients(step, 1 + 0.1 * math.sin(step)))
        grads = gradients(99, size)
        limit = rule(grads).limit.item()
        cut.append(math.sqrt(sum(g.square().sum().item() for g in grads)))
    assert limit > cut[0] > cut[1] > cut[2] > 0.99


def level_shift(rule, factor: float, num_steps: int = 300) -> list[bool]:
    """Whether each step was clipped after the norm rose for good."""
    r = np.random.default_rng(1)
    clipped = []
    for step in range(200 + num_steps):
        size = (1.0 if step < 200 else factor) * (1 + 0.1 * r.standard_normal())
        clipped.append(bool(rule([torch.tensor([size])]).scale < 1))
    return clipped[200:]


def test_zclip_never_learns_a_doubled_norm_and_restart_after_does():
    """The paper's rule cuts every later step to the old mean; 1.5 times it learns."""
    assert sum(level_shift(ZClip(), 1.5)) < 100
    assert all(level_shift(ZClip(), 2.0))
    learned = level_shift(ZClip(restart_after=50), 2.0)
    assert all(learned[:50]) and not any(learned[50:75])  # 25 steps of listening
    assert sum(learned[75:]) < 0.05 * len(learned[75:])
    # a single spike is no rise
    rule = ZClip(restart_after=2)
    for step in range(60):
        stats = rule([torch.tensor([1000.0 if step % 3 == 2 and step > 30 else 1 + 0.1 * math.sin(step)])])
        assert (stats.scale < 1) == (step % 3 == 2 and step > 30)


def test_zclip_without_a_scale_clips_nothing():
    """All gradients zero in the warm-up: the first that is not is no spike, and must not be cut to zero."""
    rule = ZClip(warmup_steps=2)
    for _ in range(5):
        rule([torch.zeros(3)])
    grad = torch.ones(3)
    assert rule([grad]).scale == 1 and grad.tolist() == [1, 1, 1]


def test_autoclip_adapts_to_a_level_shift_within_its_window():
    clipped = level_shift(AutoClip(percentile=90, history_length=100), 10.0)
    assert all(clipped[:5]) and sum(clipped[200:]) < 0.15 * len(clipped[200:])


def test_autoclip_does_not_remember_zeros():
    rule = AutoClip(percentile=10)
    for step in range(50):
        grad = torch.tensor([0.0 if step % 2 else 1.0])
        assert rule([grad]).scale == 1
    assert rule.memory["num"] == 25


def test_autoclip_window_forgets_the_oldest():
    rule = AutoClip(percentile=100, history_length=3)
    limits = [rule([torch.tensor([s])]).limit.item() for s in (9.0, 1.0, 2.0, 3.0, 1.0)]
    assert limits == [9, 9, 9, 3, 3]


def test_adagc_equals_pytorch_optimizer():
    peer = pytest.importorskip("pytorch_optimizer")
    params = parameters()
    # with beta1 = 0 its first moment is the clipped gradient; its warm-up is one step shorter than it says
    optimizer = peer.AdaGC(
        params, lr=0.0, betas=(0.0, 0.999), weight_decay=0.0, warmup_steps=21, foreach=False
    )
    rule = AdaGC(warmup_steps=20)
    for step, grads in enumerate(noisy_run(120)):
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
        rule(grads)
        theirs = [optimizer.state[p]["exp_avg"] for p in params]
        torch.testing.assert_close(
            grads, theirs, rtol=1e-4, atol=1e-8, msg=lambda m, s=step: f"step {s}: {m}"
        )
    gamma = torch.stack([optimizer.state[p]["gamma"] for p in params])
    torch.testing.assert_close(rule.memory["gamma"], gamma, rtol=1e-4, atol=0)


def test_adagc_a_zero_gradient_in_the_warm_up_does_not_silence_the_tensor():
    """As in LoRA or ReZero, where half of the gradients are 0 at the first step. The paper's minimum is 0 for ever."""
    rule, late = AdaGC(warmup_steps=5), torch.ones(3)
    for step in range(10):
        late = torch.zeros(3) if step == 0 else torch.full((3,), 0.1)
        rule([torch.full((3,), 0.1), late])
    assert late[0].item() == pytest.approx(0.1)
    paper = oracles.AdaGC(1.05, 0.98, 1.0, 5)
    for step in range(10):
        out = paper([np.full(3, 0.1), np.full(3, 0.1 if step else 0.0)])
    assert out[1].tolist() == [0, 0, 0]


def test_adagc_learns_a_lasting_rise_by_a_tenth_of_a_percent_a_step():
    """Which makes about 2,300 steps for a tenfold norm."""
    rule = AdaGC(warmup_steps=1)
    rule([torch.tensor([1.0])])
    for _ in range(100):
        assert rule([torch.tensor([10.0])]).scale < 1
    assert rule.memory["gamma"].item() == pytest.approx(1.001**100, rel=1e-4)
    assert 2300 < math.log(10) / math.log(1.001) < 2310


def test_adagc_treats_each_tensor_by_itself_and_keeps_places():
    rule = AdaGC(warmup_steps=2)
    for _ in range(5):
        rule([torch.tensor([0.1]), torch.tensor([0.5]), None])
    grads = [None, torch.tensor([0.5]), torch.tensor([77.0])]
    rule(grads)
    assert grads[1].item() == 0.5 and grads[2].item() == 77.0  # the third was never seen before
    grads = [torch.tensor([0.5]), torch.tensor([0.5]), torch.tensor([770.0])]
    stats = rule(grads)
    assert [round(g.item(), 4) for g in grads] == [0.105, 0.5, 80.85]
    assert stats.clipped.item() == pytest.approx(2 / 3)


def test_adagc_refuses_another_number_of_gradients():
    rule = AdaGC()
    rule([torch.ones(2), torch.ones(3)])
    grad = torch.ones(2)
    with pytest.raises(ValueError, match="memory of 2 gradients, got 1: pass the same parameters"):
        rule([grad])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZClip(alpha=1.0), "alpha must be at least 0 and below 1, got 1.0"),
        (lambda: ZClip(z_thres=0), "z_thres must be positive and finite, got 0"),
        (lambda: ZClip(warmup_steps=1), "warmup_steps must be at least 2, got 1"),
        (lambda: ZClip(eps=-1), "eps must be positive and finite, got -1"),
        (lambda: ZClip(restart_after=0), "restart_after must be at least 1, got 0"),
        (lambda: AutoClip(percentile=101), "percentile must be between 0 and 100, got 101"),
        (lambda: AutoClip(percentile=math.nan), "percentile must be between 0 and 100, got nan"),
        (lambda: AutoClip(history_length=0), "history_length must be at least 1, got 0"),
        (lambda: AdaGC(lambda_rel=1.0), "lambda_rel must be above 1 and finite, got 1.0"),
        (lambda: AdaGC(beta=-0.1), "beta must be at least 0 and below 1, got -0.1"),
        (lambda: AdaGC(lambda_abs=0), "lambda_abs must be positive, got 0"),
        (lambda: AdaGC(warmup_steps=0), "warmup_steps must be at least 1, got 0"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_saved_state_of_other_settings_is_refused():
    rule = AutoClip(history_length=10)
    rule([torch.ones(2)])
    with pytest.raises(ValueError, match=r"history of AutoClip has shape \(20,\), got \(10,\)"):
        AutoClip(history_length=20).load_state_dict(rule.state_dict())
    with pytest.raises(TypeError, match="history must be a tensor, got list"):
        rule.load_state_dict({"num": torch.tensor(1), "history": [1.0]})
    with pytest.raises(TypeError, match="warmup_steps must be a whole number, got float"):
        ZClip(warmup_steps=10.0)


def test_a_fresh_rule_saves_and_loads_an_empty_state():
    rule = ZClip()
    assert rule.state_dict() == {}
    rule([torch.ones(2)])
    rule.load_state_dict({})
    assert rule.memory == {}
