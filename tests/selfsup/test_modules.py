"""Heads, the slow teacher, and what is rebuilt from a part."""

import copy
import math

import pytest
import torch
from torch import nn

from steadygrad.selfsup import (
    DenoisingAutoencoder,
    EMATeacher,
    MaskedReconstruction,
    ema_momentum,
    masked_mse,
    mlp_head,
    random_mask,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------- heads
def test_head_has_the_layers_that_it_says():
    kinds = [type(m) for m in mlp_head(8, 16, 4, layers=3, last_norm=True)]
    between = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*between, *between, nn.Linear, nn.BatchNorm1d]
    assert [type(m) for m in mlp_head(8, 16, 4, layers=1)] == [nn.Linear]
    assert mlp_head(8, 16, 4)[-1].bias is not None and mlp_head(8, 16, 4, last_norm=True)[-2].bias is None
    with pytest.raises(ValueError, match="layers"):
        mlp_head(8, 16, 4, layers=0)


# ---------------------------------------------------------------------- the teacher
def test_teacher_is_the_running_average():
    student = nn.Linear(3, 2)
    teacher = EMATeacher(student, momentum=0.9)
    wanted = student.weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            student.weight += step
        wanted = 0.9 * wanted + 0.1 * student.weight.detach()
        teacher.update()
    assert torch.allclose(teacher.net.weight, wanted)
    teacher.update(momentum=0.0)
    assert torch.equal(teacher.net.weight, student.weight)
    teacher.update(momentum=1.0)
    assert torch.equal(teacher.net.weight, student.weight)


def test_teacher_has_no_gradient_and_does_not_hold_the_student_as_its_own():
    student = nn.Linear(3, 2)
    teacher = EMATeacher(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher(torch.ones(1, 3, requires_grad=True)).requires_grad
    assert set(teacher.state_dict()) == {"net.weight", "net.bias"}


def test_teacher_of_a_copied_pair_follows_the_copy():
    pair = nn.Module()
    pair.student = nn.Linear(3, 2)
    pair.teacher = EMATeacher(pair.student, momentum=0.0)
    twin = copy.deepcopy(pair)
    with torch.no_grad():
        twin.student.weight.fill_(7.0)
    twin.teacher.update()
    assert (twin.teacher.net.weight == 7).all() and not (pair.teacher.net.weight == 7).any()


def test_teacher_keeps_its_own_statistics():
    student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    teacher = EMATeacher(student, momentum=0.0)
    student(torch.randn(8, 2, generator=generator()))
    teacher.update()
    assert teacher.net[1].num_batches_tracked == 0


def test_teacher_of_bad_input():
    with pytest.raises(ValueError, match="momentum"):
        EMATeacher(nn.Linear(1, 1), momentum=1.1)
    with pytest.raises(ValueError, match="momentum"):
        EMATeacher(nn.Linear(1, 1)).update(-0.1)
    with pytest.raises(TypeError, match="student"):
        EMATeacher(lambda x: x)


def test_momentum_rises_to_one_along_a_cosine():
    values = [ema_momentum(step, 10, base=0.9) for step in range(13)]
    assert values[0] == pytest.approx(0.9) and values[5] == pytest.approx(0.95)
    assert values == sorted(values) and values[10:] == [1.0, 1.0, 1.0]
    for bad in ((-1, 10), (1, 0)):
        with pytest.raises(ValueError, match="step"):
            ema_momentum(*bad)


# ---------------------------------------------------------------------- what is rebuilt
@pytest.mark.parametrize("share, hidden", [(0.75, 12), (0.15, 2), (0.001, 1), (0.999, 15)])
def test_mask_hides_the_same_number_of_each_sample(share, hidden):
    mask = random_mask((5, 16), share, generator=generator())
    assert mask.dtype == torch.bool and mask.sum(1).tolist() == [hidden] * 5
    assert len({tuple(row) for row in random_mask((50, 16), 0.5, generator=generator()).tolist()}) > 40


def test_mask_of_its_own_stream_leaves_torchs_alone():
    before = torch.get_rng_state()
    first = random_mask((4, 8), generator=generator(1))
    assert torch.equal(first, random_mask((4, 8), generator=generator(1)))
    assert torch.equal(before, torch.get_rng_state())


def test_masked_error_is_the_mean_over_what_was_hidden():
    g = generator()
    x, y = torch.randn(3, 4, 5, generator=g), torch.randn(3, 4, 5, generator=g)
    mask = random_mask((3, 4), 0.5, generator=g)
    wrong = [
        (a - b) ** 2 for a, b in zip(x[mask].flatten().tolist(), y[mask].flatten().tolist(), strict=True)
    ]
    assert masked_mse(x, y, mask).item() == pytest.approx(sum(wrong) / len(wrong))
    y[~mask] = math.nan
    assert masked_mse(x, y, mask).isfinite()
    y[mask] = math.nan
    assert masked_mse(x, y, mask).isnan()
    assert masked_mse(x, x, torch.zeros_like(mask)).item() == 0


def test_masked_reconstruction_hides_what_it_asks_for():
    seen = []

    class Encoder(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x

    module = MaskedReconstruction(Encoder(), nn.Identity(), share=0.5, generator=generator())
    x = torch.rand(6, 8, 3, generator=generator(1)) + 1
    loss = module(x)
    hidden = (seen[0] == 0).all(2)
    assert hidden.sum(1).tolist() == [4] * 6 and torch.equal(seen[0][~hidden], x[~hidden])
    assert loss.item() == pytest.approx(x[hidden].square().mean().item())


def test_denoising_scores_against_the_clean_input():
    module = DenoisingAutoencoder(nn.Identity(), nn.Identity(), noise=0.5, generator=generator())
    loss = module(torch.randn(100, 100, generator=generator(1)))
    assert loss.item() == pytest.approx(0.25, rel=0.05)
    assert DenoisingAutoencoder(nn.Identity(), nn.Identity(), noise=0.0)(torch.ones(2, 2)).item() == 0


@pytest.mark.parametrize("make", [MaskedReconstruction, DenoisingAutoencoder])
def test_rebuilding_learns_and_shows_what_is_not_finite(make):
    torch.manual_seed(0)
    basis = torch.randn(2, 16)
    module = make(nn.Sequential(nn.Linear(16, 8), nn.Tanh()), nn.Linear(8, 16), 0.4, generator=generator())
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = module(torch.randn(64, 2) @ basis)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert module(torch.full((4, 16), math.nan)).isnan()


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: random_mask((4, 8), 1.0), "share"),
        (lambda: random_mask((4, 1)), "shape"),
        (lambda: random_mask((0, 4)), "shape"),
        (lambda: masked_mse(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 3).bool()), "one shape"),
        (lambda: masked_mse(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3)), "mask"),
        (lambda: MaskedReconstruction(nn.Identity(), nn.Identity(), share=0.0), "share"),
        (lambda: MaskedReconstruction(nn.Identity(), nn.Identity())(torch.ones(3)), "x must"),
        (lambda: DenoisingAutoencoder(nn.Identity(), nn.Identity(), noise=-1.0), "noise"),
        (lambda: DenoisingAutoencoder(nn.Linear(2, 1), nn.Identity())(torch.ones(3, 2)), "decoder"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
