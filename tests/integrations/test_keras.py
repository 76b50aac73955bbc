"""Keras 3 on torch: a loop with an optimizer of torch is watched and guarded; ``fit`` is not seen, and that is said."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="keras is not installed")

SCRIPT = """
import sys, numpy as np, keras, torch
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1)])
x = np.random.default_rng(0).standard_normal((256, 8)).astype("float32")
y = x.sum(1, keepdims=True)
if sys.argv[1] == "fit":
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse")
    model.fit(x, y, epochs=1, batch_size=32, verbose=0)
else:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for i in range(16):
        batch, target = torch.tensor(x[16 * i : 16 * i + 16]), torch.tensor(y[16 * i : 16 * i + 16])
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(batch * float("nan") if i == 9 else batch, training=True), target).backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())
"""


def run(tmp_path, how):
    (tmp_path / "train.py").write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, "-m", "steadygrad", "run", "--json", "out.json", "--runs", "runs", "train.py", how],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "KERAS_BACKEND": "torch"},
    )  # fmt: skip


def test_a_loop_with_an_optimizer_of_torch_is_watched_and_guarded(tmp_path):
    out = run(tmp_path, "loop")
    assert out.returncode == 0, out.stdout + out.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["steps"] == 16 and [a["step"] for a in result["actions"]] == [9]


def test_fit_is_not_seen_and_that_is_said(tmp_path):
    out = run(tmp_path, "fit")
    assert out.returncode == 0, out.stdout + out.stderr
    assert "no optimizer step was seen" in out.stderr and "Keras" in out.stderr
