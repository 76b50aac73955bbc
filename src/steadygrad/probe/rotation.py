"""A close look at a sixteenth of the weights each step: norms, updates, second moments, finiteness."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from steadygrad._foreach import copy_grouped_
from steadygrad.probe.look import Look, Opened, state_slices
from steadygrad.probe.moments import (
    LEAST,
    SAMPLE,
    Moment,
    normalised_gradients,
    second_moment,
)
from steadygrad.probe.slices import Piece, Plan, at_hand
from steadygrad.records import TensorStats

EARLY_TURNS = 2  # turns in which a net of many tensors is looked at as closely as one of few


class Rotation:
    """Looks at one part of an optimizer's weights each step, and at all of them in ``num_parts`` steps.

    The parts hold about equally many elements. A big tensor is cut along its first axis (along its longest where
    the first is short); of such a tensor a step sees one slice, and then

    - ``grad_max_abs``, ``update_ratio``, ``adam_rms`` and ``weight_finite`` are those of the slice,
    - ``weight_norm`` is the norm of the slice times sqrt(elements of the tensor / elements of the slice),
    - ``state_finite`` is that of one share in ``state_turns`` of the slice, another one in each turn. It is that of
      the whole slice where the weights are not finite: a step of Adam on a nan anywhere in its moments shows there
      at once.

    Every weight is looked at exactly once in ``num_parts`` steps, and every number of the state once in
    ``num_parts * state_turns`` steps. Which part a step looks at depends on the step
    and the shapes alone. A small model has steps in which nothing is looked at.

    What a look takes is bound by the number of tensors in all but the largest nets. With ``most_tensors`` a net of
    more than ``most_tensors * num_parts`` is looked at in smaller parts, of about so many tensors each, when its
    first two turns are over: a turn is then as many steps longer. In a small net (less than 262,144 elements in at most
    ``2 * num_parts`` tensors) the first call costs more than those behind it: with ``small_every`` such a net is looked
    at every so many steps, at as many parts together. To compare weights takes a copy of them and four reads: with
    ``most_compared`` a step does that for so many elements, some rows of each slice, in each turn the next ones. Then
    ``update_ratio`` is that of those rows; another weight that becomes nan in a step shows when it is next looked at.

        update_ratio = ||w_new - w_old|| / ||w_old||
        adam_rms     = sqrt(mean(g^2 / v_hat)),   v_hat = v / (1 - beta^t)

    with v and t as they are *after* the step, so that g is part of v: ``exp_avg_sq`` of the Adam family, and
    ``square_avg`` of RMSprop and Adadelta (corrected for its start at 0 in the same way, whatever the optimizer
    does). The mean goes over the elements whose v is above 0 (rows that never had a gradient do not count), in the
    first rows of the slice: 16,384 elements, or where a step looks at several tensors an equal share of that for
    each, at least 2048. It is nan for sparse gradients, for other optimizers, and where the step was not taken.

    Frozen parameters, and what cannot be read here (meta, quantised, empty, without floating values), are left
    out. Of a sharded parameter (DTensor) the part on this process is read. Complex numbers count as pairs of reals.

    Args:
        num_parts: steps in one turn, at least 1.
        state_turns: turns in which all of the optimizer's state is looked at, at least 1.
        most_tensors: that a step looks at, roughly, at least 1; None for as many as there are.
        small_every: steps from one look at a small net to the next, at least 1.
        most_compared: elements of which a step takes the update, roughly, at least 1; None for all that it looks at.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> w = torch.nn.Parameter(torch.full((4,), 2.0))
        >>> optimizer = torch.optim.SGD([w], lr=0.5)
        >>> w.grad = torch.ones(4)
        >>> rotation = Rotation(num_parts=1)
        >>> rotation.before(optimizer, [w], numbers=[0], step=0)
        >>> _ = optimizer.step()
        >>> [(s.grad_max_abs, s.weight_norm, s.update_ratio) for s in rotation.after(optimizer, applied=True)]
        [(1.0, 4.0, 0.25)]
    """

    def __init__(
        self,
        num_parts: int = 16,
        state_turns: int = 4,
        most_tensors: int | None = None,
        small_every: int = 1,
        most_compared: int | None = None,
    ) -> None:
        numbers = {
            "num_parts": num_parts,
            "state_turns": state_turns,
            "most_tensors": most_tensors,
            "small_every": small_every,
            "most_compared": most_compared,
        }
        for name, number in numbers.items():
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.num_parts = num_parts
        self.state_turns = state_turns
        self.most_tensors = most_tensors
        self.small_every = small_every
        self.most_compared = most_compared
        self._plans: WeakKeyDictionary[Optimizer, Plan] = WeakKeyDictionary()
        self._open: WeakKeyDictionary[Optimizer, Opened] = WeakKeyDictionary()

    def before(
        self,
        optimizer: Optimizer,
        params: Sequence[Tensor],
        numbers: Sequence[int],
        step: int,
        grad_scale: float = 1.0,
    ) -> None:
        """Read the gradients and keep the weights of this step's part. Nothing is copied to the host.

        Args:
            optimizer: about to step.
            params: its parameters.
            numbers: ``TensorStats.param`` of each.
            step: number of the step, which decides the part.
            grad_scale: the gradients are too large by this factor, and the optimizer will divide them itself.
        """
        self._open.pop(optimizer, None)  # of a step that raised
        plan = self._plans.get(optimizer)
        if plan is None or not plan.begin <= step < plan.end or not plan.fits(params, step):
            plan = self._new_plan(optimizer, params, step)
        if plan.part(step):
            self._look(optimizer, params, plan, numbers, step, grad_scale)

    def after(self, optimizer: Optimizer, applied: bool) -> tuple[TensorStats, ...]:
        """The numbers of this step's part, with one copy to the host. Empty without a :meth:`before`.

        Args:
            optimizer: has just stepped, or was kept from it.
            applied: whether the step was taken; if not, ``update_ratio`` and ``adam_rms`` are nan.
        """
        look = self.leave(optimizer, applied)
        return () if look is None else look.finish()

    def leave(self, optimizer: Optimizer, applied: bool) -> Look | None:
        """As :meth:`after`, with the numbers still on their way. None where there is nothing to look at."""
        seen = self._open.pop(optimizer, None)
        return None if seen is None else self._compare(optimizer, seen, applied)

    # Autograd is switched off only where there is something to read: in a small model most parts hold nothing.
    @torch.no_grad()
    def _look(
        self,
        optimizer: Optimizer,
        params: Sequence[Tensor],
        plan: Plan,
        numbers: Sequence[int],
        step: int,
        grad_scale: float,
    ) -> None:
        """The first half of a look at the pieces of this step, before it is taken."""
        pieces = plan.part(step)
        weights = [piece.read(params[piece.position]) for piece in pieces]
        if any(weight is None for weight in weights):  # moved, reshaped or cast in place
            plan = self._new_plan(optimizer, params, step)
            pieces = plan.part(step)
            weights = [piece.read(params[piece.position]) for piece in pieces]
        mine, most = [params[piece.position] for piece in pieces], max(LEAST, SAMPLE // max(1, len(pieces)))
        seen = self._open[optimizer] = Opened(list(pieces), mine, numbers, plan.turn(step), grad_scale, most)
        present = {i: weight for i, weight in enumerate(weights) if weight is not None}
        seen.read.add_norms("weight", present)  # brings the weights near: the copy comes after it
        windows = {i: pieces[i].window(weight, seen.turn) for i, weight in present.items()}
        copy_grouped_([pieces[i].old for i in present], list(windows.values()))
        seen.read.add_norms("window", {i: pieces[i].old for i in present if not pieces[i].compared_whole})
        for i, (piece, param) in enumerate(zip(pieces, mine, strict=True)):
            values, few = _gradient(piece, param.grad, most)
            if values is not None:
                seen.lows[i], seen.highs[i] = _extremes(values)
            if few is not None:  # the optimizer may divide in place, or not
                seen.grads[i] = few if grad_scale == 1.0 else few.to(piece.old.dtype) / grad_scale

    @torch.no_grad()
    def _compare(self, optimizer: Optimizer, seen: Opened, applied: bool) -> Look:
        """The second half, after the step."""
        pieces, read = seen.pieces, seen.read
        weights = [piece.read(param) for piece, param in zip(pieces, seen.params, strict=True)]
        states = [_state_of(optimizer, param) for param in seen.params]
        share = seen.turn % self.state_turns
        floats = {
            (i, k): t
            for i, piece in enumerate(pieces)
            for k, t in state_slices(piece, states[i], share, self.state_turns)
        }
        read.add_norms("state", floats)
        read.add("low", seen.lows)
        read.add("high", seen.highs)
        moments: dict[int, Moment] = {}
        if applied:
            _subtract_(pieces, weights, seen.turn)
            read.add_norms("update", {i: p.old for i, p in enumerate(pieces) if weights[i] is not None})
            moments = _read_moments(optimizer, seen, states)
        seen.grads.clear()  # or numbers that are on their way would keep gradients that nobody needs
        return Look(seen, weights, states, floats, moments, applied, read.post())

    def _new_plan(self, optimizer: Optimizer, params: Sequence[Tensor], step: int) -> Plan:
        """A plan for this step and those to come."""
        parts, begin, end = self.num_parts, 0, math.inf
        if self.most_tensors is not None:
            smaller = math.ceil(sum(p.requires_grad for p in params) / self.most_tensors)
            early = EARLY_TURNS * self.num_parts
            if smaller > parts and step < early:
                end = early
            elif smaller > parts:
                parts, begin = smaller, early
        plan = self._plans[optimizer] = Plan(
            params,
            parts,
            begin=begin,
            end=end,
            small_every=self.small_every,
            most_compared=self.most_compared,
        )
        return plan


def _read_moments(optimizer: Optimizer, seen: Opened, states: list[dict[str, Any]]) -> dict[int, Moment]:
    """Read what :func:`adam_rms` needs, for every piece that has a gradient and a second moment."""
    moments: dict[int, Moment] = {}
    groups: dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]] = defaultdict(list)
    group_of = _group_of(optimizer)
    for i, grad in seen.grads.items():
        piece = seen.pieces[i]
        moment = second_moment(group_of(seen.params[i]), states[i])
        average = at_hand(moment.average) if moment is not None else None
        if moment is not None and average is not None and piece.matches(average):
            moments[i] = moment
            groups[grad.device, piece.old.dtype].append((i, piece.of(average, seen.most)))
    for (_, dtype), entries in groups.items():
        places = [i for i, _ in entries]
        ratios, counts = normalised_gradients([seen.grads[i] for i in places], [v for _, v in entries], dtype)
        seen.read.add_norms("ratio", dict(zip(places, ratios, strict=True)))
        seen.read.add("count", dict(zip(places, counts, strict=True)))
    steps = {i: moment.step for i, moment in moments.items()}
    seen.read.add("step", {i: s.reshape(()) if isinstance(s, Tensor) else s for i, s in steps.items()})
    return moments


def _group_of(optimizer: Optimizer) -> Callable[[Tensor], dict[str, Any]]:
    """Gives the group that a parameter is in now: a wrapper may have split the groups for this step."""
    groups = optimizer.param_groups
    if len(groups) == 1:
        return lambda param: groups[0]
    owners = {id(p): group for group in groups for p in group["params"]}
    return lambda param: owners.get(id(param), groups[0])


def _gradient(piece: Piece, grad: Tensor | None, most: int) -> tuple[Tensor | None, Tensor | None]:
    """The slice of a gradient, and some of it. Of a sparse one all values count, wherever they are."""
    if grad is not None and grad.layout is torch.sparse_coo:
        return at_hand(grad.detach().coalesce().values()), None  # several entries for one row add up
    whole = at_hand(grad)
    return (
        (piece.of(whole), piece.of(whole, most))
        if whole is not None and piece.matches(whole)
        else (None, None)
    )


def _extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    if not values.numel():
        return values.new_zeros(()), values.new_zeros(())
    # A sixth of the time of norm(inf) on a CPU; nan stays nan. Float8 has no such reduction.
    return torch.aminmax(values.float() if values.dtype.itemsize == 1 else values)


def _subtract_(pieces: Sequence[Piece], weights: Sequence[Tensor | None], turn: int) -> None:
    """The kept weights become ``w_old - w_new``."""
    groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = defaultdict(
        lambda: ([], [])
    )
    for piece, weight in zip(pieces, weights, strict=True):
        if weight is not None:
            old, new = groups[weight.device, weight.dtype]
            old.append(piece.old)
            now = piece.window(weight, turn)
            new.append(now.float() if now.dtype.itemsize == 1 else now)
    for old, new in groups.values():
        torch._foreach_sub_(old, new)


def _state_of(optimizer: Optimizer, param: Tensor) -> dict[str, Any]:
    state = optimizer.state.get(param)
    return state if isinstance(state, dict) else {}
