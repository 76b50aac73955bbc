"""Collapse is told of: by the monitor, and under ``sg.watch`` by itself, without changing a bit of the run."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import steadygrad as sg
from steadygrad.probe.embeddings import embedding_listeners
from steadygrad.selfsup import Collapse, nt_xent, show


def gaussian(seed, dims=8, samples=64):
    return torch.randn(samples, dims, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------- the monitor
def fed(monitor, batches):
    return [[f.code for f in monitor(z)] for z in batches]


def test_one_vector_is_told_at_the_third_look_and_once():
    healthy = [gaussian(i) for i in range(5)]
    falling = [gaussian(i) / 10 + 1 for i in range(6)]
    assert fed(Collapse(), healthy + falling) == [[]] * 7 + [["E101"]] + [[]] * 3


def test_few_directions_are_told():
    line = [gaussian(i, dims=1) * torch.ones(8) + 1e-3 * gaussian(9 + i) for i in range(3)]
    monitor = Collapse()
    assert fed(monitor, [gaussian(1), *line]) == [[], [], [], ["E102"]]
    assert monitor.last.effective_rank < 1.1 and monitor.last.spread > 0.9


def test_embeddings_that_begin_collapsed_are_told():
    assert fed(Collapse(), [torch.ones(64, 8)] * 3) == [[], [], ["E101"]]


def test_silent_on_few_samples_on_what_is_not_finite_and_on_a_slow_start():
    nan = torch.full((64, 8), math.nan)
    assert fed(Collapse(), [gaussian(0), *[nan] * 5, *[torch.ones(7, 8)] * 5]) == [[]] * 11
    assert fed(Collapse(), [gaussian(i) * (0.1 + i / 20) + 1 for i in range(20)]) == [[]] * 20


def test_a_nan_between_does_not_make_it_forget():
    collapsed, nan = gaussian(1) / 10 + 1, torch.full((64, 8), math.nan)
    assert fed(Collapse(), [gaussian(0), collapsed, collapsed, nan, collapsed])[-1] == ["E101"]


def test_state_goes_on_where_it_was():
    batches = [gaussian(0), *[gaussian(1) / 10 + 1] * 3]
    first, second = Collapse(), Collapse()
    fed(first, batches[:3])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    (finding,) = second(batches[3])
    assert finding.code == "E101" and finding.step == 3
    with pytest.raises(ValueError, match="looks and rules"):
        second.load_state_dict({"looks": 1})


# ---------------------------------------------------------------------- under watch
class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x):
        return self.encoder(x)


def pulled_together(z1, z2):
    """A loss of the user's own, which collapses."""
    show(z1, z2)
    return 1 - F.cosine_similarity(z1, z2).mean()


def train(loss_fn, tmp_path, watched=True, steps=61, **options):
    torch.manual_seed(0)
    model = Pair()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    run = sg.watch(model, optimizer, runs=tmp_path, **options) if watched else None
    for _ in range(steps):
        x = torch.randn(64, 8)
        optimizer.zero_grad()
        loss_fn(model(x + 0.1 * torch.randn_like(x)), model(x)).backward()
        optimizer.step()
    if run is not None:
        run.close()
    return model, run


def codes(run):
    return {f.code for f in run.findings if f.code.startswith("E")}


def test_watch_finds_a_collapse_of_a_loss_of_ones_own(tmp_path):
    _, run = train(pulled_together, tmp_path)
    assert "E101" in codes(run)
    steps, spread = sg.Run(run.run_dir).scalar("embedding/spread")
    assert steps.tolist() == [0, 1, 2, 5, 10, 20, 30, 40, 50, 60]
    assert spread[0] > 0.5 and spread[-1] < 0.3
    rank = sg.Run(run.run_dir).scalar("embedding/effective_rank")[1]
    assert len(rank) == len(steps) and rank[0] > 4


def test_watch_is_silent_on_a_loss_that_spreads(tmp_path):
    _, run = train(nt_xent, tmp_path)
    assert codes(run) == set() and len(sg.Run(run.run_dir).scalar("embedding/spread")[0]) == 10


@pytest.mark.parametrize("loss_fn", [nt_xent, pulled_together])
def test_a_watched_run_is_bit_identical(loss_fn, tmp_path):
    watched, _ = train(loss_fn, tmp_path)
    plain, _ = train(loss_fn, tmp_path, watched=False)
    for a, b in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert embedding_listeners == []


def test_an_error_of_ours_does_not_reach_the_loop(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr("steadygrad.probe.probe.embedding_stats", broken)
    watched, run = train(nt_xent, tmp_path)
    (note,) = [text for text in run.close().notes if "error of its own" in text]
    assert "planted" in note
    plain, _ = train(nt_xent, tmp_path, watched=False)
    assert torch.equal(watched.encoder[0].weight, plain.encoder[0].weight)
    assert embedding_listeners == []


def test_pretrain_then_fine_tune_under_the_guard(tmp_path):
    """The guard skips a poisoned step of the pre-training whole; the encoder then learns its classes."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    centres = 2 * torch.randn(3, 8, generator=g)
    encoder, head, predictor = Pair(), sg.selfsup.mlp_head(8, 16, 8), sg.selfsup.mlp_head(8, 16, 8)
    student = nn.Sequential(encoder, head)
    teacher = sg.selfsup.EMATeacher(student, momentum=0.9)
    optimizer = torch.optim.Adam([*student.parameters(), *predictor.parameters()], lr=3e-3)

    def digits():
        y = torch.randint(3, (48,), generator=g)
        return centres[y] + torch.randn(48, 8, generator=g), y

    def view(x):
        return x + 0.3 * torch.randn(x.shape, generator=g)

    with sg.watch([student, predictor, teacher], optimizer, runs=tmp_path) as run:
        for step in range(40):
            x, _ = digits()
            if step == 25:
                x[3] = math.nan
            a, b = view(x), view(x)
            before = [p.detach().clone() for p in student.parameters()]
            optimizer.zero_grad()
            p1, p2 = predictor(student(a)), predictor(student(b))
            sg.selfsup.byol(p1, p2, teacher(a), teacher(b)).backward()
            optimizer.step()
            teacher.update()
            if step == 25:
                assert all(map(torch.equal, before, student.parameters()))
    assert [a.action for a in run.actions] == ["skip"] and codes(run) == set()
    assert all(p.isfinite().all() for p in teacher.parameters())

    classifier = nn.Sequential(encoder, nn.Linear(8, 3))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
    with sg.watch(classifier, optimizer, runs=tmp_path) as run:
        for _ in range(60):
            x, y = digits()
            optimizer.zero_grad()
            F.cross_entropy(classifier(x), y).backward()
            optimizer.step()
    x, y = digits()
    assert (classifier(x).argmax(1) == y).float().mean() > 0.8 and run.actions == []
