"""What a recurrent layer of torch does around its cell: layers, directions, packed and unbatched input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

State = tuple[Tensor, ...]  # (h,) of a GRU, (h, c) of an LSTM
Step = Callable[[Tensor, State, int], State]  # one step: input of the sequences that are left, state, step
Run = Callable[[Tensor, list[int], State, str], tuple[Tensor, State]]  # one direction of one layer


class SequenceLayer(nn.RNNBase):
    """The call of ``nn.LSTM`` and ``nn.GRU`` for a cell in Python.

    Sequences are kept flat and in the order of time, as in a `PackedSequence`: rows ``sum(sizes[:t])`` to
    ``sum(sizes[:t + 1])`` are step t of the ``sizes[t]`` sequences that are at least so long. A subclass says
    in ``_run`` how one direction of one layer maps them. It is no subclass of ``nn.LSTM``, which torch.compile
    refuses to look into.
    """

    def _run(self, x: Tensor, sizes: list[int], state: State, suffix: str) -> tuple[Tensor, State]:
        raise NotImplementedError

    def _named(self, suffix: str, *names: str) -> tuple[Any, ...]:
        """The parameters of one direction of one layer; None for those it has not."""
        return tuple(getattr(self, name + suffix, None) for name in names)

    def _unroll(self, x: Tensor, sizes: list[int], state: State) -> tuple[Tensor, State]:
        return self._stack(self._run, x, sizes, state)

    def _stack(self, run: Run, x: Tensor, sizes: list[int], state: State) -> tuple[Tensor, State]:
        """All layers and directions; the last state of each, stacked as torch stacks it."""
        directions = 2 if self.bidirectional else 1
        last: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for direction in range(directions):
                own = tuple(s[len(last)] for s in state)
                if direction:
                    y, own = run(turned(x, sizes), sizes, own, f"_l{layer}_reverse")
                    y = turned(y, sizes)
                else:
                    y, own = run(x, sizes, own, f"_l{layer}")
                outputs.append(y)
                last.append(own)
            x = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
        return x, tuple(torch.stack(s) for s in zip(*last, strict=True))

    def forward(self, input, hx=None):  # type: ignore[no-untyped-def]
        if isinstance(input, PackedSequence):
            x, batch_sizes, order, back = input
            self._check_values(x, 2)
            sizes = batch_sizes.tolist()  # lies on the CPU: no host sync
            state = self._initial(x, sizes[0], hx, order)
            y, state = self._unroll(x, sizes, state)
            if back is not None:
                state = tuple(s.index_select(1, back) for s in state)
            return PackedSequence(y, batch_sizes, order, back), self._as_hidden(state)
        if not isinstance(input, Tensor) or input.dim() not in (2, 3):
            what = f"{input.dim()} dimensions" if isinstance(input, Tensor) else type(input).__name__
            raise ValueError(
                f"input must be (T, B, input_size), (B, T, input_size) with batch_first, (T, input_size), "
                f"or a PackedSequence; got {what}"
            )
        batched, batch_first = input.dim() == 3, self.batch_first and input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if batch_first else x
        self._check_values(x, 3)
        length, batch, _ = x.shape
        if length == 0:
            raise ValueError(
                f"input has no time step: shape {tuple(input.shape)}, batch_first={self.batch_first}"
            )
        if hx is not None and not batched:
            hx = hx.unsqueeze(1) if isinstance(hx, Tensor) else tuple(h.unsqueeze(1) for h in hx)
        state = self._initial(x, batch, hx, None)
        y, state = self._unroll(x.flatten(0, 1), [batch] * length, state)
        y = y.unflatten(0, (length, batch))
        y = y.transpose(0, 1) if batch_first else y
        if not batched:
            return y.squeeze(1), self._as_hidden(tuple(s.squeeze(1) for s in state))
        return y, self._as_hidden(state)

    def _check_values(self, x: Tensor, dims: int) -> None:
        if x.dim() != dims or x.shape[-1] != self.input_size:
            raise ValueError(
                f"the last dimension of input must be input_size = {self.input_size}, got shape {tuple(x.shape)}"
            )
        weight = self.weight_ih_l0
        if x.dtype != weight.dtype and not _autocast(x):
            raise ValueError(
                f"input has dtype {x.dtype} and the layer {weight.dtype}: convert one of them, "
                f"input.to({weight.dtype}) or layer.to({x.dtype})"
            )

    def _widths(self) -> tuple[int, ...]:
        """Widths of the parts of the state: h, and c of an LSTM."""
        h = self.proj_size or self.hidden_size
        return (h, self.hidden_size) if self.mode == "LSTM" else (h,)

    def _initial(
        self, x: Tensor, batch: int, hx: Tensor | Sequence[Tensor] | None, order: Tensor | None
    ) -> State:
        """``hx`` checked and sorted as the input is, or zeros."""
        directions = 2 if self.bidirectional else 1
        shapes = [(self.num_layers * directions, batch, width) for width in self._widths()]
        if hx is None:
            return tuple(torch.zeros(shape, dtype=x.dtype, device=x.device) for shape in shapes)
        given = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        got = [tuple(h.shape) for h in given]
        if got != shapes:
            want = ", ".join(str(s) for s in shapes)
            raise ValueError(
                f"hx must have shape {want} (layers * directions, batch, width; no batch dimension for "
                f"unbatched input), got {', '.join(str(s) for s in got)}"
            )
        return given if order is None else tuple(h.index_select(1, order) for h in given)

    def _as_hidden(self, state: State) -> Tensor | State:
        return state if self.mode == "LSTM" else state[0]


def unroll(step: Step, inputs: Sequence[Tensor], state: State) -> tuple[Tensor, State]:
    """Run a step over time; a sequence that ends leaves with the state of its last step."""
    outputs, ended = [], []
    for t, x in enumerate(inputs):
        left = x.shape[0]
        if left < state[0].shape[0]:
            ended.append(tuple(s[left:] for s in state))
            state = tuple(s[:left] for s in state)
        state = step(x, state, t)
        outputs.append(state[0])
    parts = [state, *reversed(ended)]
    return torch.cat(outputs), tuple(torch.cat(s) for s in zip(*parts, strict=True))


def turned(x: Tensor, sizes: list[int]) -> Tensor:
    """Every sequence reversed within its own length; twice gives the input back."""
    if sizes[0] == sizes[-1]:
        return x.unflatten(0, (len(sizes), sizes[0])).flip(0).flatten(0, 1)
    batch_sizes = torch.tensor(sizes)
    start = batch_sizes.cumsum(0) - batch_sizes
    step = torch.arange(len(sizes)).repeat_interleave(batch_sizes)
    sequence = torch.arange(x.shape[0]) - start[step]
    lengths = (batch_sizes.unsqueeze(1) > torch.arange(sizes[0])).sum(0)
    return x[(start[lengths[sequence] - 1 - step] + sequence).to(x.device)]


def lstm_state(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Output gate and new cell of an LSTM from its four gates before their activations, in torch's order."""
    i, f, g, o = gates.chunk(4, -1)
    return o.sigmoid(), f.sigmoid() * c + i.sigmoid() * g.tanh()


def _autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)
