"""Copies of the trained weights that follow them: target networks and averages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.weak import TensorWeakRef

from steadygrad.probe.local import readable
from steadygrad.probe.names import find_roots, flat_params, walk
from steadygrad.records import NAN, Oddity

FIRST_LOOKS = (4, 5, 19)  # two in a row tell an average, which moves every step, from a copy, which does not
EVERY = 50  # steps between later looks
MOST_LOOKS = 60
PAIRS = 8
MOST_ELEMENTS = 10_000_000
SAMPLE = 4096  # values of each tensor that are compared
ALIKE = 0.9  # cosine
ON_THE_LINE = 0.05  # what is off the line, relative to the move
CERTAIN = 2  # moves
STRAYED = 2  # moves off the line, after which weights are no copy

Kind = Literal["none", "hard", "ema"]


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What follows the trained weights, and how."""

    target_network: Kind
    copy_every: float = NAN  # steps from one move to the next; nan if not known
    rate: float = NAN  # share of the way to the trained weights that one move takes; 1 for a copy
    where: tuple[str, ...] = ()  # names of the copies that were seen to follow


@dataclass(frozen=True)
class _Move:
    share: float  # of the way to the trained weights
    off: float  # what it went off that way, relative to its length
    alike: float  # cosine of the copy and the trained weights after it

    @property
    def on_the_line(self) -> bool:
        return self.off < ON_THE_LINE and 0 < self.share < 1.01

    @property
    def near(self) -> bool:
        return self.alike > ALIKE and self.share > 0


@dataclass
class _Pair:
    name: str  # of the copy
    copy: TensorWeakRef
    trained: TensorWeakRef
    last: Tensor | None = None  # sample of the copy at the last look
    version: int | None = None  # of the copy, then
    follows: bool = False  # a move of it was towards the trained weights
    strayed: int = 0  # moves that were not

    def move(self) -> _Move | None:
        """How the copy has moved since the last look; None if it has not, or is gone."""
        tensor = self.copy()
        copy, trained = _sample(tensor), _sample(self.trained())
        before, self.last = self.last, copy
        self.version = None if tensor is None else tensor._version
        if copy is None or trained is None or before is None or torch.equal(copy, before):
            return None
        move, way = copy - before, trained - before
        length = float(way.norm())
        if length == 0:
            return None
        share = float(move @ way) / length**2
        off = float((move - share * way).norm() / move.norm())
        return _Move(share, off, float(torch.cosine_similarity(copy, trained, dim=0)))

    def written(self) -> bool:
        """Whether the copy was written to since the last look."""
        copy = self.copy()
        return copy is not None and self.version is not None and copy._version != self.version


class MovingTarget:
    """Follows, by samples of a few large tensors, weights that nobody trains but that have trained twins.

    A twin has the same shape and the longest common end of its name (``target.0.weight``, ``net.0.weight``).
    Compared are at most 4096 values of at most 8 matrices, before the steps 4, 5, 19 and every 50th, and where the
    version counter of a copy says that it was written to; nothing more once it is decided. From look to look only
    our own samples are kept.

        ema    each move goes the same share of the way to the trained weights
        hard   a move lands on them

    Vectors are not compared, so running statistics are no copies; weights that never move (a frozen reference)
    are none either. An average that is only kept for evaluation looks the same as a target network. A write
    through ``.data`` does not count as one: such an average is found all the same, of such a copy ``copy_every``
    is not known. A copy that is built anew each time (``target = deepcopy(net)``) is not found.

    Example:
        >>> net, target = nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False)
        >>> optimizer, following = torch.optim.SGD(net.parameters(), lr=0.1), MovingTarget()
        >>> for step in range(20):
        ...     if following.due(step):
        ...         odd = following.look(step, [optimizer], [net, target])
        ...     net(torch.ones(1, 8)).sum().backward()
        ...     optimizer.step()
        ...     _ = target.weight.lerp_(net.weight.detach(), 0.25)
        >>> following.facts.target_network, following.facts.copy_every, round(following.facts.rate, 3)
        ('ema', 1.0, 0.25)
    """

    def __init__(self) -> None:
        self.facts = TargetFacts("none")
        self._pairs: list[_Pair] | None = None
        self._last_step = -2
        self._looks = 0
        self._exact: list[tuple[int, float]] = []  # step and share of moves that were seen when they happened
        self._loose: list[float] = []  # shares of moves that happened at some time between two looks
        self._stood_still = False

    def due(self, step: int) -> bool:
        """Whether to :meth:`look` before this step of the first optimizer."""
        if self.facts.target_network != "none" or self._looks >= MOST_LOOKS or self._pairs == []:
            return False
        return step in FIRST_LOOKS or (step > FIRST_LOOKS[-1] and step % EVERY == 0) or self._written()

    @torch.no_grad()
    def look(self, step: int, optimizers: Sequence[Optimizer], models: Sequence[nn.Module]) -> Oddity | None:
        """Compare the copies with the trained weights, before a step.

        Args:
            step: number of steps taken so far.
            optimizers: all of the run.
            models: those of the run; other modules in memory are found, at the first look.

        Returns:
            An oddity ``moving_target``, once, when it is certain.
        """
        self._looks += 1
        if self._pairs is None:
            self._pairs = _find_pairs(optimizers, [*models, *find_roots()])
        in_a_row = step == self._last_step + 1
        exact = in_a_row or self._written()
        self._last_step = step
        shares, moved = [], False
        for pair in self._pairs:
            move = pair.move()
            if move is None:
                continue
            moved = True
            if move.on_the_line if exact else move.near:
                pair.follows = True
                shares.append(move.share)
            else:
                pair.strayed += exact
        self._pairs = [pair for pair in self._pairs if pair.strayed < STRAYED]
        if shares and exact:
            self._exact.append((step, median(shares)))
        elif shares:
            self._loose.append(median(shares))
        self._stood_still |= in_a_row and not moved
        return self._decide()

    def _decide(self) -> Oddity | None:
        every, rate = NAN, NAN
        if len(self._exact) >= CERTAIN:
            (before, _), (after, _) = self._exact[-2:]
            every, rate = float(after - before), median(share for _, share in self._exact)
        elif self._exact and self._loose and not self._stood_still:
            every, rate = 1.0, self._exact[0][1]
        elif len(self._loose) >= CERTAIN and self._stood_still:
            rate = median(self._loose)
        else:
            return None
        kind: Kind = "hard" if rate > 0.5 else "ema"
        rate = 1.0 if kind == "hard" else rate
        names = tuple(pair.name for pair in self._pairs or () if pair.follows)
        self.facts = TargetFacts(kind, every, rate, names)
        self._pairs = []
        when = f"every {every:.0f} steps" if every == every else "from time to time"
        how = "is copied from them" if kind == "hard" else f"goes {rate:.2g} of the way to them"
        evidence = {"rate": rate, "hard": float(kind == "hard")}
        return Oddity(
            "moving_target",
            ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
            f"a copy of the trained weights {how} {when}",
            evidence | ({"copy_every": every} if every == every else {}),
        )

    def _written(self) -> bool:
        return any(pair.written() for pair in self._pairs or ())


def _sample(tensor: Tensor | None) -> Tensor | None:
    """Evenly spaced values of a tensor, as our own float64 vector on the host."""
    values = None if tensor is None else readable(tensor)
    if values is None:
        return None
    flat = values.reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE].to("cpu", torch.float64, copy=True)  # host sync


def _find_pairs(optimizers: Sequence[Optimizer], models: Sequence[nn.Module]) -> list[_Pair]:
    """The largest matrices that are not trained and have a trained twin, up to the bounds."""
    trained = {id(p) for optimizer in optimizers for p in flat_params(optimizer)}
    named = dict(_matrices(models))
    twins: dict[torch.Size, list[tuple[str, Tensor]]] = {}
    for tensor, name in named.items():
        if id(tensor) in trained:
            twins.setdefault(tensor.shape, []).append((name, tensor))
    pairs: list[_Pair] = []
    elements = 0
    for tensor, name in sorted(named.items(), key=lambda item: -item[0].numel()):
        if id(tensor) in trained or tensor.shape not in twins:
            continue
        if len(pairs) >= PAIRS or elements + tensor.numel() > MOST_ELEMENTS:
            continue
        _, twin = max(twins[tensor.shape], key=lambda other: _common_end(name, other[0]))
        pairs.append(_Pair(name, TensorWeakRef(tensor), TensorWeakRef(twin)))
        elements += tensor.numel()
    return pairs


def _matrices(models: Sequence[nn.Module]) -> Iterator[tuple[Tensor, str]]:
    for model in models:
        for path, module in walk(model):
            for name, tensor in _tensors(module):
                if not is_lazy(tensor) and tensor.dim() >= 2 and readable(tensor) is not None:
                    yield tensor, f"{path}.{name}".removeprefix(".")


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    try:
        return [(n, t) for n, t in (module._parameters | module._buffers).items() if t is not None]
    except Exception:  # noqa: BLE001 - a half-built or scripted foreign module
        return []


def _common_end(a: str, b: str) -> int:
    """Number of parts at the end that two dotted names have in common."""
    count = 0
    for x, y in zip(reversed(a.split(".")), reversed(b.split(".")), strict=False):
        if x != y:
            break
        count += 1
    return count
