"""What a dashboard is given of a step."""

import math

import numpy as np
import pytest

from steadygrad.records import ActivationStats, ParamInfo, StepStats, TensorStats
from steadygrad.sinks.aggregates import MAX_KEYS, NUM_OPTIMIZERS, OF_FURTHER_ONES, OF_THE_FIRST, Aggregates

NAN, INF = float("nan"), float("inf")
SHAPES = [(8, 4), (8,), (8, 8), (1, 8)]


def a_step(norms=(3.0, 0.0, 4.0, 2.0), optimizer=0, **more):
    norms = np.array(norms, dtype=np.float32)
    total = float(np.sqrt(np.nansum(norms.astype(float) ** 2)))
    params = [ParamInfo(i, f"p{i}", shape, "float32", optimizer, "", "") for i, shape in enumerate(SHAPES)]
    values = {"loss": 0.5, "grad_norm": total, "clipped_grad_norm": 1.0, "lr": 0.1, "params": params}
    return StepStats(step=7, optimizer=optimizer, grad_norms=norms, **(values | more))


def short(scalars):
    return {key.removeprefix("steadygrad/"): value for key, value in scalars.items()}


def test_a_full_step_has_every_key_and_no_other():
    step = a_step(
        loss_scale=1024.0,
        seconds=0.25,
        tensors=(TensorStats(0, 1.0, 2.0, 0.1), TensorStats(1, 1.0, 2.0, 0.3), TensorStats(2, 1.0, 2.0, NAN)),
        activations=(
            ActivationStats("a", "ReLU", 2.0, dead=0.5),
            ActivationStats("b", "Tanh", 3.0, saturated=0.2),
        ),
    )
    got = Aggregates()(step, skipped=3, incidents=2, amp_skips=5)
    assert all(type(v) is float for v in got.values())
    got = short(got)
    assert set(got) == set(OF_THE_FIRST)
    assert got == pytest.approx(
        {
            "loss": 0.5, "lr": 0.1, "grad_norm": math.sqrt(29), "clipped_grad_norm": 1.0,
            "grad_norm_largest_tensor": 4.0, "grad_norm_smallest_tensor": 2.0, "grad_norm_first_to_last": 1.5,
            "nonfinite_tensors": 0, "zero_gradients": 1, "update_ratio_median": 0.2, "update_ratio_max": 0.3,
            "activation_rms_max": 3.0, "dead_share_max": 0.5, "saturated_share_max": 0.2, "loss_scale": 1024.0,
            "amp_skips": 5, "skipped": 3, "incidents": 2, "seconds_per_step": 0.25,
        }
    )  # fmt: skip


def test_what_was_not_measured_is_left_out():
    got = short(Aggregates()(a_step(loss=None, lr=NAN), 0, 0))
    assert not {"loss", "lr", "loss_scale", "amp_skips", "seconds_per_step", "update_ratio_max"} & set(got)
    assert not {"dead_share_max", "activation_rms_max"} & set(got)


def test_what_is_nan_is_given_as_nan():
    got = short(
        Aggregates()(a_step((NAN, NAN, NAN, NAN), loss=NAN, grad_norm=NAN, clipped_grad_norm=NAN), 0, 0)
    )
    assert math.isnan(got["loss"]) and math.isnan(got["grad_norm"])
    assert got["nonfinite_tensors"] == 4 and "grad_norm_first_to_last" not in got


def test_a_parameter_without_a_gradient_is_not_taken_for_a_nan():
    make = Aggregates()
    assert short(make(a_step((3.0, NAN, 4.0, 2.0)), 0, 0))["nonfinite_tensors"] == 0
    poisoned = a_step((3.0, NAN, INF, NAN), grad_norm=NAN)
    assert short(make(poisoned, 0, 0))["nonfinite_tensors"] == 2


def test_no_gradient_at_all():
    got = short(Aggregates()(a_step((NAN,) * 4, grad_norm=0.0), 0, 0))
    assert got["nonfinite_tensors"] == 0 and "grad_norm_largest_tensor" not in got


def test_never_more_than_32_keys_in_a_run():
    make, keys = Aggregates(), set()
    for optimizer in range(40):
        step = a_step(optimizer=optimizer, loss_scale=2.0, seconds=1.0, tensors=(TensorStats(0, 1.0, 2.0, 0.1),),
                      activations=(ActivationStats("a", "ReLU", 2.0, 0.5, 0.5),))  # fmt: skip
        keys |= set(make(step, 0, 0))
    assert len(keys) <= MAX_KEYS and len(keys) == len(OF_THE_FIRST) + (NUM_OPTIMIZERS - 1) * len(
        OF_FURTHER_ONES
    )
    assert "steadygrad/optimizer1/grad_norm" in keys
    assert all(key.startswith("steadygrad/") for key in keys)
