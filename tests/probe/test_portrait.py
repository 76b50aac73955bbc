"""The portrait of a step as a run's probe takes it, and that a run is the same without."""

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adam

import steadygrad as sg
from steadygrad.probe.compiled import Compiled
from steadygrad.probe.joinpoints import JoinPoints
from steadygrad.probe.portrait import Portraitist
from steadygrad.probe.probe import Probe
from steadygrad.probe.root_outputs import MAX_KEPT, MAX_PLAIN, RootOutputs
from steadygrad.records import Portrait


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))


X, Y = torch.randn(12, 6, generator=torch.Generator().manual_seed(3)), torch.arange(12) % 3


def names(model):
    return {id(p): n for n, p in model.named_parameters()}


def loss_of(model):
    return F.cross_entropy(model(X), Y)


# ---------------------------------------------------------------------- one portrait
def test_a_portrait_has_everything():
    model, painter = mlp(), Portraitist()
    assert not painter.waiting and painter.take({}) is None
    loss = loss_of(model)
    painter.look([loss], [], [], {p: n for n, p in model.named_parameters()})
    assert painter.waiting
    loss.backward()
    portrait = painter.take(names(model))
    assert [row.name for row in portrait.layers] == ["0.weight", "3.weight"]
    assert all(row.grad_rms > 0 and row.input_rms > 0 for row in portrait.layers)
    assert (portrait.normalised, portrait.post_normalised, portrait.residual) == (1, 0, 0)
    assert [(t.kind, t.classes) for t in portrait.terms] == [("cross_entropy", 3)]
    assert portrait.terms[0].value == pytest.approx(loss.item())
    assert portrait.complete and portrait.nodes > 5 and portrait.oddities == portrait.recurrences == ()
    assert not painter.waiting and painter.take({}) is None


def test_attention_is_named():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    painter, loss = Portraitist(), layer(torch.randn(2, 5, 8)).sum()
    painter.look([loss], [], [], None)
    loss.backward()
    (a,) = painter.take(names(layer)).attention
    assert a.name == "self_attn.in_proj_weight" and 0 < a.entropy < 1 and a.keys == 5


def test_a_look_that_comes_to_nothing_is_dropped():
    model, painter = mlp(), Portraitist()
    loss = loss_of(model)
    painter.look([loss], [], [], None)
    painter.forget()
    loss.backward()
    assert not painter.waiting and painter.take(names(model)) is None
    painter.forget()


def test_nothing_is_held_after_a_look():
    painter, model = Portraitist(), mlp()
    hidden = model[:3](X)
    loss = F.cross_entropy(model[3](hidden), Y)
    painter.look([loss], [hidden], [hidden.detach()], None)
    kept = weakref.ref(hidden)
    gc.disable()
    try:
        del hidden, loss
        assert kept() is None
    finally:
        gc.enable()


# ---------------------------------------------------------------------- outputs of models
class Double(nn.Module):
    def forward(self, x):
        return {"a": (x * 2, [x * 3]), "n": 4, "i": torch.ones(1, dtype=torch.long)}


def test_outputs_of_any_form_are_kept_once():
    outputs, model, x = RootOutputs(Compiled()), Double(), torch.ones(2, requires_grad=True)
    outputs.arm([model])
    model(x)
    assert [t.tolist() for t in outputs.take()[0]] == [[2, 2], [3, 3]] and outputs.take() == ([], [])
    model(x.detach())
    assert [t.tolist() for t in outputs.take()[1]] == [[2, 2], [3, 3]]
    model(x)
    outputs.disarm()
    assert outputs.take() == ([], []) and not model._forward_hooks


def test_only_the_latest_outputs_are_kept():
    outputs, model = RootOutputs(Compiled()), nn.Linear(2, 2)
    outputs.arm([model])
    for i in range(100):
        model(torch.full((1, 2), float(i)))
        with torch.no_grad():
            last = model(torch.zeros(1, 2))
    seen, plain = outputs.take()
    assert (len(seen), len(plain)) == (MAX_KEPT, MAX_PLAIN) and plain[-1] is last
    assert torch.equal(seen[-1], model(torch.full((1, 2), 99.0)))


def test_modules_with_a_fast_path_have_no_hook():
    outputs = RootOutputs(Compiled())
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 8))
    outputs.arm([model])
    assert [bool(m._forward_hooks) for m in (model, *model[:2])] == [True, False, True]


def test_an_armed_model_can_be_copied_and_stored(tmp_path):
    outputs, model = RootOutputs(Compiled()), mlp()
    outputs.arm([model])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X), model(X).detach())
        outputs.take()
        twin(X)
        assert outputs.take() == ([], [])
    outputs.disarm()


# ---------------------------------------------------------------------- in a probe
class Listener:
    """Hands everything on to a probe, as a session does."""

    def __init__(self, models, *optimizers):
        self.probe, self.records = Probe(models), []
        self.join = JoinPoints(self)
        self.join.install(all_optimizers=False)
        for optimizer in optimizers:
            self.join.attach(optimizer)
            self.probe.optimizer_index(optimizer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.join.remove()
        self.probe.close()

    def backward(self, roots):
        self.probe.saw_backward(roots)

    def graph(self, roots, values):
        self.probe.saw_graph(roots)

    def before_step(self, optimizer):
        self.stats = self.probe.before(optimizer)
        return True

    def after_step(self, optimizer, applied):
        self.records.append(self.probe.after(optimizer, self.stats, applied))

    def scaler_seen(self, scaler):
        self.probe.saw_scaler(scaler)

    def amp_skipped(self, optimizer, scaler):
        self.probe.saw_amp_skip(optimizer)

    def clipped(self, params, max_norm):
        self.probe.saw_clip(params, max_norm)

    def portraits(self):
        return [r.portrait for r in self.records]


def test_sampled_steps_have_a_portrait():
    model = mlp()
    optimizer = SGD(model.parameters(), 0.1)
    with Listener([model], optimizer) as run:
        for _ in range(60):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
    taken = [r.step for r in run.records if r.portrait is not None and r.portrait.layers]
    assert taken[0] == 0 and 50 in taken and len(taken) < 30
    assert not model._forward_hooks


def test_an_accumulation_is_one_portrait_and_keeps_no_outputs():
    model = mlp()
    optimizer = SGD(model.parameters(), 0.1)
    alive = []
    with Listener([model], optimizer) as run:
        optimizer.zero_grad()
        for _ in range(5):
            out = model(X)
            alive.append(weakref.ref(out))
            loss = F.cross_entropy(out, Y)
            loss.backward()
            del out, loss
        assert [ref() for ref in alive] == [None] * 5
        optimizer.step()
    (portrait,) = run.portraits()
    assert [row.uses for row in portrait.layers] == [1, 1] and len(portrait.terms) == 1


def test_two_optimizers_have_one_each():
    g, d = mlp(), nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    og, od = SGD(g.parameters(), 0.1), SGD(d.parameters(), 0.1)
    with Listener([g, d], og, od) as run:
        fake = g(X)
        d(fake.detach()).mean().backward()
        od.step()
        (-d(fake).mean()).backward()
        og.step()
    of_d, of_g = run.portraits()
    assert [row.name.split(".")[-2:] for row in of_d.layers] == [["0", "weight"], ["2", "weight"]]
    assert len(of_g.layers) == 2 and {r.name for r in of_g.layers}.isdisjoint({r.name for r in of_d.layers})


def test_a_scaled_root():
    model = mlp()
    optimizer = SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Listener([model], optimizer) as run:
        loss = loss_of(model)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    (portrait,) = run.portraits()
    assert portrait.terms[0].value == pytest.approx(loss.item()) and len(portrait.layers) == 2


def test_a_skipped_step_has_none():
    model = mlp()
    optimizer = SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with Listener([model], optimizer) as run:
        scaler.scale(loss_of(model) * math.inf).backward()
        scaler.step(optimizer)
        assert not run.records and not run.probe._portraits.waiting


@pytest.mark.parametrize("kind", ["closure", "compiled", "retained"])
def test_other_ways_to_train(kind):
    torch._dynamo.reset()
    model = mlp()
    called = torch.compile(model, backend="aot_eager") if kind == "compiled" else model
    optimizer = (
        torch.optim.LBFGS(model.parameters(), max_iter=3) if kind == "closure" else Adam(model.parameters())
    )
    with Listener([model], optimizer) as run:
        for _ in range(2):

            def closure():
                optimizer.zero_grad()
                loss = F.cross_entropy(called(X), Y)
                loss.backward(retain_graph=kind == "retained")
                if kind == "retained":
                    loss.backward()
                return loss

            optimizer.step(closure) if kind == "closure" else (closure(), optimizer.step())
    portraits = run.portraits()
    assert len(portraits) == 2 and all(isinstance(p, Portrait) for p in portraits)
    assert all(len(p.layers) == (0 if kind == "compiled" else 2) for p in portraits)


def test_models_and_graphs_go_with_their_owner(tmp_path):
    model = mlp()
    optimizer = SGD(model.parameters(), 0.1)
    with sg.watch([model], optimizer, runs=tmp_path):
        for _ in range(3):
            out = model(X)
            kept = weakref.ref(out)
            optimizer.zero_grad()
            F.cross_entropy(out, Y).backward()
            optimizer.step()
            del out
            assert kept() is None
