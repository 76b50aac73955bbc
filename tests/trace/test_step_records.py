"""Step records are taken apart by the writing thread, many at once; what is read back does not tell."""

import math
import sqlite3
import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from steadygrad.records import ActivationStats, Portrait, StepStats, TensorStats
from steadygrad.trace.backlog import Backlog
from steadygrad.trace.gather import detail_chunks, exact_chunks
from steadygrad.trace.reader import Run
from steadygrad.trace.signals import Unfolding
from steadygrad.trace.waiting import Detail, Exact, Whole

NAN = math.nan
WIDTH = 20
TENSORS = {"grad_max_abs", "weight_norm", "update_ratio", "adam_rms", "state_nonfinite", "weight_nonfinite"}
MODULES = {"act_rms", "act_dead", "act_saturated", "act_input_rms"}


def run_of(seed, steps=120, optimizers=1):
    """Step records in which everything that may be missing is missing now and then."""
    draw = np.random.default_rng(seed)

    def one_of(*values):
        return values[draw.integers(len(values))]

    for t in range(steps):
        norms = draw.lognormal(0, 3, WIDTH if draw.random() < 0.97 else WIDTH - 3).astype(np.float32)
        norms[draw.random(len(norms)) < 0.2] = one_of(NAN, np.inf, 0.0)
        yield StepStats(
            t // optimizers,
            t % optimizers,
            loss=one_of(1.0 * t, NAN, None),
            grad_norm=one_of(1.0, 2.0, NAN, np.inf),
            clipped_grad_norm=1.0,
            grad_norms=one_of(norms, norms, norms, norms.astype(float), norms[:0]),
            lr=0.1,
            applied=bool(draw.random() < 0.9),
            loss_scale=one_of(None, 1024.0),
            amp_skips=int(draw.integers(3)),
            tensors=tuple(
                TensorStats(
                    *(i, 1.0 + t, one_of(0.0, 1.0, NAN), one_of(NAN, 0.1), one_of(NAN, 1.0)),
                    *(one_of(True, True, False), one_of(True, False)),
                )
                for i in range(t % 16, WIDTH + 2, 16)  # two that nobody declared
            ),
            activations=()
            if t % 7
            else (ActivationStats("m0", "ReLU", one_of(1.0, NAN), dead=one_of(NAN, 0.5)),)
            + ((ActivationStats("m1", "Tanh", 2.0, saturated=0.1, input_rms=3.0),) if t % 2 else ()),
            seconds=one_of(NAN, 0.25),
        )


def by_hand(writer, stats, had):
    """The obvious twin: one call per signal, in the calling thread."""
    o, t = stats.optimizer, stats.step
    scalars = {k: getattr(stats, k) for k in ("grad_norm", "clipped_grad_norm", "lr", "num_backwards")}
    scalars |= {"applied": float(stats.applied), "amp_skips": float(stats.amp_skips)}
    scalars |= {k: v for k in ("loss", "loss_scale") if (v := getattr(stats, k)) is not None}
    if not math.isnan(stats.seconds):
        scalars["seconds"] = stats.seconds
    writer.scalars(o, t, scalars)
    there = ~np.isnan(stats.grad_norms)
    if math.isnan(stats.grad_norm):
        before = had.get(o)
        there |= before if before is not None and len(before) == len(there) else True
    had[o] = there
    writer.row("grad_norm", o, t, stats.grad_norms, measured=there)
    for s in stats.tensors:
        values = {"grad_max_abs": s.grad_max_abs, "weight_norm": s.weight_norm}
        if stats.applied and s.weight_norm != 0:
            values["update_ratio"] = s.update_ratio
        if not s.state_finite or not math.isnan(s.adam_rms):
            values["adam_rms"] = s.adam_rms
        values |= {} if s.state_finite else {"state_nonfinite": 1.0}
        values |= {} if s.weight_finite else {"weight_nonfinite": 1.0}
        for stat, value in values.items():
            writer.sparse(stat, o, t, [s.param], [value])
    for a in stats.activations:
        writer.declare_modules({a.module: a.module_type})
        writer.sparse_modules("act_rms", o, t, [a.module], [a.rms])
        for stat, value in (
            ("act_dead", a.dead),
            ("act_saturated", a.saturated),
            ("act_input_rms", a.input_rms),
        ):
            if not math.isnan(value):
                writer.sparse_modules(stat, o, t, [a.module], [value])


def content(path):
    """All points of the newest attempt, as text: nan is nan."""
    run = Run(path)
    assert run.verify() and run.notes in ([], [n for n in run.notes if "nobody had declared" in n])
    optimizers = run.optimizers()
    scalars = {(k, o): [a.tolist() for a in run.scalar(k, o)] for o in optimizers for k in run.scalar_keys(o)}
    names = {stat: ["p0", "p3", "p16", f"p{WIDTH - 1}"] for stat in {"grad_norm", *TENSORS}}
    names |= {stat: ["m0", "m1"] for stat in MODULES}
    series = {
        (stat, name, o): [a.tolist() for a in run.series(stat, name, o)]
        for stat in run.stats()
        for name in names[stat]
        for o in optimizers
        if not (name.startswith("p") and o)  # parameters are declared for the first optimizer
    }
    return repr((scalars, series, run.modules))


@pytest.mark.parametrize(
    ("seed", "optimizers", "flush_every"), [(0, 1, 1), (0, 1, 1000), (1, 1, 11), (2, 2, 11), (3, 2, 1000)]
)
def test_records_read_back_as_if_written_one_signal_at_a_time(
    make_writer, tmp_path, declared, seed, optimizers, flush_every
):
    written, had = {}, {}
    for how in ("whole", "by hand"):
        (tmp_path / how).mkdir()
        with make_writer(f"{how}/trace-0.sqlite") as writer:
            writer.declare(declared(WIDTH))
            for i, stats in enumerate(run_of(seed, optimizers=optimizers)):
                writer.step(stats) if how == "whole" else by_hand(writer, stats, had)
                if i % flush_every == flush_every - 1:
                    assert writer.flush()
        assert writer.failed is None
        written[how] = content(tmp_path / how), dict(writer.dropped)
    assert written["whole"] == written["by hand"]
    assert written["whole"][1]["unknown"] > 10
    assert all(stat in written["whole"][0] for stat in TENSORS | MODULES)


def small(t, norm=1.0, **fields):
    return StepStats(t, 0, float(t), norm, norm, np.full(3, norm, np.float32), 0.1, **fields)


def test_calls_that_take_turns_keep_their_order(make_writer, tmp_path, declared):
    """A signal may come from records and from single calls; further scalars of a step disturb nobody."""
    with make_writer() as writer:
        writer.declare(declared(3))
        for t in range(0, 40, 2):
            writer.step(small(t))
            writer.scalars(0, t, {"guard_clip": 5.0})
            if t >= 20:
                writer.scalars(0, t + 1, {"loss": -1.0})
                writer.row("grad_norm", 0, t + 1, np.full(3, 2.0))
    run = Run(tmp_path)
    expected = [*range(0, 20, 2), *range(20, 40)]
    assert run.scalar("loss")[0].tolist() == run.series("grad_norm", "p0")[0].tolist() == expected
    assert run.scalar("loss")[1].tolist() == [-1.0 if t % 2 else float(t) for t in expected]
    assert run.series("grad_norm", "p0")[1].tolist() == [2.0 if t % 2 else 1.0 for t in expected]
    assert run.scalar("guard_clip")[0].tolist() == list(range(0, 40, 2))


def test_chunks_keep_the_order_and_are_cut_only_where_they_must():
    """Single scalars and rows of a signal that records have too cut; those of another one do not."""
    apart = [r for t in range(9) for r in (Whole(1, small(t)), Exact(1, 0, t, {"guard_clip": 5.0}))]
    alike = [
        Exact(1, 0, 2 * t + 1, {"loss": -1.0}) if t % 3 == 0 else Whole(1, small(2 * t + 1)) for t in range(9)
    ]
    for queue, count, steps in ((apart, 1, range(9)), (alike, 6, range(1, 18, 2))):
        losses = [c for c in exact_chunks(queue) if c.key[3] == "loss"]
        assert [t for c in losses for t in c.steps] == list(steps) and len(losses) == count
    row = np.full(3, 2.0)
    for stat, count in (("guard_norm", 1), ("grad_norm", 6)):
        queue = [
            Detail(1, 0, "param", stat, t, None, row) if t % 3 == 0 else Whole(1, small(t)) for t in range(9)
        ]
        norms = [c for c in detail_chunks(queue, Unfolding(None)) if c.key[3] == "grad_norm"]
        there = [t for t in range(9) if stat == "grad_norm" or t % 3]
        assert [t for c in norms for t in c.steps] == there and len(norms) == count


def test_which_parameters_have_a_gradient_is_remembered_from_block_to_block(make_writer, tmp_path, declared):
    writer = make_writer()
    writer.declare(declared(3))
    writer.step(replace(small(0), grad_norms=np.array([1.0, NAN, 2.0])))
    assert writer.flush()
    writer.step(small(1, norm=NAN))
    writer.close()
    run = Run(tmp_path)
    assert [run.series("grad_norm", f"p{i}")[0].tolist() for i in range(3)] == [[0, 1], [], [0, 1]]


def test_a_step_that_goes_back_begins_a_new_attempt(make_writer, tmp_path, declared):
    with make_writer() as writer:
        writer.declare(declared(3))
        for t in [*range(60), *range(40, 80)]:
            writer.step(small(t))
    run = Run(tmp_path)
    assert run.attempts == [1, 2]
    for attempt, steps in ((1, range(60)), (2, range(40, 80))):
        run = Run(tmp_path, attempt=attempt)
        assert run.scalar("loss")[0].tolist() == run.series("grad_norm", "p1")[0].tolist() == list(steps)


def test_a_step_is_queued_as_it_is():
    """The training thread takes nothing apart: one record, in both queues."""
    backlog, stats = Backlog(10**6), small(0)
    backlog.put_whole(Whole(1, stats))
    (detail,), (exact,), rows = backlog.take()
    assert detail is exact and detail.stats is stats and rows == []
    assert backlog.empty


def test_a_portrait_is_not_kept_alive(make_writer):
    writer = make_writer()
    writer.step(small(0, portrait=Portrait()))
    ((whole,), _, _) = writer._backlog.take()
    assert whole.stats.portrait is None and whole.stats.loss == 0.0


def wide(t):
    """20 kB of detail."""
    tensors = tuple(TensorStats(i, 1.0, 1.0, 0.1) for i in range(32))
    return StepStats(t, 0, float(t), 1.0, 1.0, np.full(1000, t + 1.0), 0.1, tensors=tensors)


def test_what_waits_is_bounded_and_its_scalars_stay():
    """The oldest records lose their detail; what they hold beside it is not kept alive."""
    backlog = Backlog(1_000_000)
    tracemalloc.start()
    try:
        for t in range(1000):
            backlog.put_whole(Whole(1, wide(t)))
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    lost = backlog.dropped["rows"]
    details, exacts, _ = backlog.take()
    assert held < 1_000_000 + 1000 * 1000
    assert [w.stats.step for w in details] == list(range(lost, 1000)) and 40 < len(details) < 70
    (loss,) = (c for c in exact_chunks(exacts) if c.key[3] == "loss")
    assert loss.steps == list(range(1000)) and loss.data.tolist() == list(map(float, range(1000)))


@pytest.mark.parametrize("tensors", [0, 60])
@pytest.mark.parametrize("parameters", [1, 100, 5000])
def test_the_size_that_is_counted_is_no_less_than_what_is_held(parameters, tensors):
    tracemalloc.start()
    try:
        records = [
            Whole(
                1,
                StepStats(
                    *(t, 0, t * 1.5, t * 2.5, t * 3.5, np.full(parameters, 1.0), t * 0.1),
                    tensors=tuple(TensorStats(i, t * 1.1, t * 1.2, t * 1.3, t * 1.4) for i in range(tensors)),
                    seconds=t * 0.3,
                ),
            )
            for t in range(1000, 1100)
        ]
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    counted = sum(record.nbytes for record in records)
    assert held <= counted <= 2 * held


def test_a_disk_that_is_too_slow_costs_the_oldest_detail_of_records(make_writer, tmp_path, declared):
    writer = make_writer(queue_bytes=1_000_000, block_steps=10)
    writer.declare(declared(1000))
    assert writer.flush()
    holder = sqlite3.connect(tmp_path / "trace-0.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    for t in range(1500):
        writer.step(wide(t))
    writer.event("note", 0, {}, severity="alarm")
    holder.close()
    assert writer.flush(30)
    writer.close()
    assert writer.dropped["rows"] > 100
    run = Run(tmp_path)
    assert run.scalar("loss")[0].tolist() == list(range(1500))
    assert max(int(p.steps.max()) for p in run.points(stat="grad_norm")) == 1499
    assert any("the disk was too slow" in note for note in run.notes)


def test_memory_does_not_grow_with_the_steps(make_writer, declared):
    writer = make_writer(max_bytes=1_000_000)
    writer.declare(declared(3))

    def run(first, last):
        for t in range(first, last):
            writer.step(small(t))
            if t % 200 == 199:
                assert writer.flush(30)

    run(0, 4000)
    tracemalloc.start()
    try:
        run(4000, 8000)
        before = tracemalloc.get_traced_memory()[0]
        run(8000, 14_000)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 100_000


def test_a_record_that_cannot_be_read_ends_the_trace_and_not_the_training(make_writer, declared):
    failures = []
    writer = make_writer(on_failure=failures.append)
    writer.declare(declared(3))
    writer.step(small(0, tensors=(TensorStats("p0", 1.0, 1.0, 0.1),)))
    assert not writer.flush()
    writer.step(small(1))
    assert [type(e) for e in failures] == [ValueError] and writer.failed is failures[0]


def test_steps_from_many_threads_while_parameters_are_declared(make_writer, tmp_path, declared):
    writer = make_writer(block_steps=5)

    def train(optimizer):
        for t in range(200):
            if t % 20 == 0:  # parameters are added on the way
                writer.declare(declared(3 + t // 20, optimizer))
            tensors = (TensorStats(t % 3, 1.0 + optimizer, 1.0, 0.1),)
            writer.step(replace(small(t), optimizer=optimizer, tensors=tensors))

    threads = [threading.Thread(target=train, args=(o,)) for o in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert writer.failed is None and writer.dropped == {}
    run = Run(tmp_path)
    for optimizer in range(6):
        assert run.scalar("loss", optimizer)[0].tolist() == list(range(200))
        assert run.series("grad_norm", "p2", optimizer)[0].tolist() == list(range(200))
        assert run.series("grad_max_abs", "p1", optimizer)[0].tolist() == list(range(1, 200, 3))


def test_after_the_end_a_step_does_nothing(make_writer, tmp_path, declared):
    writer = make_writer()
    writer.declare(declared(3))
    writer.step(small(0))
    writer.close()
    writer.step(small(1))
    assert writer._backlog.empty and Run(tmp_path).scalar("loss")[0].tolist() == [0]
