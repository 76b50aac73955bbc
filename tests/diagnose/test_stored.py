"""A diagnosis from a run directory: facts through JSON, and traces that were cut, broken or never finished."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import steadygrad as sg
from steadygrad.diagnose.causes import diagnose
from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.stored import MAX_ROWS, diagnose_run, facts_of_json, facts_to_json
from steadygrad.diagnose.verdict import FAILS, Verdict
from steadygrad.records import (
    AttentionStats,
    FirstNonFinite,
    LayerStats,
    LossTerm,
    Oddity,
    ParamInfo,
    Portrait,
    RecurrenceStats,
)
from steadygrad.trace import jsontext
from steadygrad.trace.reader import Run
from steadygrad.trace.rundir import NotARun
from steadygrad.trace.writer import TraceWriter

# ---------------------------------------------------------------------- facts through JSON
text = st.text(st.characters(codec="utf-8"), max_size=12)
number = st.floats(width=64)
whole = st.integers(0, 2**53)
few = {"max_size": 3}


def records(record, /, **fields):
    """Instances of a dataclass: each field by its type, or as given."""
    by_type = {"str": text, "float": number, "int": whole, "bool": st.booleans()}
    made = {f.name: fields.get(f.name, by_type.get(f.type)) for f in dataclasses.fields(record)}
    return st.builds(record, **{name: strategy for name, strategy in made.items() if strategy is not None})


def tuples(strategy):
    return st.lists(strategy, **few).map(tuple)


portrait = records(
    Portrait,
    layers=tuples(records(LayerStats)),
    recurrences=tuples(records(RecurrenceStats)),
    attention=tuples(records(AttentionStats)),
    terms=tuples(records(LossTerm)),
    oddities=tuples(records(Oddity, evidence=st.dictionaries(text, number, **few))),
)
located = records(
    FirstNonFinite,
    kind=st.sampled_from(["forward", "backward", "loss", "optimizer", "data"]),
    sample=st.none() | whole,
    value=st.sampled_from(["nan", "inf", "-inf"]),
)
facts_strategy = records(
    Facts,
    betas=st.none() | st.tuples(number, number),
    module_types=tuples(text),
    params=tuples(
        records(ParamInfo, shape=st.lists(whole, min_size=2, max_size=4).map(tuple), aliases=tuples(text))
    ),
    one_step_only=st.none() | st.booleans(),
    **{f.name: st.none() | portrait for f in dataclasses.fields(Facts) if f.type == "Portrait | None"},
    verdict=st.none() | records(Verdict, kind=st.sampled_from(sorted(FAILS))),
    located=st.none() | located,
)


def plain(value):
    """For comparison: nan equals nan, and the sign of 0 counts."""
    return repr(dataclasses.asdict(value))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(facts_strategy)
def test_facts_come_back_from_json_exactly(facts):
    facts = dataclasses.replace(facts, params=tuple(dict.fromkeys(facts.params)))
    back = facts_of_json(jsontext.loads(jsontext.dumps(facts_to_json(facts))))
    recurrent = sorted(plain(p) for p in facts.params)
    assert sorted(plain(p) for p in back.params) == recurrent
    assert plain(dataclasses.replace(back, params=())) == plain(dataclasses.replace(facts, params=()))


def test_every_field_of_the_facts_is_drawn():
    """A new field with a type that is not listed above would go untested."""
    drawn = {"betas", "module_types", "params", "one_step_only", "verdict", "located"}
    simple = ("str", "float", "int", "bool", "Portrait | None")
    assert {f.name for f in dataclasses.fields(Facts) if f.type not in simple} == drawn


@pytest.mark.parametrize(
    "data",
    [None, 3, [], "x", {}, {"verdict": {}}, {"verdict": {"kind": "ok"}}, {"betas": []}, {"betas": [0.9]}, {"lr": None},
     {"portrait": {"layers": [None, 3, {}]}}, {"params": 7}, {"located": {"kind": "??"}}, {"steps": "many"}],
)  # fmt: skip
def test_what_cannot_be_read_is_unknown(data):
    assert plain(facts_of_json(data)) in (
        plain(Facts()),
        plain(dataclasses.replace(Facts(), portrait=Portrait())),
    )


def test_a_verdict_of_a_kind_that_is_not_known_is_none():
    verdict = {"kind": "splendid", "progress": 1.0, "start": 1.0, "end": 0.0, "trivial": 1.0, "reason": ""}
    assert facts_of_json({"verdict": verdict}).verdict is None
    assert facts_of_json({"verdict": {**verdict, "kind": "ok"}}).verdict.kind == "ok"


def test_of_a_large_model_a_bounded_share_is_kept():
    layer = LayerStats("w", "Addmm", 1, 1.0, 1.0, 1.0, 1.0, "float32")
    params = tuple(
        ParamInfo(i, f"p{i}", (4, 4), "float16" if i == 9000 else "float32", 0, "", "Linear")
        for i in range(9001)
    )
    facts = Facts(
        params=params, portrait=Portrait(layers=(layer,) * 9000), at=Portrait(layers=(layer,) * 9000)
    )
    written = jsontext.dumps(facts_to_json(facts))
    back = facts_of_json(json.loads(written))
    assert len(written) < jsontext.MAX_TEXT / 2
    assert 16 <= back.num_matrices <= MAX_ROWS + 2 and {p.dtype for p in back.params} == {
        "float16",
        "float32",
    }
    assert MAX_ROWS / 2 <= len(back.portrait.layers) <= MAX_ROWS


# ---------------------------------------------------------------------- run directories
def train(folder, lr, steps=60, guard="warn"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    x = torch.randn(64, 8)
    y = x[:, :1].sin()
    with sg.watch(model, optimizer, guard=guard, runs=folder) as watcher:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    return watcher.run_dir, watcher.close()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs"), 0.1, 200)


@pytest.fixture(scope="module")
def exploded(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs"), 50.0)


def test_a_healthy_run_has_no_causes(healthy):
    found = diagnose_run(healthy[0])
    assert (found.causes, found.notes, found.steps) == ((), (), 200)
    assert found.first_nonfinite is None and found.verdict


def test_causes_are_those_that_the_session_gave_at_its_end(exploded):
    run_dir, summary = exploded
    found = diagnose_run(run_dir)
    assert found.causes and found.causes == summary.causes
    assert (
        repr(found.findings) == repr(summary.findings) and found.steps == summary.steps and found.notes == ()
    )
    assert "lr_too_large" in [c.cause for c in found.causes[:2]]


def copied(run_dir, folder):
    """A copy of a run whose file is whole in itself."""
    target = folder / "copy"
    shutil.copytree(run_dir, target)
    return target


@pytest.mark.parametrize("share", [0.99, 0.7, 0.4, 0.1, 0.01])
def test_a_cut_trace_is_read_as_far_as_it_goes(exploded, tmp_path, share):
    folder = copied(exploded[0], tmp_path)
    for file in folder.glob("trace-*"):
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * share)])
    found = diagnose_run(folder)
    assert found.notes and found.verdict  # says that something is missing
    for cause in found.causes:
        assert 0 <= cause.probability <= 1


@pytest.mark.parametrize("seed", range(6))
def test_a_broken_trace_is_no_crash(exploded, tmp_path, seed):
    folder = copied(exploded[0], tmp_path)
    rng = np.random.default_rng(seed)
    (file,) = folder.glob("trace-*.sqlite")
    data = bytearray(file.read_bytes())
    for _ in range(3):
        at = int(rng.integers(0, len(data) - 600))
        data[at : at + 500] = rng.bytes(500)
    file.write_bytes(bytes(data))
    assert diagnose_run(folder).verdict


def test_a_file_of_another_kind_under_the_name_of_a_trace(tmp_path):
    for data in (b"", b"no database at all" * 50):
        (tmp_path / "trace-0.sqlite").write_bytes(data)
        found = diagnose_run(tmp_path)
        assert found.causes == () and found.steps == 0 and found.notes


@pytest.mark.parametrize("end, kind", [(math.nan, "NaN"), (0.001, "steps"), (9e9, "times as high")])
def test_a_run_that_was_killed_is_judged_by_the_losses_that_reached_the_disk(tmp_path, end, kind):
    writer = TraceWriter(tmp_path / "trace-0.sqlite", {}, flush_seconds=1000.0)
    for step in range(12 if kind == "steps" else 80):
        loss = 1.0 if step < 5 else end
        writer.scalars(0, step, {"loss": 4 * loss, "num_backwards": 4.0, "applied": 1.0})
    writer.flush()
    found = diagnose_run(tmp_path)  # while the writer is open: no end mark
    writer.close()
    assert any("killed, or is still going" in note for note in found.notes)
    assert kind in found.verdict and found.steps == (12 if kind == "steps" else 80)
    assert Run(tmp_path).scalar("loss")[1][0] == 4.0


def test_a_run_without_losses_is_not_called_nan(tmp_path):
    with TraceWriter(tmp_path / "trace-0.sqlite", {}) as writer:
        for step in range(80):
            writer.scalars(0, step, {"grad_norm": 1.0, "applied": 1.0})
    found = diagnose_run(tmp_path)
    assert found.causes == () and found.steps == 80 and "too few" in found.verdict


def test_facts_that_were_too_long_to_store_are_unknown(tmp_path):
    with TraceWriter(tmp_path / "trace-0.sqlite", {}) as writer:
        writer.scalars(0, 0, {"loss": 1.0, "applied": 1.0})
        writer.event("facts", 0, {"end": True, "facts": {"optimizer": "x" * 3_000_000}})
    assert diagnose_run(tmp_path).verdict


def test_no_run(tmp_path):
    with pytest.raises(NotARun):
        diagnose_run(tmp_path)
    assert diagnose([], Facts()) == []
