"""A plan in force equals the loop with the same thing changed by hand; an empty plan changes no bit."""

import gc
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.diagnose.trial import TrialReport
from steadygrad.integrations.trial import Trial
from steadygrad.repair.effects.inputs import Scaler
from steadygrad.repair.score import trains
from steadygrad.trace.jsontext import dumps


@pytest.fixture(autouse=True)
def few_objects():
    """Models are looked for among all objects of the process: leave those of the test runner out."""
    gc.collect()
    gc.freeze()


STEPS = 16
BAD = 12  # the step with the NaN, once norms are known


def train(plan=None, *, edit="", momentum=0.95, adam=False, clip=None, nan_at=None, spike_at=None, scale=1.0):
    """A small training, under a plan or with the loop edited by hand. Returns all that it leaves behind."""
    torch.manual_seed(0)
    x, y = torch.randn(96, 6) * scale + (scale - 1), torch.randn(96, 2)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))
    beta1 = 0.5 if edit == "momentum" else momentum
    if adam:
        betas = (beta1, 0.95 if edit == "beta2" else 0.999)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02, betas=betas)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=beta1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    trial = Trial(plan, failed=_raise) if plan is not None else None
    if trial:
        trial.install()
    scaler = Scaler(-1)
    losses, rates = [], []
    try:
        for i in range(STEPS):
            batch = x[6 * i : 6 * i + 6].clone()
            if i == nan_at:
                batch[0, 0] = math.nan
            if edit == "eval":
                model.train()
            elif edit != "train":
                model.eval() if plan is not None and "train_mode" in plan else model.train()
            kept = {k: v.clone() for k, v in model.named_buffers()}
            if edit != "keep":
                optimizer.zero_grad()
            loss = F.mse_loss(model(scaler(batch) if edit == "inputs" else batch), y[6 * i : 6 * i + 6])
            loss = loss * (1e4 if i == spike_at else 1)
            (loss / 8 if edit == "factor" else loss).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            if edit == "clip":
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            usual = optimizer.param_groups[0]["lr"]
            rates.append(usual)
            factor = {"lr": 0.1, "warmup": min(1.0, (i + 1) / 5)}.get(edit, 1.0)
            optimizer.param_groups[0]["lr"] = usual * factor
            if edit == "skip" and i in (nan_at, spike_at):
                for name, buffer in model.named_buffers():
                    buffer.copy_(kept[name])
                optimizer._opt_called = True
            else:
                optimizer.step()
            optimizer.param_groups[0]["lr"] = usual
            schedule.step()
            if edit == "keep":
                optimizer.zero_grad()
            losses.append(loss.item())
    finally:
        if trial:
            trial.close()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    return {
        **state,
        "rates": torch.tensor(rates),
        "losses": torch.tensor(losses),
        "rng": torch.get_rng_state(),
    }, trial


def _raise(error):
    raise error


def equal(a, b, exactly=True):
    assert a.keys() == b.keys()
    for key in a:
        if exactly:
            assert torch.equal(a[key].nan_to_num(7.0), b[key].nan_to_num(7.0)), key
        else:
            torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("more", [{}, {"adam": True, "clip": 0.5}, {"nan_at": 3}])
def test_the_twin_is_bit_equal(more):
    equal(train({}, **more)[0], train(**more)[0])


@pytest.mark.parametrize(
    ("plan", "edit", "more"),
    [
        ({"lr_factor": 0.1}, "lr", {}),
        ({"warmup_steps": 5.0}, "warmup", {}),
        ({"momentum": 0.5}, "momentum", {}),
        ({"momentum": 0.5}, "momentum", {"adam": True}),
        ({"beta2": 0.95}, "beta2", {"adam": True}),
        ({"gradient_factor": 0.125}, "factor", {"clip": 0.05}),
        ({"clip_norm": 0.1}, "clip", {}),
        ({"skip_nonfinite": 1.0}, "skip", {"nan_at": BAD}),
        ({"skip_nonfinite": 1.0, "skip_above": 20.0}, "skip", {"spike_at": BAD}),
        ({"train_mode": 1.0}, "train", {}),
        ({"standardise_inputs": 1.0}, "inputs", {"scale": 100.0}),
    ],
    ids=str,
)
def test_a_plan_equals_the_edited_loop(plan, edit, more):
    under_plan, _ = train(plan, **more)
    by_hand, _ = train(edit=edit, **more)
    equal(under_plan, by_hand, exactly=edit != "clip")  # our norm is taken in one pass
    plain, _ = train(**more)
    if edit != "train":
        assert not torch.equal(under_plan["0.weight"], plain["0.weight"]), "the plan did nothing"


def test_only_what_is_not_finite_is_skipped_for_an_unsafe_operation():
    equal(train({"skip_nonfinite": 1.0}, spike_at=BAD)[0], train(spike_at=BAD)[0])


def test_gradients_that_nobody_clears_are_cleared():
    def run(plan, clears):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trial = Trial(plan, failed=_raise)
        trial.install()
        for _ in range(5):
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            if clears:
                optimizer.zero_grad()
        trial.close()
        return model.weight.detach().clone()

    assert torch.equal(run({"zero_gradients": 1.0}, False), run({}, True))
    assert not torch.equal(run({}, False), run({}, True))


def test_a_loss_that_is_differentiated_twice_gets_the_factor_once_each_time():
    w = torch.ones(3, requires_grad=True)
    trial = Trial({"gradient_factor": 0.25}, failed=_raise)
    optimizer = torch.optim.SGD([w], lr=1.0)
    trial.install()
    loss = w.sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert w.grad.tolist() == [0.5] * 3
    optimizer.step()
    trial.close()


def test_what_a_step_that_raised_was_given_is_given_back():
    class Raises(torch.optim.SGD):
        def step(self, closure=None):
            raise LookupError("the user's own")

    w = torch.ones(1, requires_grad=True)
    optimizer = Raises([w], lr=1.0, momentum=0.95)
    trial = Trial({"lr_factor": 0.1, "momentum": 0.5}, failed=_raise)
    trial.install()
    w.sum().backward()
    with pytest.raises(LookupError):
        optimizer.step()
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (1.0, 0.95)
    trial.close()


def test_the_script_evaluates_in_the_mode_that_it_chose():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).eval()
    trial = Trial({"train_mode": 1.0}, failed=_raise)
    trial.install()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(64, 4)
    assert (model(x) == 0).any(), "a pass with gradients drops units"
    assert not model.training and not model[1].training
    with torch.no_grad():
        assert not (model(x) == 0).any()
    trial.close()
    del optimizer


def test_only_what_comes_from_outside_is_standardised():
    seen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.conv, self.out = nn.Embedding(5, 3), nn.Conv1d(2, 3, 1), nn.Linear(3, 1)

        def forward(self, words, image, target):
            seen.clear()
            self.conv.register_forward_hook(lambda m, a, o: seen.append(a[0]))
            self.out.register_forward_hook(lambda m, a, o: seen.append(a[0]))
            hidden = self.conv(image.view(16, 2, 10)).mean(2) + self.embed(words)
            return F.mse_loss(self.out(hidden), target)

    image = torch.randn(16, 2, 10) * torch.tensor([100.0, 3.0]).view(1, 2, 1) + 50
    target = torch.randn(16, 1) * 1000
    trial = Trial({"standardise_inputs": 1.0}, failed=_raise)
    trial.install()
    net = Net()
    net(torch.zeros(16, dtype=torch.long), image, target)
    trial.close()
    given, hidden = seen
    assert given.mean((0, 2)).abs().max() < 1e-5
    torch.testing.assert_close(given.std((0, 2), correction=0), torch.ones(2))
    assert hidden.requires_grad and not torch.equal(hidden.mean(0), torch.zeros(3))
    onehot = F.one_hot(torch.arange(16) % 4, 4).float()
    layer = nn.Linear(4, 4)
    trial = Trial({"standardise_inputs": 1.0}, failed=_raise)
    trial.install()
    assert torch.equal(layer(onehot), F.linear(onehot, layer.weight, layer.bias)), "two values are no scale"
    trial.close()


def test_a_report_comes_back_from_json():
    report = train({"skip_nonfinite": 1.0}, nan_at=3)[1].report()
    assert (report.steps, report.skipped, len(report.losses)) == (STEPS, 1, STEPS)
    again = TrialReport.of_json(json.loads(dumps(report.to_json())))
    kept = replace(
        report, facts=replace(report.facts, params=again.facts.params)
    )  # a share of a large model's
    assert repr(again) == repr(kept) and again.outcome.skipped == 1 / STEPS


def test_a_run_that_stays_not_finite_and_a_bound_end_the_trial():
    for plan, nan, steps, expected in (({}, 0.0, 7, 7), ({}, math.nan, None, 50)):
        w = torch.ones(2, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.1)
        ends = []
        trial = Trial(plan, failed=_raise, steps=steps, at_end=lambda ends=ends: ends.append(1))
        trial.install()
        taken = 0
        while not trial.ended and taken < 200:
            (w.sum() + nan).mul(1 + nan).backward()
            optimizer.step()
            taken += 1
        trial.close()
        assert (taken, ends) == (expected, [1])


def scaled(init_scale, steps):
    """A regression in half precision, and how often its GradScaler let a step pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    trial = Trial({}, failed=_raise)
    trial.install()
    taken = []
    optimizer.register_step_post_hook(lambda *_: taken.append(1))
    try:
        for _ in range(steps):
            x = torch.randn(32, 8)
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = F.mse_loss(model(x).float(), x[:, :1])
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    finally:
        trial.close()
    return trial.report(), len(taken)


def test_the_search_of_a_scaler_for_its_scale_is_no_part_of_the_run():
    report, taken = scaled(2.0**24, 60)
    assert 30 < taken < 60 and (report.steps, report.skipped) == (taken, 0)


def test_a_scaler_that_skips_every_step_makes_a_run_of_skipped_steps():
    report, taken = scaled(2.0**120, 60)
    assert taken == 0 and report.steps == report.skipped == len(report.losses) == 40
    assert report.outcome.failed > 0.5 and not trains(report)
