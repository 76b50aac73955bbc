"""The join points see everything and change nothing."""

import copy
import gc
import inspect
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from steadygrad.probe.joinpoints import JoinPoints
from tests.integrations.trainings import differences

X, Y = torch.randn(32, 4, generator=torch.Generator().manual_seed(1)), torch.ones(32, 3)


class Listener:
    """Writes down what it is told; ``refuse`` holds the numbers of steps that it does not allow."""

    def __init__(self, refuse=()):
        self.calls, self.losses, self.norms, self.refuse = [], [], [], set(refuse)
        self.built, self.seen_scalers, self.graphs = [], set(), []

    def optimizer_built(self, optimizer):
        self.built.append(weakref.ref(optimizer))

    def scheduler_built(self, scheduler):
        self.calls.append("scheduler")

    def scaler_seen(self, scaler):
        self.seen_scalers.add(id(scaler))

    def backward(self, roots):
        self.losses.append([float(r) for r in roots])

    def graph(self, roots, values):
        self.graphs.append([type(r.grad_fn).__name__ for r in roots])

    def clipped(self, params, max_norm):
        self.norms.append(float(torch.stack([p.grad.norm() for p in params]).norm()))
        self.calls.append(f"clip {max_norm:g}")

    def before_step(self, optimizer):
        self.calls.append("before")
        return self.calls.count("before") - 1 not in self.refuse

    def after_step(self, optimizer, applied):
        self.calls.append("after" if applied else "skipped")

    def step_raised(self, optimizer):
        self.calls.append("raised")

    def amp_skipped(self, optimizer, scaler):
        self.calls.append("amp")


@pytest.fixture
def joined():
    made = []

    def join(listener=None, *optimizers, everything=False):
        listener = listener or Listener()
        points = JoinPoints(listener)
        made.append(points)
        points.install(all_optimizers=everything)
        for optimizer in optimizers:
            points.attach(optimizer)
        return listener, points

    yield join
    for points in made:
        points.remove()


CLASSES = {
    **{f"{c.__name__}": c for c in (
        torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad,
        torch.optim.Adadelta, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam, torch.optim.ASGD,
        torch.optim.Rprop, torch.optim.LBFGS, torch.optim.Adafactor,
    )},
    "Muon": lambda p, **k: torch.optim.Muon([q for q in p if q.ndim == 2], **k),
    "AdamW_fused": lambda p, **k: torch.optim.AdamW(p, fused=True, **k),
    "AdamW_foreach": lambda p, **k: torch.optim.AdamW(p, foreach=True, **k),
}  # fmt: skip


def train(make, steps=5, around=lambda o: None, schedule_first=False):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = make(list(model.parameters()), lr=0.01)
    if not schedule_first:
        around(optimizer)
    schedule = LambdaLR(optimizer, lambda s: 0.9**s)
    if schedule_first:
        around(optimizer)
    evaluations = []

    def closure():
        optimizer.zero_grad()
        loss = (model(X) - Y).square().mean()
        loss.backward()
        evaluations.append(loss.item())
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        schedule.step()
    return model, optimizer, evaluations


@pytest.mark.parametrize("schedule_first", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_every_step_is_seen_and_the_run_is_the_same(name, schedule_first, joined):
    plain = train(CLASSES[name])
    listener, points = joined()
    seen = train(CLASSES[name], around=points.attach, schedule_first=schedule_first)
    assert [c for c in listener.calls if c in ("before", "after")] == ["before", "after"] * 5
    assert plain[2] == seen[2], "the closure was evaluated more often, or on other weights"
    assert all(torch.equal(a, b) for a, b in zip(plain[0].parameters(), seen[0].parameters(), strict=True))
    assert len(listener.losses) == len(seen[2])


def test_gradients_of_a_closure_are_those_of_this_step(joined):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    class Reads(Listener):
        def before_step(self, optimizer):
            self.norms.append(model.weight.grad.norm().item())
            return True

    listener, _ = joined(Reads(), optimizer)
    true = []

    def closure():
        optimizer.zero_grad()
        loss = (model(X) - Y).square().mean()
        loss.backward()
        true.append(model.weight.grad.norm().item())
        return loss

    for _ in range(4):
        optimizer.step(closure=closure)
    assert listener.norms == true and len(true) == 4


@pytest.mark.parametrize("name", CLASSES)
def test_a_refused_step_changes_nothing_and_returns_the_loss(name, joined):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = CLASSES[name](list(model.parameters()), lr=0.01)
    joined(Listener(refuse=[0]), optimizer)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    def closure():
        optimizer.zero_grad()
        loss = (model(X) - Y).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    after = (model.state_dict(), optimizer.state_dict())
    assert differences(before, after) == []


def test_loss_is_reported_without_the_scalers_factor(joined):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    listener, _ = joined(None, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = (model(X) - Y).square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert listener.losses == [[loss.item()]]
    assert listener.calls == ["before", "after"] and listener.seen_scalers == {id(scaler)}


@pytest.mark.parametrize("fused", [False, True])
def test_overflow_of_the_scaler_is_its_own_skip(fused, joined):
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    listener, _ = joined(None, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    weight = model.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale((model(X) - Y).square().mean() * 1e4).backward()
        scaler.step(optimizer)
        scaler.update()
    assert listener.calls == ["amp"] * 3 and torch.equal(weight, model.weight)


def test_clip_is_seen_raw_even_where_its_name_was_imported_before(joined):
    from torch.nn.utils import clip_grad_norm_  # the original name, as a script would hold it

    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    listener, _ = joined(None, optimizer)
    (model(X) * 100).square().mean().backward()
    raw = float(torch.stack([p.grad.norm() for p in model.parameters()]).norm())
    clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    assert listener.calls == ["clip 0.5", "before", "after"]
    assert listener.norms == [pytest.approx(raw)] and raw > 1
    (model(X) * 100).square().mean().backward()
    torch.nn.utils.clip_grad_value_(model.parameters(), 0.1)
    assert listener.calls[-1] == "clip 0.1" and listener.norms[-1] > 1


def test_two_listeners_unwind_in_any_order(joined):
    originals = (torch.autograd.backward, torch.optim.Optimizer.__init__, torch.nn.utils.clip_grad_value_)
    _, first = joined()
    _, second = joined()
    assert torch.autograd.backward is not originals[0]
    first.remove()
    assert torch.autograd.backward is not originals[0]
    second.remove()
    second.remove()
    assert originals == (
        torch.autograd.backward,
        torch.optim.Optimizer.__init__,
        torch.nn.utils.clip_grad_value_,
    )


def test_everything_that_is_built_is_seen(joined):
    model = nn.Linear(4, 3)
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    listener, points = joined(everything=True)
    late = torch.optim.Adam(model.parameters())
    copied = copy.deepcopy(late)
    loaded = pickle.loads(pickle.dumps(late))
    assert {id(r()) for r in listener.built} >= {id(early), id(late), id(copied), id(loaded)}
    (model(X)).sum().backward()
    for optimizer in (early, late, copied, loaded):
        optimizer.step()
    assert listener.calls == ["before", "after"] * 4
    points.remove()
    assert all("step" not in vars(o) for o in (early, late, copied, loaded))


def test_a_discarded_optimizer_is_freed_at_once(joined):
    joined(everything=True)
    model = nn.Linear(4, 3)
    ref = weakref.ref(torch.optim.SGD(model.parameters(), lr=0.1))
    gc.disable()
    try:
        assert ref() is None, "held by a cycle or by us"
    finally:
        gc.enable()


def test_explicit_attachment_takes_over_from_a_listener_to_everything(joined):
    optimizer = torch.optim.SGD(nn.Linear(4, 3).parameters(), lr=0.1)
    everything, _ = joined(everything=True)
    explicit, points = joined(None, optimizer)
    optimizer.step()
    assert explicit.calls == ["before", "after"] and everything.calls == []
    with pytest.raises(ValueError, match="watched already"):
        joined(None, optimizer)
    points.remove()
    assert "step" not in vars(optimizer)


def test_step_within_a_step_is_one_step(joined):
    class Outer(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner = inner
            super().__init__(inner.param_groups, {})

        def step(self, closure=None):
            return self.inner.step(closure)

    listener, _ = joined(everything=True)
    model = nn.Linear(4, 3)
    outer = Outer(torch.optim.SGD(model.parameters(), lr=0.1))
    model(X).sum().backward()
    outer.step()
    assert listener.calls == ["before", "after"]


def test_users_exception_in_the_step_is_told_and_passed_on(joined):
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            raise error

    error = KeyboardInterrupt("mine")
    optimizer = Broken(nn.Linear(4, 3).parameters(), lr=0.1)
    listener, _ = joined(None, optimizer)
    with pytest.raises(KeyboardInterrupt) as caught:
        optimizer.step()
    assert caught.value is error and listener.calls == ["before", "raised"]


def test_the_wrapper_looks_like_the_method(joined):
    optimizer = torch.optim.SGD(nn.Linear(4, 3).parameters(), lr=0.1)
    signature = inspect.signature(optimizer.step)
    joined(None, optimizer)
    assert inspect.signature(optimizer.step) == signature
    assert optimizer.step.__name__ == "step"


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, when dynamo loads
@pytest.mark.parametrize("what", ["model", "step"])
def test_compiled_model_and_compiled_step(what, joined):
    import torch._dynamo

    torch._dynamo.reset()
    results = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01))
        listener, points = joined(None, *([optimizer] if watched else []))
        forward = torch.compile(model, backend="aot_eager") if what == "model" else model
        step = (
            torch.compile(lambda o=optimizer: o.step(), backend="eager") if what == "step" else optimizer.step
        )
        for _ in range(4):
            optimizer.zero_grad()
            (forward(X) - Y).square().mean().backward()
            step()
        points.remove()
        results.append([p.detach().clone() for p in model.parameters()])
        if watched:
            assert listener.calls == ["before", "after"] * 4
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
