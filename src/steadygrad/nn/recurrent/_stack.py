"""The call of ``nn.RNN`` that all recurrent layers here share: layers, directions, dropout, packed sequences."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from steadygrad._check import count


class Recurrence(nn.Module):
    """One layer in one direction: from (T, B, input) and a state (B, state) to all outputs and all states."""

    state_size: int
    output_size: int

    def state_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """dtype of the state for an input of some dtype."""
        return dtype

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def reset_parameters(self) -> None:
        raise NotImplementedError


class RecurrentStack(nn.Module):
    """Layers of recurrences, called as ``nn.RNN`` is."""

    def __init__(
        self,
        make: Callable[[int], Recurrence],  # from the width of what a layer is given
        input_size: int,
        num_layers: int,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
    ) -> None:
        super().__init__()
        self.input_size = count("input_size", input_size)
        self.num_layers = count("num_layers", num_layers)
        if not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be between 0 and 1, got {dropout}")
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                f"dropout {dropout} acts between layers, and there is only one: it does nothing", stacklevel=3
            )
        self.batch_first, self.dropout, self.bidirectional = batch_first, float(dropout), bidirectional
        self.layers = nn.ModuleList()
        width = input_size
        for _ in range(num_layers):
            directions = [make(width) for _ in range(self.num_directions)]
            self.layers.extend(directions)
            width = directions[0].output_size * self.num_directions
        first = directions[0]
        self.state_size, self.output_size = first.state_size, width
        self.reset_parameters()

    @property
    def num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    def reset_parameters(self) -> None:
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]

    def flatten_parameters(self) -> None:
        """Does nothing: there is no fused kernel to gather weights for. For code written for ``nn.RNN``."""

    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        if isinstance(input, PackedSequence):
            self._check_features(input.data)
            x, lengths = pad_packed_sequence(input)
            output, h_n = self._run(x, self._initial(x, hx), lengths.to(x.device))
            in_order = input.sorted_indices is None
            return pack_padded_sequence(output, lengths, enforce_sorted=in_order), h_n
        if not isinstance(input, Tensor) or input.dim() not in (2, 3):
            given = f"shape {tuple(input.shape)}" if isinstance(input, Tensor) else type(input).__name__
            raise ValueError(f"input must be a tensor of 2 or 3 dimensions or a PackedSequence, got {given}")
        self._check_features(input)
        batched = input.dim() == 3
        if not batched:
            x = input.unsqueeze(1)
            hx = hx.unsqueeze(1) if hx is not None else None
        else:
            x = input.transpose(0, 1) if self.batch_first else input
        output, h_n = self._run(x, self._initial(x, hx), None)
        if not batched:
            return output.squeeze(1), h_n.squeeze(1)
        return (output.transpose(0, 1) if self.batch_first else output), h_n

    def _check_features(self, x: Tensor) -> None:
        if x.shape[-1] != self.input_size:
            raise ValueError(
                f"input must have {self.input_size} features in its last dimension, got shape {tuple(x.shape)}"
            )

    def _initial(self, x: Tensor, hx: Tensor | None) -> Tensor:
        shape = (len(self.layers), x.shape[1], self.state_size)
        dtype = self.layers[0].state_dtype(x.dtype)  # type: ignore[operator]
        if hx is None:
            return torch.zeros(shape, dtype=dtype, device=x.device)
        if tuple(hx.shape) != shape:
            raise ValueError(
                f"hx must have shape (num_layers * num_directions, batch, state) = {shape}, got {tuple(hx.shape)}"
            )
        return hx.to(dtype)

    def _run(self, x: Tensor, hx: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        last_states = []
        for i in range(0, len(self.layers), self.num_directions):
            if i > 0:
                x = F.dropout(x, self.dropout, self.training)
            sides = []
            for direction in range(self.num_directions):
                turned = _reversed(x, lengths) if direction else x
                outputs, states = self.layers[i + direction](turned, hx[i + direction])
                sides.append(_reversed(outputs, lengths) if direction else outputs)
                last_states.append(_last(states, hx[i + direction], lengths))
            x = torch.cat(sides, -1) if len(sides) > 1 else sides[0]
        return x, torch.stack(last_states)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.layers[0].output_size}"
        for name, default in (
            ("num_layers", 1),
            ("batch_first", False),
            ("dropout", 0.0),
            ("bidirectional", False),
        ):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text


def _reversed(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Each sequence turned round within its own length; padding stays where it is."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(x.shape[0], device=x.device)[:, None]
    index = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x.gather(0, index[..., None].expand_as(x))


def _last(states: Tensor, initial: Tensor, lengths: Tensor | None) -> Tensor:
    if states.shape[0] == 0:
        return initial
    if lengths is None:
        return states[-1]
    index = (lengths - 1)[None, :, None].expand(1, -1, states.shape[-1])
    return states.gather(0, index)[0]


def unroll(step: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, state: Tensor) -> Tensor:
    """The states of all steps of ``state = step(input, state)``."""
    states = []
    for x in inputs.unbind(0):
        state = step(x, state)
        states.append(state)
    return torch.stack(states) if states else inputs.new_empty((0, *state.shape))
