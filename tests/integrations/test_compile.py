"""Compiled models and training steps under the guard: the same numbers, no further graph, whole skips."""

from contextlib import nullcontext

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.utils import counters

import steadygrad as sg

STEPS = 100
NAN = 7  # number of the batch that is not finite

pytestmark = pytest.mark.filterwarnings("ignore")  # what dynamo and inductor themselves warn of


def train(how, backend, runs=None, *, bad=(), left_out=()):
    """Losses, weights, what dynamo counted, and the watcher (None: not watched)."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    forward, step = model, lambda: optimizer.step()
    if how == "model":
        forward = torch.compile(model, backend=backend)
    elif how == "a function with the model in it":
        forward = torch.compile(lambda x: model(x) * 1.0, backend=backend)
    else:
        step = torch.compile(lambda: optimizer.step(), backend=backend)
    batches = torch.Generator().manual_seed(1)
    losses = []
    with nullcontext() if runs is None else sg.watch(model, optimizer, runs=runs) as watcher:
        for i in range(STEPS):
            x = torch.randn(32, 8, generator=batches)
            if i in left_out:
                continue
            optimizer.zero_grad()
            loss = forward(x * float("nan") if i in bad else x).square().mean()
            loss.backward()
            step()
            losses.append(loss.item())
    counted = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    torch._dynamo.reset()
    return losses, [p.detach().clone() for p in model.parameters()], counted, watcher


BACKENDS = ["eager", pytest.param("inductor", marks=pytest.mark.slow)]
KINDS = ["model", "a function with the model in it", "step"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", KINDS)
def test_the_run_is_bit_identical_and_has_no_further_graph(how, backend, tmp_path):
    losses, weights, (graphs, breaks), _ = train(how, backend)
    same, guarded, (graphs_watched, breaks_watched), watcher = train(how, backend, tmp_path)
    assert same == losses and all(map(torch.equal, weights, guarded))
    # The hooks of sampled steps are traced away, but their number is a guard of the function that they are inlined in.
    assert graphs_watched - graphs == (1 if how.startswith("a function") else 0)
    # In a compiled step our two halves are called between the graphs, before the first and behind the last.
    assert breaks_watched - breaks <= (3 if how == "step" else 0)
    steps, norms = sg.Run(watcher.run_dir).scalar("grad_norm")
    assert list(steps) == list(range(STEPS)) and (norms > 0).all()


@pytest.mark.parametrize("how", KINDS)
def test_a_step_that_is_not_finite_is_skipped_whole(how, tmp_path):
    _, clean, _, _ = train(how, "eager", left_out=(NAN,))
    losses, weights, _, watcher = train(how, "eager", tmp_path, bad=(NAN,))
    assert all(map(torch.equal, clean, weights))
    summary = watcher.close()
    assert [(a.step, a.action) for a in summary.actions] == [(NAN, "skip")]
    if how != "a function with the model in it":
        assert any("TORCH_COMPILE_DISABLE=1" in note for note in summary.notes)
