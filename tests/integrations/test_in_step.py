"""A run that owns its step: after an incident the kept batches are replayed, remedy by remedy."""

import pytest
import torch

import steadygrad as sg
from tests.integrations.test_live_repair import SPIKE, TRIVIAL, Loop, remedies
from tests.integrations.trainings import differences


class Owned(Loop):
    calls = 0

    def train(self, tmp_path, steps=120, **options):
        with sg.watch(self.model, self.optimizer, runs=tmp_path, **options) as run:
            self.values = []
            for i in range(steps):
                x, y = self.batch()
                self.values.append(run.step(self.once, x * float("nan") if i in self.bad else x, y))
        return run.close()

    def once(self, x, y):
        self.calls += 1
        return self.step(x, y)


def test_the_run_trains_on_from_the_state_of_the_winner(tmp_path):
    loop, alone = Owned(), Loop()
    alone.train(tmp_path)
    assert alone.error() > TRIVIAL
    summary = loop.train(tmp_path)
    (remedy,) = remedies(summary)
    assert "stays in force" in remedy.reason
    assert loop.error() < 0.1 * TRIVIAL
    assert loop.calls == 120 + remedy.details["trials"] * remedy.details["trial_steps"]


@pytest.mark.slow
def test_every_replay_goes_past_the_failing_step(tmp_path):
    loop = Owned()
    summary = loop.train(tmp_path, steps=60)
    rollback = next(a for a in summary.actions if a.action == "rollback")
    assert remedies(summary)[0].details["trial_steps"] >= rollback.details["steps_back"] + 8


def test_a_run_without_incident_is_bit_identical(tmp_path):
    loops = [Owned(lr=0.05, bad=()), Loop(lr=0.05, bad=())]
    loops[0].train(tmp_path, steps=60)
    for _ in range(60):
        loops[1].step(*loops[1].batch())
    left = [{"model": dict(loop.model.state_dict()), "opt": loop.optimizer.state_dict()} for loop in loops]
    assert differences(*left) == []
    assert loops[0].calls == 60


@pytest.mark.slow
def test_the_generators_go_on_as_if_nothing_had_been_replayed(tmp_path):
    class Noisy(Owned):
        def once(self, x, y):
            return super().once(x + 0.01 * torch.randn_like(x), y)

    loop, plain = Noisy(), Noisy()
    summary = loop.train(tmp_path, steps=60)
    assert remedies(summary)
    after = torch.rand(4)
    plain = Noisy(bad=())
    for _ in range(60):
        plain.once(*plain.batch())
    assert torch.equal(torch.rand(4), after)


@pytest.mark.slow
def test_the_value_is_that_of_the_replay_that_was_kept(tmp_path):
    """The step that fails has no finite loss of its own here: its batch is fine, the rate is not."""
    loop = Owned(lr=0.6, bad=())
    summary = loop.train(tmp_path, steps=60)
    remedy = remedies(summary)[0]
    assert "stays in force" in remedy.reason
    rollback = next(a for a in summary.actions if a.action == "rollback")
    assert loop.values[rollback.step] < 2.0 < max(loop.values[: rollback.step])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_the_function_raises_in_a_replay_is_its_own_and_all_is_undone(error, tmp_path):
    loop, thrown = Owned(), error("mine")
    with sg.watch(loop.model, loop.optimizer, runs=tmp_path) as run:

        def fn(x, y):
            if loop.calls == 75:
                raise thrown
            return loop.once(x, y)

        with pytest.raises(error) as caught:
            for i in range(60):
                x, y = loop.batch()
                run.step(fn, x * float("nan") if i in SPIKE else x, y)
        assert caught.value is thrown
        assert loop.calls == 75 and i == 39
        live = run._session.live
        assert not live.running and run._session._in_force._changes == []
        assert loop.error() < 2 * TRIVIAL
        loop.calls += 1
        run.step(fn, *loop.batch())
    assert loop.optimizer.param_groups[0]["lr"] == 0.3


def test_a_function_that_takes_no_step_in_a_replay_is_given_up(tmp_path):
    loop = Owned()
    calls = []

    def fn(x, y):
        calls.append(1)
        return loop.once(x, y) if len(calls) <= 40 else None

    with sg.watch(loop.model, loop.optimizer, runs=tmp_path) as run:
        for i in range(40):
            x, y = loop.batch()
            run.step(fn, x * float("nan") if i in SPIKE else x, y)
        assert not run._session.live.running
    assert remedies(run.close()) == []
