"""The ring: when snapshots are taken, which are good, and which go."""

import itertools
import threading

import pytest
import torch
from torch import nn

from steadygrad.guard import preparation
from steadygrad.guard import ring as ring_module
from steadygrad.guard.ring import SnapshotRing
from steadygrad.guard.snapshot import Snapshot
from steadygrad.guard.state import TrainingState
from tests.guard.kit import equal, picture, training


def small_ring(**settings):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return SnapshotRing(TrainingState([model], [optimizer]), **settings)


def go(ring, steps, start=0, healthy=True):
    """The steps at which snapshots were taken, of a run that does nothing else."""
    taken = []
    for step in range(start, start + steps):
        if ring.due(step) and ring.take(step):
            taken.append(step)
        if healthy:
            ring.healthy(step)
    return taken


def test_dense_at_the_start_then_a_hundred_apart():
    assert go(small_ring(), 500) == [0, 1, 2, 4, 8, 16, 32, 64, 128, 228, 328, 428]


def test_start_counts_from_the_first_snapshot_of_a_resumed_run():
    assert go(small_ring(), 140, start=5000) == [5000, 5001, 5002, 5004, 5008, 5016, 5032, 5064, 5128]


def test_tighten_is_denser_for_a_while_and_keeps_what_was_good_before():
    ring = small_ring()
    go(ring, 300)
    ring.tighten()
    assert go(ring, 200, start=300) == [300, 310, 320, 330, 340, 440]
    assert min(ring.ticks) <= 228


def test_the_largest_distance_holds_after_a_skipped_call():
    ring = small_ring()
    ring.take(0)
    assert ring.due(7) and ring.take(7)
    assert [s for s in range(8, 30) if ring.due(s)][0] == 14


@pytest.mark.parametrize("death", [0, 1, 2, 3, 5, 9, 37, 100, 129, 1000])
def test_a_death_at_any_step_finds_a_good_snapshot(death):
    ring = small_ring()
    go(ring, death)
    if ring.due(death):
        ring.take(death)  # before the step that kills
    ring.incident(death)
    good = ring.newest_good(before_step=death)
    assert good is not None and good.step <= max(0, death - 3)
    # it is not needlessly old either: the schedule's own distance, plus five steps to confirm
    assert death - good.step <= max(8, min(death, 2 * 100 + 8))


def test_death_at_37_goes_back_to_32_not_to_the_start():
    ring = small_ring()
    go(ring, 37)
    ring.incident(37)
    assert ring.newest_good().step == 32


def test_a_snapshot_is_good_after_five_healthy_steps():
    ring = small_ring()
    go(ring, 64)
    ring.take(64)
    for step in range(64, 69):
        assert ring.newest_good().step == 32
        ring.healthy(step)
    assert ring.newest_good().step == 64


def test_a_young_snapshot_needs_as_many_healthy_steps_as_it_is_old():
    ring = small_ring()
    ring.take(0)
    assert ring.newest_good().step == 0
    ring.healthy(0)
    ring.take(1)
    assert ring.newest_good().step == 0
    ring.healthy(1)
    assert ring.newest_good().step == 1


def test_incident_ends_the_candidacy_of_what_came_shortly_before_and_after():
    ring = small_ring(margin=3)
    go(ring, 66)
    go(ring, 10, start=66)
    ring.incident(67)  # 64 is within the margin
    assert ring.newest_good().step == 32 and ring.ticks == (0, 16, 32, 64)
    go(ring, 100, start=76)
    assert ring.newest_good().step > 67  # what is taken later is judged anew


def test_newest_good_before_a_step():
    ring = small_ring()
    go(ring, 40)
    assert [ring.newest_good(before_step=s).step for s in (40, 32, 31, 16, 15, 0)] == [32, 32, 16, 16, 8, 0]
    assert ring.newest_good(before_step=-1) is None and ring.oldest_good().step == 0


def test_initial_state_stays_while_the_run_is_young_even_through_incidents():
    ring = small_ring(capacity=3)
    for step in range(100):
        if ring.due(step):
            ring.take(step)
        ring.incident(step)
        assert ring.newest_good().step == 0
    assert 0 in ring.ticks


@pytest.mark.parametrize("capacity", [2, 3, 4])
def test_newest_good_is_never_given_up(capacity):
    ring, best = small_ring(capacity=capacity, every=10), 0
    for step in range(300):
        if ring.due(step):
            ring.take(step)
        if step < 100:
            ring.healthy(step)  # after that nothing is ever confirmed
        assert ring.newest_good().step >= best
        best = ring.newest_good().step
    assert 80 <= best <= 100 and len(ring.ticks) <= capacity


def test_ages_stay_spread_out_and_nothing_gets_too_old():
    ring = small_ring(every=10)
    for step in range(5000):
        if ring.due(step):
            ring.take(step)
        ring.healthy(step)
        assert len(ring.ticks) <= 4
        assert step < 100 or step - min(ring.ticks) >= 20
        assert step - min(ring.ticks) <= 200 + 10 or step < 210


def test_pinned_snapshot_stays_until_it_is_unpinned():
    ring = small_ring()
    go(ring, 37)
    held = ring.newest_good()
    ring.pin(held)
    ring.pin(held, holder="somebody else")
    go(ring, 3000, start=37)
    assert 32 in ring.ticks and held.step == 32
    ring.unpin(held)
    assert go(ring, 200, start=3037) and 32 in ring.ticks
    ring.unpin(held, holder="somebody else")
    go(ring, 200, start=3237)
    assert 32 not in ring.ticks


def test_take_is_refused_with_a_reason_when_everything_is_held():
    ring = small_ring(capacity=2)
    go(ring, 3)
    for tick in ring.ticks:
        ring.pin(next(e.snapshot for e in ring._entries if e.step == tick))
    refused = ring.take(4)
    assert not refused and "held or needed" in refused.reason


def test_nonfinite_state_is_refused_by_name_and_costs_one_that_was_to_go_anyway():
    run = training("adam")
    run.steps(1)
    ring = SnapshotRing(run.state())
    go(ring, 40)
    before = ring.ticks
    run.optimizer.state[run.model.head.weight]["exp_avg_sq"][0, 0] = torch.nan
    refused = ring.take(64)
    assert not refused and refused.nonfinite == ("optimizer0.state[head.weight].exp_avg_sq",)
    assert "exp_avg_sq" in refused.reason and before == (0, 8, 16, 32) and ring.ticks == (0, 16, 32)
    assert ring.memory_bytes == 4 * run.state().memory_bytes()  # kept for the next one
    assert not ring.take(65) and ring.ticks == (0, 16, 32)  # never another
    run.optimizer.state[run.model.head.weight]["exp_avg_sq"][0, 0] = 1
    assert ring.take(66) and ring.ticks == (0, 16, 32, 66) and ring.newest_good().step == 32


def test_initial_state_that_is_not_finite_is_no_fallback():
    run = training()
    with torch.no_grad():
        run.model.head.weight[0, 0] = torch.inf
    ring = SnapshotRing(run.state())
    assert not ring.take(0) and ring.newest_good() is None and ring.oldest_good() is None
    with torch.no_grad():
        run.model.head.weight[0, 0] = 1
    ring.take(1)
    assert ring.newest_good() is None  # the second one is not the initial state: it has to prove itself
    ring.healthy(1)
    assert ring.newest_good().step == 1
    ring.incident(2)
    assert ring.newest_good() is None


def test_memory_is_used_again():
    run = training("adam")
    run.steps(1)
    ring = SnapshotRing(run.state())
    go(ring, 100)
    size = ring.memory_bytes
    addresses = {t.data_ptr() for e in ring._entries for t in e.snapshot.tensors()}
    go(ring, 1000, start=100)
    assert ring.memory_bytes == size == 4 * ring.state.memory_bytes()
    assert {t.data_ptr() for e in ring._entries for t in e.snapshot.tensors()} == addresses


def test_rollback_puts_back_and_forgets_what_came_later():
    run = training("adamw_amsgrad", "onecycle")
    ring = SnapshotRing(run.state())
    pictures = {}
    for step in range(37):
        if ring.due(step):
            pictures[step] = picture(run)
            ring.take(step)
        run.step()
        ring.healthy(step)
    target = ring.newest_good(before_step=30)
    assert ring.restore(target) == 16 and equal(picture(run), pictures[16])
    assert ring.ticks == (0, 8, 16) and ring.restored.problems == ()
    assert ring.newest_good().step == 16
    go(ring, 40, start=37)  # the counter goes on
    assert ring.newest_good().step > 37


def test_counter_that_goes_back_with_the_run():
    ring = small_ring()
    go(ring, 37)
    ring.restore(ring.newest_good(before_step=16))
    assert go(ring, 40, start=16) == [32]
    assert ring.newest_good().step == 32


def test_stale_snapshot_is_refused():
    ring = small_ring()
    go(ring, 37)
    late = ring.newest_good()
    ring.restore(ring.oldest_good())
    late.drop()
    with pytest.raises(ValueError, match="ask for newest_good again"):
        ring.restore(late)


def test_same_faults_give_the_same_decisions():
    def decisions():
        ring, log = small_ring(), []
        for step in range(400):
            if ring.due(step):
                log.append(("take", step, bool(ring.take(step))))
            if step in (50, 51, 213):
                ring.incident(step)
                log.append(("back", ring.restore(ring.newest_good(before_step=step))))
                ring.tighten()
            else:
                ring.healthy(step)
            log.append(ring.ticks)
        return log

    assert decisions() == decisions()


# ---------------------------------------------------------------------- what changes on the way
def test_second_model_that_joins_is_part_of_all_snapshots():
    first, second = training("adam"), training("adam", seed=1)
    ring = SnapshotRing(first.state())
    go(ring, 3)
    joined = picture(second)
    ring.state.add_module(second.model)
    ring.state.add_optimizer(second.optimizer)
    second.steps(3)
    ring.restore(ring.oldest_good())
    assert equal(picture(second), joined)


def test_parameter_that_appears_without_notice_is_completed_at_the_next_snapshot():
    run = training("adam")
    ring = SnapshotRing(run.state())
    go(ring, 3)
    run.model.extra = nn.Parameter(torch.ones(2))
    ring.take(4)
    with torch.no_grad():
        run.model.extra.fill_(torch.nan)
    ring.restore(ring.oldest_good())
    assert run.model.extra.tolist() == [1, 1] and ring.restored.unknown == ()


def test_snapshot_that_fits_no_more_is_not_offered():
    run = training("adam")
    ring = SnapshotRing(run.state())
    go(ring, 40)
    run.model.frozen = nn.Parameter(torch.ones(9), requires_grad=False)
    assert ring.newest_good() is None and ring.oldest_good() is None
    go(ring, 60, start=40)
    assert ring.newest_good().step == 64


# ---------------------------------------------------------------------- memory
def test_as_many_as_the_memory_allows():
    run = training("adam")
    run.steps(1)
    cost = run.state().memory_bytes()
    ring = SnapshotRing(run.state(), max_bytes=2 * cost)
    for step in range(0, 500):
        if ring.due(step):
            ring.take(step)
        ring.healthy(step)
        assert ring.memory_bytes <= 2 * cost
    assert len(ring.ticks) == 2 and ring.newest_good().step == 428


def test_snapshots_that_grow_stay_within_the_limit():
    run = training("adam")
    small = run.state().memory_bytes()
    ring = SnapshotRing(run.state(), max_bytes=7 * small)
    for step in range(40):
        if ring.due(step):
            ring.take(step)
        run.step()  # the moments are born
        ring.healthy(step)
        assert ring.memory_bytes <= 7 * small
    assert ring.newest_good().step == 32


def test_no_room_for_one_is_said():
    ring = small_ring(max_bytes=3)
    refused = ring.take(0)
    assert not refused and "12 bytes are needed, 3 are allowed: raise max_bytes" in refused.reason
    assert ring.newest_good() is None


def test_default_limit_is_half_of_what_is_available(monkeypatch):
    monkeypatch.setattr(ring_module, "available_bytes", lambda: 20)
    ring = small_ring()
    assert not ring.take(0) and ring.max_bytes == 10


def test_failed_allocation_is_a_refusal_not_an_error(monkeypatch):
    ring = small_ring()
    go(ring, 5)
    good = ring.newest_good().step

    def no_memory(*args):
        raise RuntimeError("can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr("steadygrad.guard.snapshot.buffer_for", no_memory)
    refused = ring.take(8)
    assert not refused and "can't allocate" in refused.reason
    monkeypatch.undo()
    assert ring.newest_good().step == good and ring.take(16)


# ---------------------------------------------------------------------- memory that is not ready yet
@pytest.fixture
def gate(monkeypatch):
    """No state is small, and memory is ready only when the gate is open."""
    opened, touch = threading.Event(), preparation._touch_

    def held(buffer):
        assert opened.wait(30)
        touch(buffer)

    monkeypatch.setattr(ring_module, "SMALL", 0)
    monkeypatch.setattr(preparation, "_touch_", held)
    yield opened
    opened.set()


def ready(ring):
    """Wait for memory that is being made ready."""
    for snapshot in ring._spare:
        if snapshot._preparation is not None:
            snapshot._preparation.buffers()


def trained_ring(**settings):
    run = training("adam")
    run.steps(1)
    return run, SnapshotRing(run.state(), **settings)


def test_take_is_put_off_until_its_memory_is_ready(gate):
    run, ring = trained_ring()
    assert ring.take(0), "the initial state cannot be had later"
    for step in range(1, 6):
        assert ring.due(step)
        refused = ring.take(step)
        assert not refused and "made ready" in refused.reason and ring.ticks == (0,)
    gate.set()
    ready(ring)
    run.steps(1)
    before = picture(run)
    assert ring.due(6) and ring.take(6) and ring.ticks == (0, 6) and not ring.due(7)
    run.steps(3)
    ring.healthy(7)
    assert ring.restore(ring._entries[1].snapshot) == 6 and equal(picture(run), before)


def test_take_that_was_put_off_asks_for_no_memory(gate, monkeypatch):
    _, ring = trained_ring()
    ring.take(0)
    assert not ring.take(1)
    gate.set()
    ready(ring)
    made = []
    new_buffer = preparation.new_buffer
    monkeypatch.setattr("steadygrad.guard.tensors.new_buffer", lambda *a, **k: made.append(a))
    monkeypatch.setattr(
        preparation, "new_buffer", lambda *a, **k: made.append("ahead") or new_buffer(*a, **k)
    )
    assert ring.take(3)
    ready(ring)  # made ahead, for the next
    assert set(made) == {"ahead"} and ring.take(6) and ring.ticks[-2:] == (3, 6)


def test_every_snapshot_but_the_first_two_finds_its_memory_ready(gate):
    gate.set()
    _, ring = trained_ring()
    refused = []
    for step in range(400):
        ready(ring)
        if ring.due(step) and not ring.take(step):
            refused.append(step)
        ring.healthy(step)
    assert len(ring.ticks) == 4 and refused in ([], [1])  # at 1 the thread may have been done at once


def test_state_that_grows_all_the_time_is_put_off_only_once_for_each_take(gate):
    gate.set()
    run, ring = trained_ring()
    taken = []
    for step in range(20):
        run.model.register_buffer("history", torch.zeros(step + 1))
        ready(ring)
        taken.append(bool(ring.take(step)))
    assert taken[0] and not any(a is b is False for a, b in itertools.pairwise(taken))


def test_memory_that_is_made_ready_stays_within_the_limit(gate):
    gate.set()
    run, _ = trained_ring()
    cost = run.state().memory_bytes()
    ring = SnapshotRing(run.state(), max_bytes=int(2.5 * cost))
    for step in range(300):
        ready(ring)
        if ring.due(step):
            ring.take(step)
        ring.healthy(step)
        assert ring.memory_bytes <= 2 * cost
    assert len(ring.ticks) == 2


def test_moments_that_are_born_later_are_made_ready_too(gate):
    gate.set()
    run = training("adam")
    ring = SnapshotRing(run.state())
    pictures = {}
    for step in range(300):
        ready(ring)
        if ring.due(step):
            before = picture(run)
            if ring.take(step):
                pictures[step] = before
        run.step()
        ring.healthy(step)
    for tick in ring.ticks[::-1]:
        ring.restore(next(e.snapshot for e in ring._entries if e.step == tick))
        assert equal(picture(run), pictures[tick])


def test_small_run_is_never_put_off(monkeypatch):
    monkeypatch.setattr(Snapshot, "prepare", lambda *args: pytest.fail("no thread is needed"))
    _, ring = trained_ring()
    assert go(ring, 100) == [0, 1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("bad", [{"capacity": 1}, {"every": 0}, {"confirm": -1}, {"margin": -1}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError, match="must be|>="):
        small_ring(**bad)


def test_newest_good_among_those_that_others_hold():
    module = torch.nn.Linear(2, 1)
    ring = SnapshotRing(TrainingState([module]), confirm=1)
    for step in range(5):
        if ring.due(step):
            ring.take(step)
        ring.healthy(step)
    assert ring.good_ticks == ring.ticks == (0, 1, 2, 4)
    assert ring.newest_good(among={0, 1, 3}).step == 1
    assert ring.newest_good(3, among={2, 4}).step == 2
    assert ring.newest_good(among=()) is None
