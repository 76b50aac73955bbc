"""Our own failure switches us off with one note and leaves the run bit-identical; the user's errors pass through."""

import functools

import pytest
import torch
from torch import nn

import steadygrad as sg
from steadygrad.guard.guard import Guard
from steadygrad.guard.policy import Policy
from steadygrad.integrations.run_record import RunRecord
from steadygrad.probe.probe import Probe
from steadygrad.rules.engine import RuleSet
from steadygrad.trace.writer import TraceWriter
from tests.integrations.trainings import cnn_batchnorm, differences, unwatched

OURS = [
    (Probe, "saw_backward"),
    (Probe, "before"),
    (Probe, "after"),
    (Probe, "optimizer_index"),
    (RuleSet, "observe"),
    (Policy, "before"),
    (Policy, "after"),
    (Guard, "before"),
    (Guard, "step_over"),
    (Guard, "judge"),
    (Guard, "undo_overrides"),
    (TraceWriter, "step"),
    (TraceWriter, "declare"),
    (RunRecord, "begin"),
    (RunRecord, "write"),
    (RunRecord, "count"),
]


@functools.cache
def plain_run():
    return cnn_batchnorm(0, 60, unwatched)


@pytest.mark.parametrize("nth", [pytest.param(1, marks=pytest.mark.slow), 30])
@pytest.mark.parametrize(("owner", "name"), OURS, ids=lambda x: getattr(x, "__name__", x))
def test_bug_of_ours_disarms_us_and_the_run_is_untouched(owner, name, nth, tmp_path, monkeypatch):
    plain = plain_run()
    original, calls = getattr(owner, name), []

    def broken(*args, **kwargs):
        calls.append(1)
        if len(calls) == nth:
            raise KeyError("a bug of ours")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, broken)
    watchers = []

    def watched(models, optimizers):
        watchers.append(sg.watch(models, *optimizers, runs=tmp_path))
        return watchers[-1]

    guarded = cnn_batchnorm(0, 60, watched)
    assert differences(plain, guarded) == []
    summary = watchers[0].close()
    if len(calls) >= nth:
        assert sum("switched itself off" in n for n in summary.notes) == 1


class Boom(Exception):
    pass


@pytest.mark.parametrize("where", ["forward", "backward", "closure", "step", "between"])
@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_users_exception_is_the_same_object(where, error, tmp_path):
    thrown = error("mine")

    class Grumpy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, g):
            raise thrown

    class Picky(torch.optim.SGD):
        def step(self, closure=None):
            raise thrown

    model = nn.Linear(3, 1)
    optimizer = (Picky if where == "step" else torch.optim.SGD)(model.parameters(), lr=0.1)

    def loss():
        if where in ("forward", "closure"):
            raise thrown
        out = model(torch.ones(2, 3)).sum()
        return Grumpy.apply(out) if where == "backward" else out

    def closure():
        value = loss()
        value.backward()
        return value

    with pytest.raises(error) as caught, sg.watch(model, optimizer, runs=tmp_path) as watcher:
        if where == "closure":
            optimizer.step(closure)
        closure()
        optimizer.step()
        raise thrown
    assert caught.value is thrown
    assert watcher.close().notes == ()


def test_close_leaves_nothing_behind(tmp_path):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = (
        torch.autograd.backward,
        torch.nn.utils.clip_grad_norm_,
        dict(vars(optimizer)).keys(),
        optimizer.step,
    )
    with sg.watch(model, optimizer, runs=tmp_path):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    after = (
        torch.autograd.backward,
        torch.nn.utils.clip_grad_norm_,
        dict(vars(optimizer)).keys(),
        optimizer.step,
    )
    assert before == after
    assert not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (lambda m, o: sg.watch(m), ValueError, "at least one optimizer"),
        (lambda m, o: sg.watch(3, o), TypeError, "model must be"),
        (lambda m, o: sg.watch(m, m), TypeError, "optimizer"),
        (lambda m, o: sg.watch(m, o, guard="maybe"), ValueError, "'off', 'warn' or 'on'"),
        (lambda m, o: sg.watch(m, o, name="../up"), ValueError, "up"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(arguments, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(error, match=words):
        arguments(model, optimizer)
    assert list(tmp_path.iterdir()) == [] and "step" not in vars(optimizer)


def test_second_watcher_on_one_optimizer_is_refused(tmp_path):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sg.watch(model, optimizer, runs=tmp_path), pytest.raises(ValueError, match="already"):
        sg.watch(model, optimizer, runs=tmp_path)
    sg.watch(model, optimizer, runs=tmp_path).close()
