"""Which slices of an optimizer's parameters are looked at in which step: equal parts of all elements."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from steadygrad.probe.local import readable

PIECES_PER_PART = (
    4  # a tensor is cut into pieces of at most 1/4 of a part: no part is over 1.25 times its share
)
SMALL = 262_144  # elements of a net whose parts take less to read than to begin with
SMALLEST_CUT = 8192  # elements; a tensor smaller than this is never cut
OVERHEAD = 8192  # elements that are read in the time that the calls for one more tensor take, roughly


PLAIN = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


def at_hand(tensor: Any) -> Tensor | None:
    """As :func:`~steadygrad.probe.local.readable`, but a plain tensor or parameter is handed back as it is.

    To be used without autograd, for a moment: what is handed back may ask for gradients.
    """
    if (
        (type(tensor) is Tensor or type(tensor) is Parameter)
        and tensor.dtype in PLAIN
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and not tensor.is_nested
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    ):
        return tensor
    return readable(tensor)


@dataclass
class Piece:
    """A slice of one parameter, looked at in one step of the rotation."""

    position: int  # of the parameter
    shape: torch.Size  # of the whole parameter, as it can be read here
    dtype: torch.dtype
    device: torch.device
    dim: int
    start: int
    length: int
    first: bool  # the first piece of its parameter
    rows: int = 0  # of the slice that are compared in a step
    numel: int = 0  # of the slice
    old: Tensor = field(default_factory=lambda: torch.empty(0))  # room for those rows before the step

    def matches(self, whole: Tensor | None) -> bool:
        """Whether a tensor has the shape of the parameter and lies beside it."""
        return whole is not None and whole.shape == self.shape and whole.device == self.device

    def of(self, whole: Tensor, most: int | None = None) -> Tensor:
        """The slice of a tensor that matches; of a large one the first rows: ``most`` elements, or one row."""
        length = self.length
        if most is not None and self.numel > most:
            length = max(1, most * self.length // self.numel)
        if not self.shape or length == self.shape[self.dim]:
            return whole
        return whole.narrow(self.dim, self.start, length)

    def share_of(self, whole: Tensor, k: int, of: int) -> Tensor:
        """The ``k``-th of so many shares of the slice: some of its rows, maybe none. All shares of a scalar are it."""
        if not self.shape or (of == 1 and self.length == self.shape[self.dim]):
            return whole
        start, end = self.length * k // of, self.length * (k + 1) // of
        return whole.narrow(self.dim, self.start + start, end - start)

    def read(self, param: Tensor) -> Tensor | None:
        """The slice of the parameter as it is now, None if it has moved or changed its shape or dtype."""
        whole = at_hand(param)
        if whole is None or whole.dtype != self.dtype or not self.matches(whole):
            return None
        return self.of(whole)

    def window(self, part: Tensor, turn: int) -> Tensor:
        """The rows of the slice that are compared in this turn: all of them, or in each turn the next ones."""
        if self.compared_whole:
            return part
        places = -(-self.length // self.rows)
        return part.narrow(self.dim, min(turn % places * self.rows, self.length - self.rows), self.rows)

    @property
    def compared_whole(self) -> bool:
        return self.rows == self.length

    def shape_of(self, rows: int) -> list[int]:
        """The shape of so many rows."""
        return [rows if d == self.dim else n for d, n in enumerate(self.shape)]

    @property
    def growth(self) -> float:
        """sqrt(elements of the parameter / elements of the piece)."""
        return math.sqrt(self.shape[self.dim] / self.length) if self.shape else 1.0


class Plan:
    """Which slices of an optimizer's parameters are looked at in which part of the rotation.

    Args:
        params: of one optimizer.
        num_parts: steps of a turn.
        begin: the step at which the first turn begins.
        end: the step from which on there is to be another plan.
        small_every: steps from one look to the next if the net is small; those between look at nothing.
        most_compared: elements whose update is taken in a step, roughly; None for all of the part.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        num_parts: int,
        *,
        begin: int = 0,
        end: float = math.inf,
        small_every: int = 1,
        most_compared: int | None = None,
    ) -> None:
        self.begin, self.end = begin, end
        self.params = list(params)
        self.trained = [p.requires_grad for p in params]
        self.parts: list[list[Piece]] = [[] for _ in range(num_parts)]
        wholes = [(i, readable(p)) for i, p in enumerate(params) if p.requires_grad]
        found = [(i, w) for i, w in wholes if w is not None and w.numel() > 0]
        # All tensors lie on one line, each as long as it costs; the line is cut into equal parts.
        width = sum(w.numel() + OVERHEAD for _, w in found) / num_parts
        at = 0.0
        for i, whole in found:
            cost = whole.numel() + OVERHEAD
            for piece, middle in _cut(i, whole, cost / width):
                part = min(int(at / width + middle * cost / width), num_parts - 1)
                _append(self.parts[part], piece)
            at += cost
        if sum(w.numel() for _, w in found) < SMALL and len(found) <= 2 * num_parts:
            self._join(small_every)
        for pieces in self.parts:
            _measure(pieces, most_compared)
        self._make_room()

    def turn(self, step: int) -> int:
        """How often all has been looked at when this step begins."""
        return (step - self.begin) // len(self.parts)

    def part(self, step: int) -> list[Piece]:
        """What this step looks at."""
        return self.parts[(step - self.begin) % len(self.parts)]

    def fits(self, params: Sequence[Tensor], step: int) -> bool:
        """Whether the plan still holds, as far as this step goes; the first of a turn stands for the whole plan."""
        if len(params) != len(self.params):
            return False
        if (step - self.begin) % len(self.parts) == 0:
            same = all(map(is_, params, self.params))
            return same and [p.requires_grad for p in params] == self.trained
        return all(
            params[piece.position] is self.params[piece.position] and params[piece.position].requires_grad
            for piece in self.part(step)
        )

    def _join(self, every: int) -> None:
        """Put the parts of so many steps into the first of them."""
        for i, part in enumerate(self.parts):
            if i % every:
                for piece in part:
                    _append(self.parts[i - i % every], piece)
                part.clear()

    def _make_room(self) -> None:
        """Buffers for the weights of one part, shared by all parts; low precision is kept in float32."""
        sizes: dict[tuple[torch.device, torch.dtype], int] = defaultdict(int)
        placed = []
        for part in self.parts:
            used: dict[tuple[torch.device, torch.dtype], int] = defaultdict(int)
            for piece in part:
                key = piece.device, torch.promote_types(piece.dtype, torch.float32)
                if piece.dtype.itemsize == 1:  # float8 does not promote
                    key = piece.device, torch.float32
                numel = math.prod(piece.shape_of(piece.rows))
                placed.append((piece, key, used[key], numel))
                used[key] += numel
            for key, size in used.items():
                sizes[key] = max(sizes[key], size)
        rooms = {key: torch.empty(size, device=key[0], dtype=key[1]) for key, size in sizes.items()}
        for piece, key, offset, numel in placed:
            piece.old = rooms[key][offset : offset + numel].view(piece.shape_of(piece.rows))


def _cut(position: int, whole: Tensor, share: float) -> Iterable[tuple[Piece, float]]:
    """Pieces of a tensor that costs ``share`` parts, each with the place of its middle in the tensor, in (0, 1)."""
    n = math.ceil(PIECES_PER_PART * share) if whole.numel() >= SMALLEST_CUT else 1
    dim = 0
    if whole.dim() and whole.shape[0] < 2 * n and whole.shape[0] % n:  # rows too coarse to cut evenly
        dim = max(range(whole.dim()), key=lambda d: whole.shape[d])
    rows = whole.shape[dim] if whole.dim() else 1
    n = min(n, rows)
    for k in range(n):
        start, end = rows * k // n, rows * (k + 1) // n
        piece = Piece(position, whole.shape, whole.dtype, whole.device, dim, start, end - start, first=k == 0)
        yield piece, (start + end) / 2 / rows


def _measure(part: list[Piece], most: int | None) -> None:
    """Say of each piece how large it is, and how much of it is compared in a step."""
    for piece in part:
        piece.numel = math.prod(piece.shape_of(piece.length))
    total = sum(piece.numel for piece in part)
    for piece in part:
        piece.rows = piece.length
        if most is not None and total > most and piece.shape:
            piece.rows = max(1, piece.length * most // total)


def _append(part: list[Piece], piece: Piece) -> None:
    """Add a piece to a part; it goes on from the last one if that is of the same tensor."""
    if part and part[-1].position == piece.position:
        part[-1].length += piece.length
    else:
        part.append(piece)
