"""What the record says: kinds, places, counts, and what is not known."""

from __future__ import annotations

import json
import os

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from steadygrad.locating import Locator

NAN, INF = float("nan"), float("inf")


def here(marker):
    """Line of this file with a marker."""
    with open(__file__) as file:
        lines = [n for n, text in enumerate(file, 1) if text.rstrip().endswith(f"# {marker}")]
    (line,) = lines
    return line


def run(model, loss_fn, *batches, optimizer=None, **options):
    with Locator([model], **options) as locator:
        for batch in batches:
            if optimizer is not None:
                optimizer.zero_grad()
            loss_fn(model(batch)).backward()
            if optimizer is not None:
                optimizer.step()
    assert locator.notes == []
    return locator.first


def test_record_has_the_keys_of_the_contract_and_no_private_path():
    found = run(nn.Linear(2, 1), lambda out: (out * 0).log().mean(), torch.ones(3, 2))  # as json
    told = found.to_json()
    assert {"step", "kind", "module", "op", "file", "line", "batch", "sample"} <= set(told)
    assert json.loads(json.dumps(told)) == told
    assert told["file"] == os.path.relpath(__file__)
    assert told["line"] == here("as json")
    assert not any(os.path.dirname(__file__) in str(v) for v in told.values())


def test_a_file_elsewhere_is_told_by_its_name_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run(nn.Linear(2, 1), lambda out: (out * 0).log().mean(), torch.ones(3, 2))
    assert found.file == os.path.basename(__file__)


def test_steps_and_batches_are_counted_from_where_the_user_says():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    bad = torch.ones(4, 2)
    bad[3] = NAN
    found = run(
        model, torch.mean, torch.ones(4, 2), torch.ones(4, 2), bad, optimizer=optimizer, step=10, batch=20
    )
    assert (found.step, found.batch, found.sample, found.kind, found.value) == (12, 22, 3, "data", "nan")


def test_accumulated_batches_belong_to_one_step():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    data = [torch.ones(4, 2) for _ in range(6)]
    data[4][1, 0] = INF
    with Locator([model]) as locator:
        for i, x in enumerate(data):
            model(x).mean().backward()
            if i % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
    assert (locator.first.step, locator.first.batch, locator.first.sample) == (1, 4, 1)


def test_a_parameter_that_was_broken_before():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[1].weight[0, 0] = NAN
    found = run(model, torch.mean, torch.ones(3, 2))
    assert (found.kind, found.module) == ("optimizer", "1")
    assert found.detail == "parameter 1.weight held nan before this step began"


def test_a_buffer_that_was_broken_before():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    model[1].running_mean[0] = NAN
    found = run(model, torch.mean, torch.ones(3, 2))
    assert (found.kind, found.module) == ("forward", "1")
    assert found.detail == "buffer 1.running_mean held nan before this step began"


def test_an_operation_before_another_model_is_no_loss():
    first, second = nn.Linear(2, 2), nn.Linear(2, 1)
    with Locator([first, second]) as locator:
        middle = (first(torch.ones(3, 2)) * 0).log()
        second(middle).mean().backward()
    assert (locator.first.kind, locator.first.op) == ("forward", "log")
    with Locator([first, second]) as locator:
        middle = second(first(torch.ones(3, 2)))
        (middle * 0).log().mean().backward()
    assert (locator.first.kind, locator.first.op) == ("loss", "log")


@pytest.mark.parametrize("inside", [True, False])
def test_loss_modules_and_functions_count_as_loss_inside_of_models(inside):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 3)
            self.criterion = nn.CrossEntropyLoss(ignore_index=0)

        def forward(self, x):
            y = torch.zeros(len(x), dtype=torch.long)
            return self.criterion(self.fc(x), y) if inside else F.cross_entropy(self.fc(x), y, ignore_index=0)

    found = run(Model(), lambda loss: loss, torch.ones(4, 2))
    assert (found.kind, found.op) == ("loss", "nll_loss")


def test_a_mask_that_reaches_a_sum():
    model = nn.Linear(2, 2)
    found = run(model, lambda out: out.masked_fill(out < 1e9, -INF).sum(), torch.ones(3, 2))
    assert (found.op, found.value) == ("sum", "-inf")
    assert "put in on purpose" in found.detail


def test_in_place_operations_are_judged_by_what_was_before():
    def loss(out):
        p = torch.zeros(3, 2)
        p.log_()  # in place
        return (out * p).mean()

    found = run(nn.Linear(2, 2), loss, torch.ones(3, 2))
    assert (found.op, found.line, found.detail) == ("log", here("in place"), "log of 0 in 6 of 6 values")


def test_an_update_written_by_hand():
    model = nn.Linear(2, 1)
    with Locator([model]) as locator:
        (model(torch.ones(3, 2)) * 0).mean().backward()
        with torch.no_grad():
            for p in model.parameters():
                scaled = p.grad / p.grad.norm()  # by hand
                p -= scaled
    assert (locator.first.op, locator.first.line) == ("div", here("by hand"))


@pytest.mark.parametrize("foreach", [True, False])
def test_eps_in_half_precision(foreach):
    model = nn.Linear(3, 1).half()
    optimizer = torch.optim.Adam(model.parameters(), foreach=foreach)
    found = run(model, lambda out: (out * 0).mean(), torch.zeros(4, 3).half(), optimizer=optimizer)
    assert (found.kind, found.op, found.step, found.detail) == (
        "optimizer",
        "addcdiv",
        0,
        "0 / 0 in 3 of 3 values",
    )


def test_overflow_names_what_prepared_it():
    def loss(out):
        large = out * 1e25  # prepared
        return large.square().mean()

    found = run(nn.Linear(2, 1), loss, torch.ones(3, 2))
    assert found.op == "pow"
    assert "overflows float32" in found.detail
    assert found.growth.startswith(f"mul at {os.path.relpath(__file__)}:{here('prepared')}: ")


def test_a_forward_pass_alone():
    with Locator() as locator:
        x = torch.tensor([4.0, -1.0])
        x.sqrt().sum()
    assert (locator.first.op, locator.first.kind) == ("sqrt", "forward")


def test_evaluation_reads_what_it_likes():
    model = nn.Linear(2, 1)
    with Locator([model]) as locator:
        model(torch.ones(3, 2)).mean().backward()
        with torch.no_grad():
            (model(torch.ones(3, 2)) * 0).log().mean()
    assert locator.first is None


def test_compiled_code_is_said_to_be_unseen(monkeypatch):
    compiled = torch.compile(nn.Linear(2, 1), backend="eager")
    monkeypatch.delenv("TORCH_COMPILE_DISABLE", raising=False)
    with Locator() as locator:
        pass
    assert ["cannot be seen inside" in note for note in locator.notes] == [True]
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    with Locator() as locator:
        pass
    assert locator.notes == []
    assert compiled is not None


def test_names_without_given_roots():
    class Body(nn.Module):
        def forward(self, x):
            return (x * 0).log()

    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Body()), nn.Linear(2, 1))
    with Locator() as locator:
        model(torch.ones(3, 2)).mean().backward()
    assert locator.first.module == "1.0"


def test_the_sample_is_that_of_the_input_when_the_model_flattens_it():
    class PerStep(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 1)

        def forward(self, x):
            return self.fc(x.reshape(-1, 2)).reshape(x.shape[0], -1)

    x = torch.ones(4, 5, 2)
    x[2, 3, 1] = NAN
    found = run(PerStep(), torch.mean, x)
    assert (found.kind, found.sample, found.module) == ("data", 2, "fc")
    assert found.detail == "nan was in the data that came in, in 1 of 4 samples"


def test_a_row_that_is_padding_throughout_in_torch_s_own_attention():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            pad = torch.tensor([[False] * 3, [True] * 3])
            return self.attend(x, x, x, key_padding_mask=pad)[0]  # attention

    found = run(Reader(), torch.mean, torch.randn(2, 3, 4))
    assert (found.module, found.op, found.line) == ("attend", "softmax", here("attention"))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_part_that_is_run_again_in_backward(use_reentrant):
    fc = nn.Linear(2, 1)

    def part(x):
        return (fc(x) * 0).sqrt()  # run again

    with Locator([fc]) as locator:
        x = torch.ones(3, 2, requires_grad=True)
        torch.utils.checkpoint.checkpoint(part, x, use_reentrant=use_reentrant).mean().backward()
    found = locator.first
    assert (found.kind, found.op, found.line) == ("backward", "sqrt", here("run again"))


def test_per_sample_gradients_under_vmap():
    per_sample = torch.func.vmap(torch.func.grad(lambda x: (x * 0).sqrt().sum()))  # vmap
    with Locator() as locator:
        w = torch.ones(3, requires_grad=True)
        (per_sample(torch.randn(4, 3)).sum() + w.sum()).backward()
    assert locator.notes == []
    assert (locator.first.op, locator.first.line) == ("sqrt", here("vmap"))


def test_a_gradient_that_was_broken_by_somebody_else():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, foreach=False)
    model(torch.ones(3, 2)).mean().backward()
    model.weight.grad[0, 0] = NAN
    with Locator([model]) as locator:
        optimizer.step()
    assert (locator.first.kind, locator.first.op) == ("optimizer", "add")
    assert locator.first.detail.startswith("nan was in a gradient")


def test_code_that_cannot_be_seen_inside():
    class Foreign(torch.autograd.Function):
        """Its values are made by numpy."""

        @staticmethod
        def forward(ctx, x):
            return torch.from_numpy(1 / (x.detach().numpy() * 0))

        @staticmethod
        def backward(ctx, grad):
            return grad

    with pytest.warns(RuntimeWarning, match="divide by zero"):
        found = run(nn.Linear(2, 1), lambda out: Foreign.apply(out).sum(), torch.ones(3, 2))
    assert (found.op, found.kind) == ("sum", "forward")
    assert "cannot be seen inside" in found.detail


def test_of_two_producers_the_first_is_named():
    def loss(out):
        first = (out * 0).log()
        second = (-out.abs() - 1).sqrt()
        return (first * second).mean()

    assert run(nn.Linear(2, 1), loss, torch.ones(3, 2)).op == "log"


def test_a_finite_slice_does_not_acquit_the_rest():
    def loss(out):
        logs = (out.detach() * torch.tensor([[0.0], [1.0], [1.0]])).abs().log()
        logs[1:].add_(1.0)
        return (out * logs).mean()

    found = run(nn.Linear(2, 1), loss, torch.ones(3, 2))
    assert (found.op, found.sample) == ("log", 0)


def test_the_log_of_learned_zeros_and_ones_is_no_mask():
    gates = torch.tensor([1.0, 0.0], requires_grad=True)
    with Locator() as locator:
        gates.log().sum().backward()
    assert (locator.first.op, locator.first.detail) == ("log", "log of 0 in 1 of 2 values")


def test_a_large_weight_shows_at_the_layer_that_uses_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[1].weight.fill_(1e25)
    found = run(model, lambda out: out.square().mean(), torch.ones(3, 2))
    assert found.op == "pow"
    assert found.growth.startswith("addmm in 1 at ")
