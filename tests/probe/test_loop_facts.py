"""Mistakes of the training loop are told from loops that do the same thing rightly, on real watched loops."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import steadygrad as sg
from steadygrad.integrations.options import Options
from steadygrad.integrations.session import Session
from steadygrad.probe.loop_facts import LoopFacts
from steadygrad.probe.names import name_parameters
from tests.integrations.trainings import differences, leavings, unwatched

STEPS = 12
KINDS = {  # those of the loop: others are read off the graph
    "zero_grad_missing",
    "clip_before_unscale",
    "scale_ignored",
    "eval_mode",
    "loss_used_twice",
    "graph_grows",
    "zero_lr",
    "no_gradient",
}


def net(dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(6, 8), nn.Tanh()]
    if norm:
        layers.append(nn.BatchNorm1d(8))
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(8, 3))


def batch():
    return torch.randn(16, 6), torch.randint(0, 3, (16,))


def loss_of(model):
    x, y = batch()
    return F.cross_entropy(model(x), y)


def simple(clear, *, make=net, steps=STEPS):
    """A loop that differs only in how it clears gradients."""

    def loop(wrap):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses = []
        with wrap([model], [optimizer]):
            for step in range(steps):
                clear(model, optimizer, step)
                loss = loss_of(model)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return leavings([model], [optimizer], losses)

    return loop


def by_hand(model, optimizer, step):
    for p in model.parameters():
        p.grad = None


def zero_by_hand(model, optimizer, step):
    for p in model.parameters():
        if p.grad is not None:
            p.grad.zero_()


def zero_data_by_hand(model, optimizer, step):
    for p in model.parameters():
        if p.grad is not None:
            p.grad.data.fill_(0)


def only_the_first_layer(model, optimizer, step):
    model[0].zero_grad()


def accumulation(clear_at):
    """Four micro-batches a step; cleared after the step, before the first micro-batch, or never."""

    def loop(wrap):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        with wrap([model], [optimizer]):
            for _ in range(STEPS):
                if clear_at == "before":
                    optimizer.zero_grad(set_to_none=False)
                for _ in range(4):
                    (loss_of(model) / 4).backward()
                optimizer.step()
                if clear_at == "after":
                    optimizer.zero_grad()
        return leavings([model], [optimizer], [])

    return loop


def gan(set_to_none, clear=True):
    """The generator's pass fills the gradients of the discriminator, which clears them right before its own."""

    def loop(wrap):
        g, d = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
        og, od = torch.optim.Adam(g.parameters(), lr=1e-3), torch.optim.Adam(d.parameters(), lr=1e-3)
        with wrap([g, d], [og, od]):
            for _ in range(STEPS):
                og.zero_grad(set_to_none=set_to_none)
                (-d(g(torch.randn(8, 4))).mean()).backward()
                og.step()
                if clear:
                    od.zero_grad(set_to_none=set_to_none)
                (
                    F.softplus(-d(torch.randn(8, 6))) + F.softplus(d(g(torch.randn(8, 4)).detach()))
                ).mean().backward()
                od.step()
        return leavings([g, d], [og, od], [])

    return loop


def closures(clear):
    def loop(wrap):
        model = net()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
        x, y = batch()

        def closure():
            if clear:
                optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        with wrap([model], [optimizer]):
            for _ in range(6):
                optimizer.step(closure)
        return leavings([model], [optimizer], [])

    return loop


def disjoint(wrap):
    model = net()
    optimizers = [
        torch.optim.SGD(model[0].parameters(), lr=0.1),
        torch.optim.Adam(model[2].parameters(), lr=0.01),
    ]
    with wrap([model], optimizers):
        for _ in range(STEPS):
            model.zero_grad()
            loss_of(model).backward()
            for optimizer in optimizers:
                optimizer.step()
    return leavings([model], optimizers, [])


def never_stepped(wrap):
    """The gradient of the input scale is summed up on purpose, and no optimizer has it."""
    model, scale = net(), nn.Parameter(torch.ones(6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with wrap([model], [optimizer]):
        for _ in range(STEPS):
            optimizer.zero_grad()
            x, y = batch()
            F.cross_entropy(model(x * scale), y).backward()
            optimizer.step()
    return leavings([model], [optimizer], [])


def several_steps_on_one_gradient(wrap):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with wrap([model], [optimizer]):
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            optimizer.step()
    return leavings([model], [optimizer], [])


# ---------------------------------------------------------------------- the scaler
def scaled(order, *, max_norm=1.0, init_scale=1024.0, enabled=True, optimizer=torch.optim.SGD):
    """``order``: what happens between backward and update: "unscale", "clip", "step" (with its
    update), "raw step", "update"."""

    def loop(wrap):
        model = net()
        opt = optimizer(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, enabled=enabled)
        with wrap([model], [opt]):
            for _ in range(STEPS):
                opt.zero_grad()
                scaler.scale(loss_of(model)).backward()
                for what in order:
                    if what == "unscale":
                        scaler.unscale_(opt)
                    elif what == "clip":
                        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
                    elif what == "clip value":
                        nn.utils.clip_grad_value_(model.parameters(), max_norm)
                    elif what == "step":
                        scaler.step(opt)
                        scaler.update()
                    elif what == "raw step":
                        opt.step()
                    else:
                        scaler.update()
        return leavings([model], [opt], [])

    return loop


def one_scaled_of_two(wrap):
    """The loss of the second model is not scaled: its optimizer steps and is clipped by itself, rightly."""
    a, b = net(), net()
    oa, ob = torch.optim.SGD(a.parameters(), lr=0.01), torch.optim.SGD(b.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with wrap([a, b], [oa, ob]):
        for _ in range(STEPS):
            oa.zero_grad()
            scaler.scale(loss_of(a)).backward()
            scaler.step(oa)
            scaler.update()
            ob.zero_grad()
            loss_of(b).backward()
            nn.utils.clip_grad_norm_(b.parameters(), 1.0)
            ob.step()
    return leavings([a, b], [oa, ob], [])


# ---------------------------------------------------------------------- the mode
def modes(mode, make):
    def loop(wrap):
        model = make()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        with wrap([model], [optimizer]):
            for step in range(STEPS):
                mode(model, step)
                optimizer.zero_grad()
                loss_of(model).backward()
                optimizer.step()
        return leavings([model], [optimizer], [])

    return loop


def from_the_start(model, step):
    model.eval()


def after_evaluation(model, step):
    if step == 4:
        model.eval()
        with torch.no_grad():
            loss_of(model)


def evaluated_rightly(model, step):
    if step % 3 == 2:
        model.eval()
        with torch.no_grad():
            loss_of(model)
    model.train()


def frozen_norms(model, step):
    model.train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d):
            m.eval()


def head_in_training(model, step):
    model.eval()
    model[-1].train()
    model[3].train()


def frozen_backbone():
    backbone = net(0.5, norm=True).requires_grad_(False)
    return nn.Sequential(backbone, nn.Linear(3, 3))


def gan_with_evaluated_discriminator(wrap):
    """The discriminator is in evaluation mode for the generator's step only."""
    g = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.1))
    d = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    og, od = torch.optim.SGD(g.parameters(), lr=1e-3), torch.optim.SGD(d.parameters(), lr=1e-3)
    with wrap([g, d], [og, od]):
        for _ in range(STEPS):
            d.eval()
            og.zero_grad()
            (-d(g(torch.randn(8, 4))).mean()).backward()
            og.step()
            d.train()
            od.zero_grad()
            d(g(torch.randn(8, 4)).detach()).square().mean().backward()
            od.step()
    return leavings([g, d], [og, od], [])


def one_pass_in_each_mode(wrap):
    """Each step takes a pass in training mode and one in evaluation mode (a consistency loss)."""
    model = net(0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with wrap([model], [optimizer]):
        for _ in range(STEPS):
            optimizer.zero_grad()
            for mode in (True, False):
                model.train(mode)
                loss_of(model).backward()
            optimizer.step()
    return leavings([model], [optimizer], [])


# ---------------------------------------------------------------------- the loss
def twice(clear_between):
    def loop(wrap):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with wrap([model], [optimizer]):
            for _ in range(STEPS):
                optimizer.zero_grad()
                loss = loss_of(model)
                loss.backward(retain_graph=True)
                if clear_between:
                    optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return leavings([model], [optimizer], [])

    return loop


def two_losses(wrap):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with wrap([model], [optimizer]):
        for _ in range(STEPS):
            optimizer.zero_grad()
            x, y = batch()
            losses = F.cross_entropy(model(x), y, reduction="none")
            losses[0].backward(retain_graph=True)
            losses[1].backward(retain_graph=True)
            losses.mean().backward()
            optimizer.step()
    return leavings([model], [optimizer], [])


# ---------------------------------------------------------------------- rates and reach
def rates(schedule, lr=0.1, steps=STEPS, groups=lambda m: m.parameters()):
    def loop(wrap):
        model = net()
        optimizer = torch.optim.SGD(groups(model), lr=lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule) if schedule else None
        with wrap([model], [optimizer]):
            for _ in range(steps):
                optimizer.zero_grad()
                loss_of(model).backward()
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
        return leavings([model], [optimizer], [])

    return loop


def one_idle_group(model):
    return [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]


class Forgets(nn.Module):
    """``unused`` is never called, and what comes from ``cut`` is detached."""

    def __init__(self):
        super().__init__()
        self.cut, self.unused, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.cut(x)).detach())


class ZeroBranch(nn.Module):
    """The branch begins at 0: at the first step its inner weights have a gradient of exactly 0."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x):
        return self.out(x + self.outer(torch.tanh(self.inner(x))))


class IdleShift(nn.Module):
    """The gradient of a vector is exactly 0, as that of a bias before a norm may be."""

    def __init__(self):
        super().__init__()
        self.shift, self.out = nn.Parameter(torch.zeros(3)), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(x) + 0 * self.shift


def reach(make, freeze=lambda m: None, warm=False):
    def loop(wrap):
        model = make()
        freeze(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.0 if warm and t < 7 else 1.0)
        with wrap([model], [optimizer]):
            for _ in range(STEPS):
                optimizer.zero_grad()
                loss_of(model).backward()
                optimizer.step()
                schedule.step()
        return leavings([model], [optimizer], [])

    return loop


def cleared_before_the_step(wrap):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with wrap([model], [optimizer]):
        for _ in range(STEPS):
            loss_of(model).backward()
            optimizer.zero_grad()
            optimizer.step()
    return leavings([model], [optimizer], [])


def trains_another_model(wrap):
    model, used = net(), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with wrap([model], [optimizer]):
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss_of(used).backward()
            optimizer.step()
    return leavings([model], [optimizer], [])


def dropping():
    return net(0.3)


def norming():
    return net(0.3, norm=True)


WRONG = {
    "no zero_grad": (simple(lambda m, o, s: None), "zero_grad_missing"),
    "a part is not cleared": (simple(only_the_first_layer), "zero_grad_missing"),
    "accumulation without zero_grad": (accumulation("never"), "zero_grad_missing"),
    "discriminator not cleared": (gan(True, clear=False), "zero_grad_missing"),
    "closure without zero_grad": (closures(False), "zero_grad_missing"),
    "clip, then scaler": (scaled(["clip", "step"]), "clip_before_unscale"),
    "clip by value, then scaler": (scaled(["clip value", "step"]), "clip_before_unscale"),
    "step past the scaler": (scaled(["raw step"]), "scale_ignored"),
    "evaluation from the start": (modes(from_the_start, dropping), "eval_mode"),
    "evaluation never left": (modes(after_evaluation, norming), "eval_mode"),
    "loss twice": (twice(False), "loss_used_twice"),
    "no rate": (rates(None, lr=0.0), "zero_lr"),
    "rate falls to 0": (rates(lambda t: max(0.0, 1 - t / 5)), "zero_lr"),
    "rate 0 by schedule": (rates(lambda t: 0.0, steps=105), "zero_lr"),
    "unused and detached layers": (reach(Forgets), "no_gradient"),
    "cleared before the step": (cleared_before_the_step, "no_gradient"),
    "another model is trained": (trains_another_model, "no_gradient"),
}

RIGHT = {
    "zero_grad": simple(lambda m, o, s: o.zero_grad()),
    "zero_grad in place": simple(lambda m, o, s: o.zero_grad(set_to_none=False)),
    "module zero_grad": simple(lambda m, o, s: m.zero_grad()),
    "module zero_grad in place": simple(lambda m, o, s: m.zero_grad(set_to_none=False)),
    "None by hand": simple(by_hand),
    "zero_ by hand": simple(zero_by_hand),
    "zero through data": simple(zero_data_by_hand),
    "late first clear": simple(lambda m, o, s: o.zero_grad() if s > 1 else None),
    "accumulation, cleared before": accumulation("before"),
    "accumulation, cleared after": accumulation("after"),
    "gan": gan(True),
    "gan in place": gan(False),
    "closure": closures(True),
    "disjoint optimizers": disjoint,
    "a parameter that is never stepped": never_stepped,
    "two steps on one gradient": several_steps_on_one_gradient,
    "unscale, clip, step": scaled(["unscale", "clip", "step"]),
    "scaler without clip": scaled(["step"]),
    "fused optimizer": scaled(["step"], optimizer=lambda p, lr: torch.optim.Adam(p, lr=lr, fused=True)),
    "scaled bound": scaled(["clip", "step"], max_norm=1024.0),
    "scaler that is off": scaled(["clip", "step"], enabled=False),
    "unscaled by the scaler, stepped by hand": scaled(["unscale", "clip", "raw step", "update"]),
    "one scaled of two": one_scaled_of_two,
    "evaluated between": modes(evaluated_rightly, norming),
    "one pass in each mode": one_pass_in_each_mode,
    "frozen norms": modes(frozen_norms, norming),
    "a part in training": modes(head_in_training, norming),
    "frozen backbone": modes(from_the_start, frozen_backbone),
    "nothing differs": modes(from_the_start, net),
    "dropout of 0": modes(from_the_start, lambda: nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.0))),
    "gan with an evaluated discriminator": gan_with_evaluated_discriminator,
    "loss twice, cleared between": twice(True),
    "two losses": two_losses,
    "warm-up from 0": rates(lambda t: t / 10),
    "warm-up by epochs": rates(lambda t: (t // 50) / 3, steps=60),
    "cosine to 0 and up": rates(lambda t: 1.0 if t % 4 else 0.0),
    "one idle group": rates(None, groups=one_idle_group),
    "frozen layers": reach(Forgets, lambda m: (m.cut.requires_grad_(False), m.unused.requires_grad_(False))),
    "zero branch": reach(ZeroBranch),
    "vector without effect": reach(IdleShift),
    "zero branch under a warm-up": reach(ZeroBranch, warm=True),
}


@pytest.fixture(autouse=True, scope="module")
def _few_objects():
    """What is looked for in memory is found faster if there is little of it."""
    gc.collect()
    gc.freeze()


def observed(loop, tmp_path):
    """Oddities of a loop, in the order in which they were put on record, and what the loop left behind."""
    told = []

    class Observer:
        def step(self, stats, skipped, incidents):
            if stats.portrait is not None:
                told.extend(odd for odd in stats.portrait.oddities if odd.kind in KINDS)

        def __getattr__(self, name):  # started, finding, action, note
            return lambda *args: None

    def wrap(models, optimizers):
        return sg.watch(models, *optimizers, guard="off", runs=tmp_path, observer=Observer())

    torch.manual_seed(0)
    result = loop(wrap)
    return told, result


def untouched(loop):
    torch.manual_seed(0)
    return loop(unwatched)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_loop_is_told_of_once_and_not_changed(name, tmp_path):
    loop, kind = WRONG[name]
    told, result = observed(loop, tmp_path)
    assert [odd.kind for odd in told] == [kind]
    assert told[0].where and told[0].message
    assert all(isinstance(v, float) for v in told[0].evidence.values())
    assert differences(untouched(loop), result) == []


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_loop_is_left_alone(name, tmp_path):
    told, result = observed(RIGHT[name], tmp_path)
    assert told == []
    assert differences(untouched(RIGHT[name]), result) == []


def test_what_is_told(tmp_path):
    (partly,), _ = observed(WRONG["a part is not cleared"][0], tmp_path)
    assert partly.where == "2.weight, 2.bias" and partly.evidence["share"] == 0.5
    (unused,), _ = observed(WRONG["unused and detached layers"][0], tmp_path)
    assert unused.where == "cut.weight, cut.bias, unused.weight and 1 more"
    assert unused.evidence["share"] == pytest.approx(4 / 6)
    (early,), _ = observed(WRONG["clip, then scaler"][0], tmp_path)
    assert early.evidence == {"scale": 1024.0, "max_norm": 1.0}
    (start,), _ = observed(WRONG["evaluation from the start"][0], tmp_path)
    (later,), _ = observed(WRONG["evaluation never left"][0], tmp_path)
    assert (start.evidence["after_training"], later.evidence["after_training"]) == (0.0, 1.0)
    assert later.evidence["layers"] == 2.0


def test_without_models_given(tmp_path):
    """A session that finds the models by itself sees the same."""
    session = Session(Options(runs=str(tmp_path), name="x", guard="warn"), script="x.py")
    session.install()
    torch.manual_seed(0)
    WRONG["evaluation from the start"][0](unwatched)
    told = session._probe._loop.oddities()
    session.close()
    assert [odd.kind for odd in told] == ["eval_mode"]


# ---------------------------------------------------------------------- graphs that grow
def graph_sizes(sizes):
    facts = LoopFacts()
    for step, nodes in sizes:
        facts.graph_size(step, nodes)
    return [odd.kind for odd in facts.oddities()]


@pytest.mark.parametrize("steps", [(0, 1, 2, 3), (0, 1, 2, 5)])
def test_a_sum_of_losses_grows(steps):
    assert graph_sizes([(t, 20 + 21 * t) for t in steps]) == ["graph_grows"]


@pytest.mark.parametrize(
    "sizes",
    [
        [(0, 20), (1, 20), (2, 20), (3, 20)],
        [(0, 20), (1, 41), (2, 40), (3, 83)],  # sequences of any length
        [(0, 100), (1, 101), (2, 102), (3, 103)],  # one operation more: no second pass through the model
        [(0, 80), (1, 60), (2, 40), (3, 20)],
        [(0, 20), (1, 41), (2, 62)],
        [(0, 20), (0, 41), (1, 20), (2, 20), (3, 20)],
    ],
)
def test_other_sizes_do_not(sizes):
    assert graph_sizes(sizes) == []


def test_nothing_is_kept_alive():
    """Gradients and losses of a model that is gone are freed while the facts live on."""
    facts = LoopFacts()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(model)
        facts.backward([loss.detach()], [model])
        loss.backward()
        norms = torch.tensor([p.grad.norm() for p in model.parameters()]).numpy()
        facts.before_step(
            optimizer, list(model.parameters()), name_parameters(optimizer, 0, [model], 0), norms, [model]
        )
        optimizer.step()
        facts.after_step(optimizer)
    grad = weakref.ref(model[0].weight.grad)
    gone = [weakref.ref(x) for x in (optimizer, model, loss)]
    optimizer.zero_grad()
    assert grad() is None
    del optimizer, model, loss, _
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
    assert facts.oddities() == ()
