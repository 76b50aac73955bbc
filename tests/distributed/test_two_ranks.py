"""Two gloo processes under the guard: what one does the other does, and neither waits for ever."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import steadygrad as sg
from steadygrad.guard.shards import newest_common
from steadygrad.guard.state import TrainingState
from steadygrad.integrations.merged import summarize
from tests.distributed.kit import NAN, Training, batch, ddp, equal, fsdp, local, net, patience, spawn

pytestmark = pytest.mark.slow
STEPS, BAD = 100, 7


# ---------------------------------------------------------------------- in the two processes
def healthy(rank: int, folder: str) -> dict[str, Any]:
    """100 steps with and without steadygrad."""
    found = {}
    for name, make in (("ddp", ddp), ("fsdp", fsdp), ("hsdp", lambda: fsdp((2, 1)))):
        torch.manual_seed(5)
        off = Training(make, rank, folder, False).run(STEPS)
        rng_off = torch.get_rng_state()
        wholes: list[list[float]] = []

        def reference(training, step, place, wholes=wholes):
            if place == "step":
                grads = [p.grad for p in training.model.parameters()]
                wholes.append(
                    [float((g.full_tensor() if hasattr(g, "full_tensor") else g).norm()) for g in grads]
                )

        on = Training(make, rank, folder, True).run(STEPS, reference)
        found[name] = {
            "identical": equal(off.states[-1], on.states[-1]) and torch.equal(rng_off, torch.get_rng_state()),
            "sums": on.sums,
            "steps": [s.step for s in on.seen.steps],
            "norms": [s.grad_norms.tolist() for s in on.seen.steps],
            "totals": [s.grad_norm for s in on.seen.steps],
            "wholes": wholes,
            "said": on.log + on.seen.notes,
        }
    return found


def in_loss(training, step, place):
    if step == BAD and place == "batch" and training.rank == 1:
        training.x[3] = NAN


def before_reduction(training, step, place):
    if step == BAD and place == "backward" and training.rank == 1:
        p = next(training.model.parameters())
        handle = p.register_hook(lambda g: g * NAN)
        training.handle = handle
    if step == BAD and place == "step" and training.rank == 1:
        training.handle.remove()


def after_reduction(training, step, place):
    if step == BAD and place == "step" and training.rank == 1:
        p = next(training.model.parameters())
        (p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad)[0, 0] = NAN


def in_buffer(training, step, place):
    if step == BAD and place == "step" and training.rank == 1:
        next(training.model.buffers())[0] = NAN


TROUBLES = {"loss": in_loss, "before": before_reduction, "after": after_reduction, "buffer": in_buffer}


def one_rank_in_trouble(rank: int, folder: str) -> dict[str, Any]:
    found = {}
    for kind, make in (("ddp", ddp), ("fsdp", fsdp)):
        for name, trouble in TROUBLES.items():
            if kind == "fsdp" and name == "before":
                continue  # nobody but FSDP itself sees those
            run = Training(make, rank, folder, True).run(15, trouble)
            found[kind, name] = {
                "log": run.log,
                "left alone": equal(run.states[BAD - 1], run.states[BAD]),
                "went on": not equal(run.states[BAD], run.states[BAD + 1]),
                "params": [
                    getattr(p, "full_tensor", lambda p=p: p)().detach() for p in run.model.parameters()
                ],
                "notes": run.seen.notes,
                "sums": run.sums,
            }
    return found


def rolled_back(rank: int, folder: str) -> dict[str, Any]:
    """Three bad batches in a row on rank 1; before them rank 1 has lost its newest snapshot."""

    def trouble(training, step, place):
        if place == "batch" and step in (40, 41, 42) and rank == 1:
            training.x[:] = NAN
        if place == "batch" and step == 39 and rank == 1:
            ring = training.session._guard.ring
            ring._entries = [e for e in ring._entries if e.step != max(ring.good_ticks)]
        if place == "batch" and step == 38:
            training.held = training.session._guard.ring.good_ticks

    found = {}
    for name, make in (("ddp", ddp), ("fsdp", fsdp)):
        run = Training(make, rank, folder, True).run(60, trouble)
        found[name] = {"log": run.log, "held": run.held, "notes": run.seen.notes}
        back = [a for a in run.actions if a.action == "rollback"]
        if back:
            (action,) = back
            # judged when the next step begins, which is left out: its state is the one that was gone back to
            to = action.step + 1 - int(action.details["steps_back"])
            found[name]["to"] = to
            found[name]["bit-equal"] = equal(run.states[action.step + 1], run.states[to - 1])
            found[name]["finite"] = all(bool(t.isfinite().all()) for t in run.states[-1])
        dist.barrier()  # both have written
        on_disk = newest_common(run.session.run_dir / "snapshots", rank)
        fresh = Training(make, rank, folder, False)
        on_disk.snapshot.restore_into(TrainingState([fresh.model], [fresh.optimizer]), rng=False)
        found[name]["on disk"] = on_disk.step
        found[name]["from disk bit-equal"] = equal(fresh.state(), run.states[on_disk.step - 1])

    def early(training, step, place):
        if place == "batch" and step in (2, 3, 4) and rank == 1:
            training.x[:] = NAN

    begun = Training(fsdp, rank, folder, True)
    first = [local(p).clone() for p in begun.model.parameters()]
    begun.run(6, early)
    found["early"] = {"log": begun.log, "params": equal(first, begun.states[-1][: len(first)])}
    return found


def blown_up(rank: int, folder: str) -> dict[str, Any]:
    """Weights that grow while all is finite, until the guard answers; then batches that are bad for ever."""

    def grow(training, step, place):
        if (
            step >= 40
            and place == "batch"
            and not any(a.action == "rollback" for a in training.session.record.actions)
        ):
            with torch.no_grad():
                list(training.model.parameters())[-2].mul_(1.1)

    def for_ever(training, step, place):
        if step >= 10 and place == "batch" and rank == 1:
            training.x[:] = NAN

    diverged = Training(ddp, rank, folder, True).run(130, grow)
    stopped = Training(fsdp, rank, folder, True)
    try:
        stopped.run(200, for_ever)
        error = ""
    except sg.GuardStop as stop:
        error = str(stop).partition(" The last good state")[0]
    return {
        "diverged": [(*entry, a.details) for entry, a in zip(diverged.log, diverged.actions, strict=True)],
        "params": [p.detach() for p in diverged.model.parameters()],
        "clip": diverged.session._guard.policy.clip,
        "stopped": (error, len(stopped.states)),
        "finite": all(bool(t.isfinite().all()) for t in stopped.state()),
        "notes": diverged.seen.notes + stopped.seen.notes,
    }


def naive(rank: int, folder: str) -> list[tuple[int, int]]:
    """A skip by one rank alone: which iterations of the two have been averaged with each other?"""
    model, pairs, step = net(), [], 0
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    while len(pairs) < 10:
        x = batch(step, rank)
        if step == BAD and rank == 1:
            x[:] = NAN
        loss = model(x).square().mean()
        if loss.isfinite():
            optimizer.zero_grad()
            loss.backward()
            pairs.append(_average(model, step))
            optimizer.step()
        step += 1
    return pairs


def guarded(rank: int, folder: str) -> list[tuple[int, int]]:
    """The same loop without the skip, under the guard."""
    model, pairs = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with sg.watch(model, optimizer, runs=folder + "/shared", name="both"):
        for step in range(10):
            x = batch(step, rank)
            if step == BAD and rank == 1:
                x[:] = NAN
            optimizer.zero_grad()
            model(x).square().mean().backward()
            pairs.append(_average(model, step))
            optimizer.step()
    return pairs


def _average(model: torch.nn.Module, step: int) -> tuple[int, int]:
    """Average the gradients as any script does; what each rank says is averaged is its iteration."""
    said = [torch.zeros(1), torch.zeros(1)]
    dist.all_gather(said, torch.tensor([float(step)]))
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= 2
    return int(said[0]), int(said[1])


def pairs(rank: int, folder: str) -> dict[str, Any]:
    return {"naive": naive(rank, folder), "guarded": guarded(rank, folder), "runs": folder + "/shared"}


def settings(rank: int, folder: str) -> list[str]:
    """Ranks that were told different things; then one that leaves, and one that does not come."""
    said = []
    for more in ({"guard": ["on", "off"][rank]}, {"tier": ["cheap", "standard"][rank]}):
        try:
            Training(ddp, rank, folder, True, **more).run(2)
            said.append("no error")
        except ValueError as error:
            said.append(str(error))
    return said


def alone(rank: int, folder: str) -> dict[str, Any]:
    """Groups of one: each rank decides for itself. Guard off: nothing is added up at all."""
    groups = [dist.new_group([0]), dist.new_group([1])]
    own = Training(net, rank, folder, True, process_group=groups[rank]).run(15, in_loss)
    off = Training(ddp, rank, folder, True, guard="off").run(5)
    sharded = Training(fsdp, rank, folder, True, guard="off").run(5)
    try:
        sg.watch(own.model, own.optimizer, process_group=groups[1 - rank])
        refused = ""
    except ValueError as error:
        refused = str(error)
    return {"log": own.log, "off": off.sums, "sharded": sharded.sums, "refused": refused}


def overflow(rank: int, folder: str) -> dict[str, Any]:
    """The GradScaler of rank 1 meets an overflow that the other does not have."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    states = []
    with sg.watch(model, optimizer, runs=folder + f"/amp{rank}") as run:
        for step in range(12):
            optimizer.zero_grad()
            scaler.scale(model(batch(step, rank)).square().mean()).backward()
            _average(model, step)
            if step == BAD and rank == 1 or step == BAD + 2:
                model[0].weight.grad[0, 0] = float("inf")
            scaler.step(optimizer)
            scaler.update()
            states.append(model[0].weight.detach().clone())
        log = [(a.step, a.action, a.reason) for a in run.actions]
        notes, sums = list(run._session.record.notes), run._session._together.sums
    return {"log": log, "states": states, "notes": notes, "sums": sums}


def gone(rank: int, folder: str) -> dict[str, Any]:
    """Rank 1 ends its watch after five steps, without a word to the script; then it stays away altogether."""
    found = {}
    for how in ("closed", "silent"):
        with patience(2.0):
            run = Training(net, rank, folder, True)  # no collective of the script's own: it need not wait
            began = time.monotonic()
            run.run(5 if rank == 1 and how == "closed" else 12, _stay_away if how == "silent" else None)
            found[how] = {
                "notes": run.seen.notes,
                "steps": len(run.states),
                "seconds": time.monotonic() - began,
            }
    return found


def _stay_away(training, step, place):
    if training.rank == 1 and step == 5 and place == "step":
        time.sleep(6.0)  # as a rank that hangs


def all_of_it(rank: int, folder: str) -> dict[str, Any]:
    workers = (healthy, one_rank_in_trouble, rolled_back, blown_up, pairs, settings, alone, overflow, gone)
    return {worker.__name__: worker(rank, folder) for worker in workers}


# ---------------------------------------------------------------------- what they are to have seen
@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict[str, Any]]:
    return spawn(all_of_it, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "hsdp"])
def test_healthy_run_is_bit_identical_and_seen_whole(both, kind):
    for rank in both:
        found = rank["healthy"][kind]
        assert found["identical"] and not found["said"]
        assert found["steps"] == list(range(STEPS))
        assert found["sums"] == STEPS, "one collective a step"
        for norms, wholes, total in zip(found["norms"], found["wholes"], found["totals"], strict=True):
            assert norms == pytest.approx(wholes, rel=1e-5)
            assert total == pytest.approx(sum(w * w for w in wholes) ** 0.5, rel=1e-5)


@pytest.mark.parametrize(
    "kind, name, whose",
    [
        ("ddp", "loss", "the loss of rank 1 is nan"),
        ("ddp", "before", "made by rank 1, before the reduction"),
        ("ddp", "after", "on rank 1 alone, after the reduction"),
        ("ddp", "buffer", "a buffer of rank 1 became NaN"),
        ("fsdp", "loss", "the loss of rank 1 is nan"),
        ("fsdp", "after", "on rank 1 alone, after the reduction"),
        ("fsdp", "buffer", "a buffer of rank 1 became NaN"),
    ],
)
def test_what_one_rank_meets_is_left_out_by_both(both, kind, name, whose):
    found = [rank["one_rank_in_trouble"][kind, name] for rank in both]
    assert found[0]["log"] == found[1]["log"]
    ((step, action, reason, _),) = found[0]["log"]
    assert (step, action) == (BAD, "skip") and whose in reason
    assert all(f["left alone"] and f["went on"] and not f["notes"] and f["sums"] == 15 for f in found)
    assert equal(found[0]["params"], found[1]["params"])


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_both_go_back_to_the_newest_state_that_both_hold(both, kind):
    found = [rank["rolled_back"][kind] for rank in both]
    assert found[0]["log"] == found[1]["log"]
    assert [kind for _, kind, *_ in found[0]["log"]] == ["skip", "skip", "skip", "rollback", "skip"]
    held = found[0]["held"]
    assert held == found[1]["held"] and len(held) >= 2
    for f in found:
        assert f["to"] == held[-2] and f["bit-equal"] and f["finite"] and not f["notes"]
        assert f["on disk"] == found[0]["on disk"] > 0 and f["from disk bit-equal"]


def test_state_from_before_the_first_step_is_sharded_too(both):
    found = [rank["rolled_back"]["early"] for rank in both]
    assert found[0]["log"] == found[1]["log"]
    assert [kind for _, kind, *_ in found[0]["log"]] == ["skip", "skip", "skip", "rollback", "skip"]
    assert found[0]["params"] and found[1]["params"]


def test_what_diverges_while_finite_is_taken_back_by_both(both):
    found = [rank["blown_up"] for rank in both]
    assert found[0]["diverged"] == found[1]["diverged"] and found[0]["clip"] == found[1]["clip"]
    (rollback, *_) = [entry for entry in found[0]["diverged"] if entry[1] == "rollback"]
    assert "did not recover in 50 steps" in rollback[2] and rollback[-1]["max_norm"] > 0
    assert equal(found[0]["params"], found[1]["params"])


def test_both_stop_at_the_same_step_with_the_last_good_state(both):
    found = [rank["blown_up"] for rank in both]
    assert (
        found[0]["stopped"] == found[1]["stopped"]
        and "steps in a row could not be used" in found[0]["stopped"][0]
    )
    assert all(f["finite"] and not f["notes"] for f in found)


def test_naive_skip_of_one_rank_averages_different_steps(both):
    """So that the tests above have something to find."""
    naive = both[0]["pairs"]["naive"]
    assert naive == both[1]["pairs"]["naive"]
    assert naive[BAD:] == [(BAD + i, BAD + 1 + i) for i in range(3)]
    assert both[0]["pairs"]["guarded"] == [(i, i) for i in range(10)]


def test_all_ranks_write_into_one_directory(both):
    (run_dir,) = Path(both[0]["pairs"]["runs"]).iterdir()
    run = sg.Run(run_dir)
    assert run.ranks == [0, 1] and run.meta["world_size"] == 2
    (action,) = run.actions()
    assert (action.step, action.action) == (BAD, "skip") and "the loss of rank 1 is nan" in action.reason
    summary = summarize(run_dir, 1.0)
    assert (summary.steps, summary.skipped, summary.notes) == (10, 1, ())


def test_different_settings_are_an_error_on_all_ranks(both):
    first, second = both[0]["settings"], both[1]["settings"]
    assert first == second
    assert "guard is 'on' on rank 0 and 'off' on rank 1" in first[0]
    assert "tier is 'cheap' on rank 0 and 'standard' on rank 1" in first[1]


def test_groups_of_the_callers_choice(both):
    logs = [[(step, action) for step, action, *_ in rank["alone"]["log"]] for rank in both]
    assert logs == [[], [(BAD, "skip")]]
    assert "is not in the process_group" in both[0]["alone"]["refused"]


def test_nothing_is_added_up_where_nothing_is_decided(both):
    for rank in both:
        assert rank["alone"]["off"] == 0
        assert rank["alone"]["sharded"] == 5  # the norms themselves are spread over the ranks


def test_scaler_that_overflows_on_one_rank(both):
    found = [rank["overflow"] for rank in both]
    assert found[0]["log"] == found[1]["log"]
    ((step, action, reason),) = found[0]["log"]
    assert (step, action) == (BAD, "skip") and "the GradScaler of rank 1 has found an overflow" in reason
    assert equal(found[0]["states"], found[1]["states"]), "the scale is the same on both"
    for f in found:
        assert not f["notes"] and f["sums"] == 12
        assert torch.equal(f["states"][BAD], f["states"][BAD - 1])


def test_rank_that_leaves_or_hangs_ends_the_watching_and_not_the_run(both):
    closed, silent = both[0]["gone"]["closed"], both[0]["gone"]["silent"]
    assert closed["steps"] == silent["steps"] == 12
    assert len(closed["notes"]) == len(silent["notes"]) == 1
    assert "rank 1 has ended its watch" in closed["notes"][0]
    assert "rank 1 did not come to step 6" in silent["notes"][0]
    assert closed["seconds"] < 60 and silent["seconds"] < 60
