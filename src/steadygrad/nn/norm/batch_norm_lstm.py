"""LSTM with batch normalisation inside its recurrence, with statistics for every time step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from steadygrad.nn.norm._parameters import add_norms, checked_eps, reset_norms, suffixes
from steadygrad.nn.norm._sequence import SequenceLayer, State, lstm_state, unroll
from steadygrad.nn.norm._statistics import all_finite, batch_statistics, learn_, snapshot, unbiased

SITES = ("ih", "hh", "c")  # what is normalised: input sums, hidden sums, cell
Record = dict[str, list[tuple[Tensor, Tensor]]]  # site and suffix -> mean and variance of each step


class BatchNormLSTM(SequenceLayer):
    """An LSTM whose sums are batch-normalised, with statistics of its own for every time step.

        (i, f, g, o)_t = BN_t(W_ih x_t; a_ih) + b_ih + BN_t(W_hh h_(t-1); a_hh) + b_hh
        c_t = sigmoid(f_t) * c_(t-1) + sigmoid(i_t) * tanh(g_t)
        h_t = sigmoid(o_t) * tanh(BN_t(c_t; a_c) + b_c)

    BN_t takes mean and variance over the batch at step t, in evaluation the running ones of step t; the gains
    a and the biases are the same at all steps. The gains start at 0.1: at 1 tanh and sigmoid saturate and the
    gradient vanishes through time. c is carried on unnormalised.

    When to use it: sequences of about the same length, in batches of some dozens or more, that start from
    h_0 = 0: classification of sequences, reading. For small batches, for states handed over from call to
    call, and for text written a token at a time take `LayerNormLSTM`.

    Limits: t counts from the start of the call. A call that goes on from an earlier one's state meets the statistics
    of the first steps, which in a run from h_0 = 0 have next to no variance. Sequences of fewer than two
    in a step (the tail of a packed batch) have no variance: the running statistics normalise them and learn
    nothing from them. While all sequences are the same (the black pixels above a digit) there is no variance either:
    each step multiplies the gradient by gain / sqrt(eps), 32, and after some dozens of steps it is inf or nan. As
    the paper does, start such sequences from noise: ``lstm(x, (0.1 * torch.randn(shape), torch.zeros(shape)))``.

    Values in use: gain 0.1; ``max_length`` the longest training sequence, 784 for pixels of MNIST, 100 for
    characters of Penn Treebank (the paper); eps 1e-5 and momentum 0.1 (torch's batch norm).

    Cost: three norms over the batch a step, and a loop in Python instead of torch's fused kernel: six times the
    time of ``nn.LSTM`` on one CPU core (100 steps, batch 32, width 128); on a GPU, not measured, more;
    ``max_length`` x 18 x hidden_size numbers for each direction of each layer.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device,
            dtype: as in ``nn.LSTM``.
        max_length: steps with statistics of their own, >= 1. Later steps take the batch's in training and the
            last step's that was trained in evaluation, as do all steps later than any in training.
        eps: added to the variance under the root, > 0.
        momentum: weight of a new batch in the running statistics, 0 to 1; None for the plain average.
        gain_init: first value of the gains, finite.

    Parameters have torch's names; the norms add ``norm_weight_ih_l0``, ``norm_weight_hh_l0``, ``norm_weight_c_l0`` and
    ``norm_bias_c_l0``, and buffers ``running_mean_ih_l0`` and so on, a row for each step. The backward direction counts
    its steps from each sequence's own end. Called and answering as ``nn.LSTM``; the padding of a
    PackedSequence enters no statistics.

    Empty, zero, inf, nan: a batch of 0 gives a batch of 0 and teaches nothing; no time step, and a single sequence in
    training, are a ValueError. An inf or nan anywhere makes its steps nan, and the whole batch leaves all
    running statistics bit for bit as they were.

    Example:
        >>> lstm = BatchNormLSTM(3, 4, max_length=5)
        >>> output, (h, c) = lstm(torch.randn(5, 8, 3))
        >>> tuple(output.shape), lstm.num_batches_tracked.tolist()
        ((5, 8, 4), [1, 1, 1, 1, 1])

    Source: Cooijmans, Ballas, Laurent, Gülçehre & Courville (2017), the batch-normalised LSTM,
    https://arxiv.org/abs/1603.09025
    """

    num_batches_tracked: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        max_length: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        gain_init: float = 0.1,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device=device,
            dtype=dtype,
        )
        if max_length < 1:
            raise ValueError(
                f"max_length must be at least 1, got {max_length}: the longest training sequence"
            )
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be between 0 and 1, or None for the average, got {momentum}")
        if not abs(gain_init) < float("inf"):
            raise ValueError(f"gain_init must be finite, got {gain_init}")
        self.max_length, self.momentum, self.gain_init = max_length, momentum, gain_init
        self.eps = checked_eps(eps)
        for suffix in suffixes(self):
            add_norms(self, 4 * hidden_size, hidden_size, bias, suffix, device, dtype)
            for site in SITES:
                shape = (max_length, hidden_size if site == "c" else 4 * hidden_size)
                for kind in ("mean", "var"):
                    buffer = torch.empty(shape, device=device, dtype=dtype)
                    self.register_buffer(f"running_{kind}_{site}{suffix}", buffer)
        counts = torch.empty(max_length, device=device, dtype=torch.long)
        self.register_buffer("num_batches_tracked", counts)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights as torch draws them, gains ``gain_init``, biases 0, no statistics."""
        super().reset_parameters()
        if hasattr(self, "num_batches_tracked"):  # torch calls this before there are norms
            reset_norms(self, self.gain_init)
            self.reset_running_stats()

    def reset_running_stats(self) -> None:
        """Forget the running statistics: mean 0, variance 1, of no batch."""
        for name, buffer in self.named_buffers(recurse=False):
            buffer.fill_(1 if name.startswith("running_var") else 0)

    def _unroll(self, x: Tensor, sizes: list[int], state: State) -> tuple[Tensor, State]:
        if self.training and sizes[0] == 1:
            raise ValueError(
                "one sequence has no batch statistics: train with two or more, call eval(), or take LayerNormLSTM"
            )
        record: Record = {}
        places = self._places(len(sizes), x.device)

        def run(x: Tensor, sizes: list[int], state: State, suffix: str) -> tuple[Tensor, State]:
            return self._direction(x, sizes, state, suffix, places, record)

        out = self._stack(run, x, sizes, state)
        if record:
            self._learn(record, sizes)
        return out

    def _places(self, length: int, device: torch.device) -> Tensor:
        """The row of the running statistics for each step: its own, or the last that was trained."""
        trained = (self.num_batches_tracked > 0).sum() - 1
        return torch.arange(length, device=device).minimum(trained.clamp(min=0))

    def _direction(
        self, x: Tensor, sizes: list[int], state: State, suffix: str, places: Tensor, record: Record
    ) -> tuple[Tensor, State]:
        weight_ih, weight_hh, bias_ih, bias_hh, bias_c, weight_hr = self._named(
            suffix, "weight_ih", "weight_hh", "bias_ih", "bias_hh", "norm_bias_c", "weight_hr"
        )

        known = {}
        if not self.training or sizes[-1] < 2:
            for site in SITES:
                mean, var = self._named(f"_{site}{suffix}", "running_mean", "running_var")
                known[site] = snapshot(mean.index_select(0, places), var.index_select(0, places))

        def norm(x: Tensor, site: str, t: int, bias: Tensor | None) -> Tensor:
            gain = getattr(self, f"norm_weight_{site}{suffix}")
            if self.training and x.shape[0] > 1:
                mean, var = batch_statistics(x, (0,))
                if t < self.max_length:
                    count = x.shape[0]
                    found = (mean.detach(), unbiased(var.detach(), count))
                    record.setdefault(site + suffix, []).append(found)
            else:
                mean, var = known[site][0][t], known[site][1][t]
            out = (x - mean) * (var + self.eps).rsqrt() * gain
            return out if bias is None else out + bias

        def step(x_sums: Tensor, state: State, t: int) -> State:
            h, c = state
            gates = norm(x_sums, "ih", t, bias_ih) + norm(F.linear(h, weight_hh), "hh", t, bias_hh)
            out, c = lstm_state(gates, c)
            h = (out * norm(c, "c", t, bias_c).tanh()).to(h.dtype)  # c stays in float32 until the end
            return (h if weight_hr is None else F.linear(h, weight_hr)), c

        y, (h, c) = unroll(step, F.linear(x, weight_ih).split(sizes), state)
        return y, (h, c.to(state[1].dtype))

    @torch.no_grad()
    def _learn(self, record: Record, sizes: list[int]) -> None:
        """Take the batch into the running statistics of its steps, all of it or nothing."""
        found = {
            name: [torch.cat(values) for values in zip(*steps, strict=True)] for name, steps in record.items()
        }
        learn = all_finite([t for pair in found.values() for t in pair])
        steps = min(sum(n > 1 for n in sizes), self.max_length)
        counts = self.num_batches_tracked[:steps]
        momentum: Tensor | float
        if self.momentum is None:
            momentum = (1 / (counts + 1.0)).unsqueeze(1)
        else:
            momentum = self.momentum
        for name, (mean, var) in found.items():
            learn_(getattr(self, f"running_mean_{name}")[:steps], mean, momentum, learn)
            learn_(getattr(self, f"running_var_{name}")[:steps], var, momentum, learn)
        counts.add_(learn)

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, max_length={self.max_length}, eps={self.eps}, momentum={self.momentum}, "
            f"gain_init={self.gain_init}"
        )
