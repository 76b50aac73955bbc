"""Repair on the live run: after a rollback the loop's next steps are trials, and the remedy that helps stays."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import steadygrad as sg
from steadygrad.integrations import live_repair
from steadygrad.repair.effects.clip import ClipNorm
from steadygrad.repair.remedy import Remedy
from tests.integrations.trainings import cnn_batchnorm, differences, unwatched

SPIKE = (37, 38, 39)  # batches of NaN
TRIVIAL = 0.5  # loss of a constant prediction


class Loop:
    """A regression that is trained too fast, and meets batches that are not finite at step 37."""

    def __init__(self, lr=0.3, momentum=0.9, seed=0, bad=SPIKE):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=momentum)
        self.data = torch.Generator().manual_seed(1)
        self.bad = bad

    def batch(self, size=32):
        x = torch.randn(size, 8, generator=self.data)
        return x, 2 * x.mean(1, keepdim=True)

    def step(self, x, y):
        self.optimizer.zero_grad()
        loss = F.mse_loss(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def train(self, tmp_path, steps=230, **options):
        with sg.watch(self.model, self.optimizer, runs=tmp_path, **options) as run:
            for i in range(steps):
                x, y = self.batch()
                self.step(x * float("nan") if i in self.bad else x, y)
        return run.close()

    def error(self):
        x, y = self.batch(512)
        with torch.no_grad():
            return F.mse_loss(self.model(x), y).item()


def remedies(summary):
    return [a for a in summary.actions if a.action == "remedy"]


def test_a_run_trains_that_the_guard_alone_does_not_save(tmp_path):
    alone, live = Loop(), Loop()
    alone.train(tmp_path)
    summary = live.train(tmp_path, repair="live")
    assert alone.error() > TRIVIAL
    assert live.error() < 0.1 * TRIVIAL
    (remedy,) = remedies(summary)
    assert "lr / 10 stays in force" in remedy.reason
    assert remedy.details["lr / 10"] < remedy.details["the guard alone"]
    assert remedy.code == "G100" and not remedy.prescribed


@pytest.mark.slow
def test_the_winner_stays_and_the_user_sees_his_own_rate(tmp_path):
    loop = Loop()
    rates = []
    original = torch.optim.SGD.step

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return original(self, closure)

    loop.optimizer = Spy(loop.model.parameters(), lr=0.3, momentum=0.9)
    summary = loop.train(tmp_path, repair="live")
    (remedy,) = remedies(summary)
    after = rates[-(230 - 1 - remedy.step) :]
    assert len(after) > 50 and after == pytest.approx([0.03] * len(after))
    assert loop.optimizer.param_groups[0]["lr"] == 0.3


def test_a_run_without_incident_is_bit_identical(tmp_path):
    plain = cnn_batchnorm(0, 60, unwatched)
    live = cnn_batchnorm(0, 60, lambda m, o: sg.watch(m, *o, runs=tmp_path, repair="live"))
    assert differences(plain, live) == []


def test_without_a_better_remedy_the_guard_acts_as_it_does_alone(tmp_path, monkeypatch):
    """What is tried changes nothing, so nothing can be better than the twin."""
    idle = Remedy("nothing", {"lr_factor": 1.0}, (), "tuning", 0.0, "")
    monkeypatch.setattr(live_repair, "ladder", lambda norm, group: [idle])
    loop = Loop(lr=0.05, momentum=0.0)
    taken = []
    original = live_repair.LiveRepair._decide

    def decide(self):
        original(self)
        taken.append({k: v.clone() for k, v in loop.model.state_dict().items()})
        taken.append((self._guard.policy.clip, self._guard.policy.lr_factor, self._in_force._changes))

    monkeypatch.setattr(live_repair.LiveRepair, "_decide", decide)
    begun = []
    start = live_repair.LiveRepair.begin

    def begin(self, rollback, optimizer):
        begun.append({k: v.clone() for k, v in loop.model.state_dict().items()})
        start(self, rollback, optimizer)

    monkeypatch.setattr(live_repair.LiveRepair, "begin", begin)
    summary = loop.train(tmp_path, steps=100, repair="live")
    (remedy,) = remedies(summary)
    assert "none is clearly better than the guard alone" in remedy.reason
    assert all(
        torch.equal(begun[0][k], taken[0][k]) for k in begun[0]
    )  # the state that the guard went back to
    assert taken[1] == (None, 1.0, [])
    assert loop.error() < 0.1 * TRIVIAL


def test_a_skip_is_no_reason_to_try_anything(tmp_path):
    summary = Loop(lr=0.05, momentum=0.0, bad=range(10, 40, 10)).train(tmp_path, steps=40, repair="live")
    assert {a.action for a in summary.actions} == {"skip"}


@pytest.mark.slow
def test_an_incident_has_one_repair(tmp_path):
    loop = Loop(lr=0.05, momentum=0.0, bad=[*range(30, 33), *range(205, 208)])
    summary = loop.train(tmp_path, steps=215, repair="live")
    assert [a.action for a in summary.actions].count("rollback") == 2
    assert len(remedies(summary)) == 1


def test_an_evaluation_never_sees_the_weights_of_a_trial(tmp_path):
    loop, seen = Loop(), []
    with sg.watch(loop.model, loop.optimizer, runs=tmp_path, repair="live") as run:
        for i in range(60):
            live = run._session.live
            if i == 45:
                before = {k: v.clone() for k, v in loop.model.state_dict().items()}
                seen.append(live.running)
                loop.model.eval()
                loop.error()
                seen.append(live.running)
                seen.append(all(torch.equal(v, before[k]) for k, v in loop.model.state_dict().items()))
                loop.model.train()
            x, y = loop.batch()
            loop.step(x * float("nan") if i in SPIKE else x, y)
    assert seen == [True, False, False]
    assert remedies(run.close()) == []  # the guard alone, from there on


@pytest.mark.slow
def test_a_loop_that_ends_among_trials_keeps_the_best_that_is_known(tmp_path):
    summary = Loop().train(tmp_path, steps=130, repair="live")
    assert any("in the middle of a trial" in note for note in summary.notes)
    (remedy,) = remedies(summary)
    assert "stays in force" in remedy.reason


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_the_loop_raises_in_a_trial_is_its_own_and_the_trial_is_undone(error, tmp_path):
    loop, thrown = Loop(), error("mine")
    with (
        pytest.raises(error) as caught,
        sg.watch(loop.model, loop.optimizer, runs=tmp_path, repair="live") as run,
    ):
        for i in range(100):
            x, y = loop.batch()
            if i == 62:
                assert run._session.live.running
                raise thrown
            loop.step(x * float("nan") if i in SPIKE else x, y)
    assert caught.value is thrown
    assert not run._session.live.running
    assert loop.optimizer.param_groups[0]["lr"] == 0.3
    assert any("in the middle of a trial" in note for note in run.close().notes)
    assert loop.error() < 2 * TRIVIAL  # the state that the guard went back to, not that of a trial


@pytest.mark.slow
def test_a_remedy_that_fails_in_its_trial_is_no_candidate_and_harms_nothing(tmp_path, monkeypatch):
    def broken(self, optimizer):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(ClipNorm, "before_step", broken)
    loop = Loop()
    summary = loop.train(tmp_path, repair="live")
    (remedy,) = remedies(summary)
    assert "stays in force" in remedy.reason
    assert not any(name.startswith("clip at") for name in remedy.details)
    assert not any("switched itself off" in note for note in summary.notes)


def test_our_own_error_in_a_trial_disarms_us_and_leaves_the_state_of_the_guard(tmp_path, monkeypatch):
    def broken(self, optimizer, stats):
        raise KeyError("a bug of ours")

    monkeypatch.setattr(live_repair.LiveRepair, "step", broken)
    loop = Loop()
    summary = loop.train(tmp_path, steps=60, repair="live")
    assert sum("switched itself off" in note for note in summary.notes) == 1
    assert loop.optimizer.param_groups[0]["lr"] == 0.3


def test_live_repair_needs_the_guard(tmp_path):
    loop = Loop()
    with pytest.raises(ValueError, match="needs guard='on'"):
        sg.watch(loop.model, loop.optimizer, runs=tmp_path, guard="warn", repair="live")
    with pytest.raises(ValueError, match="'off' or 'live', got 'yes'"):
        sg.watch(loop.model, loop.optimizer, runs=tmp_path, repair="yes")
