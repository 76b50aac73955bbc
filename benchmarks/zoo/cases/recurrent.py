"""Recurrent nets: states and gradients that grow or vanish through time, raw series, sums over time steps."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from numpy.random import RandomState
from torch import nn
from torch.optim import SGD, Adam, RMSprop

from benchmarks.zoo.family import failing
from benchmarks.zoo.parts import (
    Recurrent,
    cross_entropy,
    eval_loss,
    integer,
    log_uniform,
    recent_sum,
    regression,
    squared_error,
    tokens,
    unexplained,
    uniform,
)
from benchmarks.zoo.parts_sequences import (
    CellLoop,
    EulerODE,
    MatrixLoop,
    SharedLayer,
    first_sign,
    waves,
)
from benchmarks.zoo.training import Training

RELU_RNN = partial(nn.RNN, nonlinearity="relu")


def regress(model, optimizer, data, seed, steps, target, **more) -> Training:
    """Squared error, scored by the share of the targets' variance that is left."""
    return Training(
        model=model,
        optimizer=optimizer,
        loss=squared_error,
        batch=data.batches(seed, 32),
        steps=steps,
        score=unexplained(model, data),
        target=target,
        **more,
    )


@failing("recurrent_growth", net="rnn")
def rnn_relu_sgd(random: RandomState, seed: int, fixed: bool) -> Training:
    """The state of a ReLU net grows from step to step."""
    length, gain = integer(random, 60, 100), uniform(random, 1.3, 1.6)
    model = Recurrent(2, 32, 1, RELU_RNN, gain=0.8 if fixed else gain)
    data = recent_sum(seed, length)
    optimizer = SGD(model.parameters(), lr=0.02)
    return regress(
        model, optimizer, data, seed, 150, 0.4, where="rnn", facts={"length": length, "gain": gain}
    )


@failing("recurrent_growth", net="rnn", blind=True)
def rnn_tanh_adam(random: RandomState, seed: int, fixed: bool) -> Training:
    """Chaotic: the gradient grows through time, the state cannot."""
    length, gain = integer(random, 60, 100), uniform(random, 2.5, 4.0)
    model = Recurrent(2, 48, 1, nn.RNN, gain=0.8 if fixed else gain)
    data = recent_sum(seed, length)
    optimizer = Adam(model.parameters(), lr=3e-3)
    return regress(
        model, optimizer, data, seed, 150, 0.4, where="rnn", facts={"length": length, "gain": gain}
    )


@failing("recurrent_growth", net="rnn")
def rnn_cell_loop(random: RandomState, seed: int, fixed: bool) -> Training:
    length, gain = integer(random, 60, 80), uniform(random, 1.6, 2.0)
    model = CellLoop(32, 0.6 if fixed else gain, "relu")
    data = recent_sum(seed, length)
    optimizer = RMSprop(model.parameters(), lr=1e-3)
    return regress(
        model, optimizer, data, seed, 150, 0.4, where="cell", facts={"length": length, "gain": gain}
    )


@failing("recurrent_growth", net="rnn")
def recurrence_by_hand(random: RandomState, seed: int, fixed: bool) -> Training:
    length, gain = integer(random, 50, 80), uniform(random, 2.5, 4.0)
    model = MatrixLoop(48, 0.8 if fixed else gain)
    data = recent_sum(seed, length)
    optimizer = SGD(model.parameters(), lr=0.03)
    return regress(model, optimizer, data, seed, 200, 0.4, where="u", facts={"length": length, "gain": gain})


@failing("recurrent_growth", net="mlp", blind=True)
def shared_layer_repeated(random: RandomState, seed: int, fixed: bool) -> Training:
    times, gain = integer(random, 25, 40), uniform(random, 1.8, 2.4)
    model = SharedLayer(48, times, 1.3 if fixed else gain)
    data = regression(seed)
    optimizer = Adam(model.parameters(), lr=1e-3)
    return regress(model, optimizer, data, seed, 250, 0.3, where="step", facts={"times": times, "gain": gain})


@failing("recurrent_growth", "saturation", net="rnn")
def lstm_recurrent_weights(random: RandomState, seed: int, fixed: bool) -> Training:
    """Gates that are always fully open or shut, switched by the smallest change of the state."""
    length, gain = integer(random, 30, 50), uniform(random, 25.0, 60.0)
    model = Recurrent(2, 32, 1, nn.LSTM, gain=1.0 if fixed else gain)
    data = recent_sum(seed, length)
    optimizer = Adam(model.parameters(), lr=5e-3)
    return regress(
        model, optimizer, data, seed, 150, 0.4, where="rnn", facts={"length": length, "gain": gain}
    )


@failing("recurrent_growth", net="ode", blind=True)
def neural_ode(random: RandomState, seed: int, fixed: bool) -> Training:
    """A field that pushes every state away from where it is, followed for a long time."""
    time, growth = uniform(random, 4.0, 7.0), uniform(random, 1.5, 3.0)
    model = EulerODE(32, 40, 1.0 if fixed else time, 0.1 if fixed else growth)
    data = regression(seed)
    optimizer = Adam(model.parameters(), lr=3e-3)
    return regress(
        model, optimizer, data, seed, 250, 0.3, where="field", facts={"time": time, "growth": growth}
    )


@failing("vanishing", net="rnn")
def rnn_forgets(random: RandomState, seed: int, fixed: bool) -> Training:
    """What matters lies so far back that neither state nor gradient reaches it."""
    length, gain = integer(random, 25, 40), uniform(random, 0.2, 0.4)
    model = Recurrent(2, 32, 1, nn.RNN, gain=1.0 if fixed else gain)
    data = first_sign(seed, length)
    optimizer = Adam(model.parameters(), lr=1e-3)
    return regress(
        model, optimizer, data, seed, 250, 0.4, where="rnn", facts={"length": length, "gain": gain}
    )


@failing("unscaled_inputs", "saturation", net="rnn")
def rnn_raw_series(random: RandomState, seed: int, fixed: bool) -> Training:
    """A series as it was logged: far from 0, with a large spread."""
    level, scale = log_uniform(random, 300, 3000), log_uniform(random, 30, 100)
    data = waves(seed, 20).map(x=None if fixed else lambda x: scale * x + level)
    model = Recurrent(1, 32, 1, nn.RNN, gain=0.9)
    optimizer = Adam(model.parameters(), lr=3e-3)
    return regress(model, optimizer, data, seed, 200, 0.2, facts={"level": level, "scale": scale})


@failing("unscaled_targets", net="rnn")
def lstm_raw_targets(random: RandomState, seed: int, fixed: bool) -> Training:
    """Targets in the unit they came in: the outputs would need thousands of steps to get there, or overshoot."""
    scale = log_uniform(random, 300, 3000)
    data = waves(seed, 20).map(y=None if fixed else lambda y: scale * y)
    model = Recurrent(1, 32, 1, nn.LSTM)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    return regress(model, optimizer, data, seed, 200, 0.2, facts={"scale": scale})


@failing("loss_reduction", net="rnn")
def char_rnn_sum(random: RandomState, seed: int, fixed: bool) -> Training:
    """The loss added up over time steps, averaged over sequences only, at a rate that suits the mean."""
    length, rate = integer(random, 40, 60), uniform(random, 1.0, 1.5)
    data = tokens(seed, length)
    embedding = nn.Embedding(16, 24)
    model = nn.Sequential(embedding, Recurrent(24, 48, 16, nn.RNN, gain=0.9, every_step=True))

    def summed(model, batch):
        x, y = batch
        logits = model(x)
        return sum(F.cross_entropy(logits[:, t], y[:, t]) for t in range(y.shape[1]))

    return Training(
        model=model,
        optimizer=SGD(model.parameters(), lr=rate),
        loss=cross_entropy if fixed else summed,
        batch=data.batches(seed, 32),
        steps=150,
        score=eval_loss(model, cross_entropy, data),
        target=1.6,
        facts={"length": length, "lr": rate},
    )


@failing("momentum_too_large", net="rnn")
def gru_momentum(random: RandomState, seed: int, fixed: bool) -> Training:
    momentum, rate = uniform(random, 0.992, 0.997), uniform(random, 0.03, 0.06)
    data = recent_sum(seed, 20)
    model = Recurrent(2, 32, 1, nn.GRU)
    optimizer = SGD(model.parameters(), lr=rate, momentum=0.5 if fixed else momentum)
    return regress(model, optimizer, data, seed, 200, 0.4, facts={"momentum": momentum, "lr": rate})


@failing("lr_too_large", net="rnn", blind=True)
def lstm_adam_rate(random: RandomState, seed: int, fixed: bool) -> Training:
    rate = log_uniform(random, 0.5, 3.0)
    data = recent_sum(seed, 20)
    model = Recurrent(2, 32, 1, nn.LSTM)
    optimizer = Adam(model.parameters(), lr=5e-3 if fixed else rate)
    return regress(model, optimizer, data, seed, 200, 0.4, facts={"lr": rate})
