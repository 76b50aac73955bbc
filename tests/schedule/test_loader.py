"""The loader counts what it handed out: stop anywhere, also with workers ahead, and go on at the exact sample."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from steadygrad import schedule as s
from tests.schedule.table import BATCH_SAMPLERS, DATA, INDEX_SAMPLERS, Sampling

EPOCHS = 3


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return DATA

    def __getitem__(self, i):
        return int(i)


def keep(samples):
    return list(samples)


def build(case: Sampling, **loader) -> s.ResumableLoader:
    sampler = case.build(1, 0)
    if case in INDEX_SAMPLERS:
        return s.ResumableLoader(DataLoader(Data(), 4, sampler=sampler, collate_fn=keep, **loader))
    return s.ResumableLoader(DataLoader(Data(), batch_sampler=sampler, collate_fn=keep, **loader))


def walk(loader, epochs=EPOCHS):
    return [list(loader) for _ in range(epochs)]


@pytest.mark.parametrize("case", INDEX_SAMPLERS + BATCH_SAMPLERS, ids=lambda c: c.name)
def test_stop_and_resume_at_every_batch(case: Sampling):
    whole = walk(build(case))
    for epoch in range(EPOCHS):
        loader = build(case)
        assert walk(loader, epoch) == whole[:epoch]
        states = [loader.state_dict()]
        for _ in loader:
            states.append(loader.state_dict())
        for consumed, state in enumerate(states):
            resumed = build(case)
            resumed.load_state_dict(state)
            assert resumed.epoch == epoch and len(resumed) == len(build(case)) or epoch
            assert walk(resumed, EPOCHS - epoch) == [whole[epoch][consumed:], *whole[epoch + 1 :]]
        assert loader.epoch == epoch + 1  # between epochs it points to the next


@pytest.mark.parametrize("case", [INDEX_SAMPLERS[0], BATCH_SAMPLERS[2]], ids=lambda c: c.name)
def test_workers_are_ahead_and_nothing_is_lost(case: Sampling):
    whole = walk(build(case), 2)
    loader = build(case, num_workers=2, prefetch_factor=2)
    taken = []
    for batch in loader:
        taken.append(batch)
        if len(taken) == 2:  # the sampler has been drawn from four batches further
            break
    resumed = build(case)
    resumed.load_state_dict(loader.state_dict())
    assert [taken + next(iter(walk(resumed, 1))), walk(resumed, 1)[0]] == whole


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("case", INDEX_SAMPLERS[::3] + BATCH_SAMPLERS[2::3], ids=lambda c: c.name)
def test_workers_stop_and_resume_at_every_batch(case: Sampling, persistent):
    whole = walk(build(case), 2)
    for stop in range(0, len(whole[0]) + len(whole[1]), 2):
        loader = build(case, num_workers=2, persistent_workers=persistent)
        seen = []
        for _ in range(2):
            for batch in loader:
                seen.append(batch)
                if len(seen) == stop:
                    break
            if len(seen) == stop:
                break
        resumed = build(case, num_workers=2, persistent_workers=persistent)
        resumed.load_state_dict(copy.deepcopy(loader.state_dict()))
        rest = [b for _ in range(2 - resumed.epoch) for b in resumed]
        assert seen + rest == [b for e in whole for b in e] or stop == 0


def test_a_loop_left_early_goes_on_with_the_next_epoch():
    case = INDEX_SAMPLERS[0]
    whole = walk(build(case))
    loader = build(case)
    for _ in loader:
        break
    assert loader.epoch == 0
    assert walk(loader, 2) == whole[1:]


def test_a_ramp_left_early_counts_what_was_handed_out():
    case = BATCH_SAMPLERS[2]
    loader, ahead = build(case), build(case, num_workers=1, prefetch_factor=4)
    for one in (loader, ahead):
        for k, _ in enumerate(one):
            if k == 2:
                break
    assert walk(loader, 1) == walk(ahead, 1)


def test_set_epoch_on_the_sampler_is_heard():
    case = INDEX_SAMPLERS[0]
    whole = walk(build(case))
    loader = build(case)
    walk(loader, 1)
    loader.loader.sampler.set_epoch(2)
    assert loader.epoch == 2 and walk(loader, 1) == [whole[2]] and loader.epoch == 3
    again = build(case)
    for epoch in range(EPOCHS):
        again.loader.sampler.set_epoch(epoch)  # the habit of DistributedSampler does no harm
        assert list(again) == whole[epoch]


def test_the_dataset_may_make_the_batches():
    """batch_size=None: the sampler's items go to the dataset as they are."""
    data = torch.arange(DATA)
    make = lambda: s.ResumableLoader(  # noqa: E731
        DataLoader(TensorDataset(data), sampler=BATCH_SAMPLERS[2].build(1, 0), batch_size=None)
    )
    whole = [x.tolist() for (x,) in make()]
    loader = make()
    running = iter(loader)
    next(running), next(running)
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    assert [x.tolist() for (x,) in resumed] == whole[2:]


def test_new_difficulties_travel_through_the_loader():
    def make():
        sampler = s.EpochCurriculumSampler(range(9), lambda epoch: 1 / 3)
        return sampler, s.ResumableLoader(DataLoader(range(9), 2, sampler=sampler, collate_fn=keep))

    sampler, loader = make()
    running = iter(loader)
    first = next(running)
    sampler.set_difficulty([-x for x in range(9)])
    state = loader.state_dict()
    rest = [*running, *loader]
    _, resumed = make()
    resumed.load_state_dict(state)
    assert [*resumed, *resumed] == rest and sorted(i for b in [first, *rest] for i in b) == [0, 1, 2, 6, 7, 8]


def test_starting_an_epoch_draws_nothing_from_the_global_generator():
    """A resumed run starts its loader once more than the other: its dropout must not feel it."""
    loader = build(INDEX_SAMPLERS[0])
    before = torch.get_rng_state()
    walk(loader, 2)
    assert torch.equal(torch.get_rng_state(), before)
    mine = torch.Generator()
    kept = DataLoader(Data(), 4, sampler=INDEX_SAMPLERS[0].build(1, 0), generator=mine)
    s.ResumableLoader(kept)
    assert kept.generator is mine


class Noise(Data):
    def __getitem__(self, i):
        return torch.randint(2**40, ()).item()


def test_workers_draw_other_numbers_in_every_epoch():
    sampler = INDEX_SAMPLERS[0].build(1, 0)
    loader = s.ResumableLoader(DataLoader(Noise(), 8, sampler=sampler, num_workers=1, collate_fn=keep))
    drawn = [x for e in walk(loader, 2) for b in e for x in b]
    assert len(set(drawn)) == 2 * DATA


def test_refusals():
    with pytest.raises(TypeError, match="DataLoader, got list"):
        s.ResumableLoader([1])
    with pytest.raises(TypeError, match="SequentialSampler, cannot be resumed"):
        s.ResumableLoader(DataLoader(Data(), 4))
    loader = build(INDEX_SAMPLERS[0])
    walk(loader, 1)
    with pytest.raises(ValueError, match="the state of ResumableSampler"):
        loader.load_state_dict({})
    assert loader.epoch == 1


SCRIPT = """
    import json, os, signal, sys
    import torch
    from functools import partial
    from torch.utils.data import DataLoader, TensorDataset
    from steadygrad import schedule as s

    folder, kill_at = sys.argv[1], int(sys.argv[2])
    torch.manual_seed(0)
    x = torch.randn(40, 12, 2)
    net = torch.nn.Sequential(torch.nn.Flatten(0, 1), torch.nn.Linear(2, 4), torch.nn.Dropout(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    ramp, back_off = s.warmup(optimizer, 6), s.BackOff(optimizer, hold_steps=2, rewarm_steps=4)
    data = TensorDataset(x)
    order = s.CurriculumSampler(x.norm(dim=(1, 2)), partial(s.competence_pacing, total_steps=9), 4)
    sizes = partial(s.linear_batch_size, start=4, end=8, ramp_samples=50)
    batches = s.LengthSampler(s.RampedBatchSampler(order, sizes), lambda step: min(12, 4 + step))
    loader = s.ResumableLoader(
        DataLoader(s.WithLength(data), batch_sampler=batches, collate_fn=s.TruncateCollate(), num_workers=2)
    )
    parts = dict(net=net, optimizer=optimizer, scheduler=scheduler, ramp=ramp, back_off=back_off, loader=loader)
    path, step = os.path.join(folder, "last.pt"), 0
    if os.path.exists(path):
        saved = torch.load(path)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["rng"])
        step = saved["step"]
    for epoch in range(loader.epoch, 3):
        for (batch,) in loader:
            optimizer.zero_grad()
            net(batch).square().mean().backward()
            if step == 5:
                back_off.incident()
            optimizer.step()
            scheduler.step()
            step += 1
            saved = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**saved, "rng": torch.get_rng_state(), "step": step}, path + ".new")
            os.replace(path + ".new", path)
            if step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    print(json.dumps([step, torch.cat([p.flatten() for p in net.parameters()]).tolist()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_killed_and_resumed_run_ends_with_the_same_weights(tmp_path):
    """kill -9 in the middle of an epoch, with two workers ahead; everything of this room at work."""

    def go(folder, kill_at):
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), str(kill_at)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)

    whole = go(tmp_path / "whole", -1)
    assert whole.returncode == 0, whole.stderr
    for kill_at in (3, 12):
        assert go(tmp_path / "killed", kill_at).returncode == -signal.SIGKILL
    last = go(tmp_path / "killed", -1)
    assert last.returncode == 0, last.stderr
    assert last.stdout == whole.stdout and whole.stdout.startswith("[20,")
