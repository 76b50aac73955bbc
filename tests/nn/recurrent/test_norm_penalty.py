"""Pascanu's regulariser: against a plain float64 loop, its immediate derivative, and what it does to a training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadygrad.nn.recurrent import gradient_norm_penalty, recurrent_norm_penalty, rnn_norm_penalty


def pascanu(weight, slopes, grads):
    """Eq. 9 over pre-activations x: sum_k (|g_{k+1} W diag(f'(x_k))| / |g_{k+1}| - 1)^2, mean over the batch."""
    steps, batch, _ = grads.shape
    total = 0.0
    for b in range(batch):
        for k in range(steps - 1):
            g = grads[k + 1, b]
            if np.linalg.norm(g) > 0:
                total += (np.linalg.norm((g @ weight) * slopes[k, b]) / np.linalg.norm(g) - 1) ** 2
    return total / batch


def hand_written(rnn, x):
    """nn.RNN step by step: pre-activations and states in the graph."""
    f = torch.tanh if rnn.nonlinearity == "tanh" else F.relu
    h, pre, states = torch.zeros(x.shape[1], rnn.hidden_size, dtype=x.dtype), [], []
    for u in x:
        a = F.linear(u, rnn.weight_ih_l0, rnn.bias_ih_l0) + F.linear(h, rnn.weight_hh_l0, rnn.bias_hh_l0)
        h = f(a)
        pre.append(a)
        states.append(h)
    return pre, states


def problem(nonlinearity="tanh", steps=9, dtype=torch.float64):
    rnn = nn.RNN(3, 5, nonlinearity=nonlinearity, dtype=dtype)
    nn.init.normal_(rnn.weight_hh_l0, std=0.6)
    return rnn, torch.randn(steps, 4, 3, dtype=dtype), torch.randn(steps, 4, 5, dtype=dtype)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_rnn_penalty_agrees_with_the_twin(nonlinearity):
    rnn, x, target = problem(nonlinearity)
    output, _ = rnn(x)
    loss = (output * target).sum() + output[-1].square().sum()
    (grad_output,) = torch.autograd.grad(loss, output, retain_graph=True)
    omega = rnn_norm_penalty(rnn, output, grad_output)

    pre, states = hand_written(rnn, x)
    stacked = torch.stack(states)
    torch.testing.assert_close(stacked, output)
    same_loss = (stacked * target).sum() + stacked[-1].square().sum()
    grads = torch.autograd.grad(same_loss, pre)  # of the whole loss, through all later steps
    slopes = 1 - stacked.square() if nonlinearity == "tanh" else (stacked > 0).double()
    numbers = [t.detach().numpy() for t in (rnn.weight_hh_l0, slopes, torch.stack(grads))]
    assert omega.item() == pytest.approx(pascanu(*numbers), rel=1e-10)

    # eq. 10: the immediate derivative, by differences in W with everything else held
    (gradient,) = torch.autograd.grad(omega, rnn.weight_hh_l0)
    weight, others = numbers[0], numbers[1:]
    for index in ((0, 0), (3, 1), (4, 4)):
        values = []
        for sign in (1, -1):
            moved = weight.copy()
            moved[index] += sign * 1e-6
            values.append(pascanu(moved, *others))
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(gradient[index].item(), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_general_form_on_pre_activations_is_the_same(nonlinearity):
    rnn, x, target = problem(nonlinearity)
    output, _ = rnn(x)
    (grad_output,) = torch.autograd.grad((output * target).sum(), output, retain_graph=True)
    expected = rnn_norm_penalty(rnn, output, grad_output)
    pre, states = hand_written(rnn, x)
    grads = torch.stack(torch.autograd.grad((torch.stack(states) * target).sum(), pre, retain_graph=True))
    f = torch.tanh if nonlinearity == "tanh" else F.relu
    inputs = F.linear(x[1:], rnn.weight_ih_l0, rnn.bias_ih_l0)

    def step(a):
        return inputs + F.linear(f(a), rnn.weight_hh_l0, rnn.bias_hh_l0)

    omega = recurrent_norm_penalty(step, torch.stack(pre[:-1]), grads[1:])
    torch.testing.assert_close(omega, expected)
    ours, theirs = (torch.autograd.grad(v, rnn.weight_hh_l0)[0] for v in (omega, expected))
    torch.testing.assert_close(ours, theirs)


def test_the_general_form_on_a_gru_cell():
    cell = nn.GRUCell(3, 4).double()
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    h, states = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True), []
    states.append(h)
    for u in x:
        states.append(cell(u, states[-1]))
    loss = states[-1].square().sum() + states[3].sum()
    grads = torch.autograd.grad(loss, states[1:], retain_graph=True)

    def step(h):
        return cell(x.flatten(0, 1), h.flatten(0, 1)).view(6, 2, 4)

    omega = recurrent_norm_penalty(step, torch.stack(states[:-1]), torch.stack(grads))
    expected = 0.0
    for before, after, g in zip(states[:-1], states[1:], grads, strict=True):
        (pulled,) = torch.autograd.grad(after, before, g, retain_graph=True)
        expected += (pulled.norm(dim=1) / g.norm(dim=1) - 1).square().mean().item()
    assert omega.item() == pytest.approx(expected, rel=1e-10)
    omega.backward()
    assert cell.weight_hh.grad.abs().sum() > 0 and cell.weight_ih.grad is not None


@pytest.mark.parametrize("batch_first", [False, True])
def test_layouts(batch_first):
    rnn, x, target = problem()
    output, _ = rnn(x)
    expected = rnn_norm_penalty(rnn, output, target)
    turned = nn.RNN(3, 5, batch_first=batch_first, dtype=torch.float64)
    turned.load_state_dict(rnn.state_dict())
    if batch_first:
        torch.testing.assert_close(
            rnn_norm_penalty(turned, output.transpose(0, 1), target.transpose(0, 1)), expected
        )
    alone = [rnn_norm_penalty(turned, output[:, i], target[:, i]).item() for i in range(4)]
    assert np.mean(alone) == pytest.approx(expected.item(), rel=1e-12)


def test_orthogonal_linear_steps_have_no_penalty():
    q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q.requires_grad_()
    states, grads = torch.randn(2, 7, 3, 5, dtype=torch.float64)
    omega = recurrent_norm_penalty(lambda h: h @ q, states, grads)
    assert omega.item() == pytest.approx(0.0, abs=1e-20)
    assert recurrent_norm_penalty(lambda h: h @ (2 * q), states, grads).item() == pytest.approx(7.0)


def test_zero_gradients_add_nothing_and_poison_nothing():
    weight = nn.Parameter(torch.randn(3, 3))
    grads = torch.randn(4, 2, 3)
    grads[1] = 0.0
    grads[2, 0] = 0.0
    omega = recurrent_norm_penalty(lambda h: h @ weight, torch.randn(4, 2, 3), grads)
    kept = [(grads[k, b] @ weight.T, grads[k, b]) for k in range(4) for b in range(2) if grads[k, b].any()]
    expected = sum((p.norm() / g.norm() - 1).square() for p, g in kept) / 2
    torch.testing.assert_close(omega, expected)
    omega.backward()
    assert weight.grad.isfinite().all() and weight.grad.abs().sum() > 0
    weight.grad = None
    omega = recurrent_norm_penalty(lambda h: h @ weight, torch.randn(4, 2, 3), torch.zeros(4, 2, 3))
    omega.backward()
    assert omega == 0 and torch.equal(weight.grad, torch.zeros(3, 3))
    dead = torch.zeros(3, 3, requires_grad=True)  # the pulled gradient is 0: the norm has no slope there
    omega = recurrent_norm_penalty(lambda h: h @ dead, torch.randn(4, 2, 3), torch.ones(4, 2, 3))
    omega.backward()
    assert omega == 4.0 and torch.equal(dead.grad, torch.zeros(3, 3))


@pytest.mark.parametrize("size", [1e-35, 1e-20, 1.0, 1e25])
def test_the_size_of_the_gradient_plays_no_part(size):
    """In float32 the square of 1e-25 is 0: vanished gradients are what it is for."""
    weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    grads = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(2))
    expected = recurrent_norm_penalty(lambda h: h @ weight, torch.zeros(4, 2, 3), grads)
    omega = recurrent_norm_penalty(lambda h: h @ weight, torch.zeros(4, 2, 3), grads * size)
    torch.testing.assert_close(omega, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nonfinite_stays_visible(bad):
    grads = torch.ones(3, 2, 4)
    grads[1, 0, 2] = bad
    assert gradient_norm_penalty(grads, torch.ones(3, 2, 4)).isnan()
    assert not gradient_norm_penalty(torch.ones(3, 2, 4), grads).isfinite()


def test_empty_and_types():
    for shape in ((0, 2, 3), (2, 0, 3), (2, 3, 0)):
        assert gradient_norm_penalty(torch.zeros(shape), torch.zeros(shape)) == 0
    rnn, x, target = problem(steps=1)
    assert rnn_norm_penalty(rnn, rnn(x)[0], target) == 0
    half = gradient_norm_penalty(torch.ones(3, 2, 4).bfloat16(), torch.ones(3, 2, 4).bfloat16() * 3)
    assert half.dtype == torch.float32 and half == 12.0
    rnn, x, target = problem(dtype=torch.bfloat16)
    omega = rnn_norm_penalty(rnn, rnn(x)[0], target)
    omega.backward()
    assert omega.dtype == torch.float32 and rnn.weight_hh_l0.grad.isfinite().all()


def test_a_training_with_it_brings_the_gradient_back():
    """A plain RNN whose gradient vanishes over 30 steps: with Omega in the loss it comes through."""
    reach = {}
    for strength in (0.0, 1.0):
        torch.manual_seed(0)
        rnn, head = nn.RNN(2, 16), nn.Linear(16, 1)
        nn.init.normal_(rnn.weight_hh_l0, std=0.5 / 4)
        optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=0.01)
        for _ in range(60):
            x = torch.randn(30, 8, 2) * 0.1
            output, _ = rnn(x)
            loss = head(output[-1]).square().mean()
            (grad_output,) = torch.autograd.grad(loss, output, retain_graph=True)
            optimizer.zero_grad()
            (loss + strength * rnn_norm_penalty(rnn, output, grad_output)).backward()
            optimizer.step()
        h_0 = torch.zeros(1, 8, 16, requires_grad=True)
        (grad,) = torch.autograd.grad(rnn(torch.zeros(30, 8, 2), h_0)[0][-1].sum(), h_0)
        reach[strength] = grad.norm().item()
    assert reach[0.0] < 1e-5 and reach[1.0] > 1e-2, reach


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r, o, g: rnn_norm_penalty(nn.GRU(3, 5), o, g), TypeError, "rnn must be nn.RNN, got GRU"),
        (
            lambda r, o, g: rnn_norm_penalty(nn.RNN(3, 5, num_layers=2), o, g),
            ValueError,
            "one layer and one direction",
        ),
        (
            lambda r, o, g: rnn_norm_penalty(nn.RNN(3, 5, bidirectional=True), o, g),
            ValueError,
            "bidirectional=True",
        ),
        (lambda r, o, g: rnn_norm_penalty(r, o, g[1:]), ValueError, "must have the shape of the output"),
        (lambda r, o, g: rnn_norm_penalty(nn.RNN(3, 6), o, g), ValueError, r"\(.., 6\), got"),
        (lambda r, o, g: gradient_norm_penalty(o, g[1:]), ValueError, "must have one shape"),
        (lambda r, o, g: gradient_norm_penalty(o.long(), g), TypeError, "floating tensors, got torch.int64"),
        (
            lambda r, o, g: recurrent_norm_penalty(lambda h: h, o, g[1:]),
            ValueError,
            "states and grads must have one",
        ),
        (
            lambda r, o, g: recurrent_norm_penalty(lambda h: h[:1], o, g),
            ValueError,
            "step must keep the shape",
        ),
    ],
)
def test_bad_input(call, error, message):
    rnn, x, target = problem()
    with pytest.raises(error, match=message):
        call(rnn, rnn(x)[0], target)
