"""How much a gradient grows on its way back through the steps of a recurrence."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steadygrad.init._measured import Measured, norm_of
from steadygrad.init._trace import Node

MAX_GROWTH_THROUGH_TIME = 1e3  # first step over last, as from layer to layer
MIN_PER_STEP = 0.1  # torch's default nets have 0.4 to 0.7; what loses more in each step has no memory
UNDERFLOWS = 1e-20  # of the gradient at the last step: below it lie the numbers that are not normal
REACHED = 1e-3  # of the gradient at the last step
MAX_ALONE = 10.0  # a layer that grows less is not what a growth through several is made of


@dataclass(frozen=True, slots=True)
class AuditTime:
    """One direction of one recurrent layer; nan where there is nothing to measure."""

    weight: str  # the recurrent one
    steps: int  # T of the longest sequence; T - 1 in a loop by hand that starts from zeros
    growth: float  # norm of the loss gradient, first step over the last that it arrives at
    alone: float  # the same of a random gradient put in at the last step, through this layer alone
    per_step: float  # factor of `alone` for one step
    reach: int  # steps back from the last over which `alone` keeps 1/1000


@dataclass(frozen=True, slots=True)
class Profile:
    """Norms of a gradient at the steps of a recurrence, in the order of its run."""

    norms: Sequence[float]

    def arrived(self) -> list[float]:
        """Up to the last step that the gradient arrives at."""
        last = max((t for t, n in enumerate(self.norms) if n != 0), default=-1)
        return list(self.norms[: last + 1])

    def growth(self) -> float:
        norms = self.arrived()
        if len(norms) < 2 or not math.isfinite(norms[-1]):
            return math.nan
        return norms[0] / norms[-1] if math.isfinite(norms[0]) else math.inf  # overflow on the way

    def per_step(self) -> float:
        """Over the last steps, as far back as it neither overflows nor gets lost in rounding."""
        norms = self.arrived()
        if len(norms) < 2 or not math.isfinite(norms[-1]):
            return math.nan
        lost = UNDERFLOWS * norms[-1]
        back = next((k for k, n in enumerate(reversed(norms)) if not lost <= n < math.inf), len(norms))
        if back == 1:
            return norms[-2] / norms[-1] if math.isfinite(norms[-2]) else math.inf
        return float((norms[-back] / norms[-1]) ** (1 / (back - 1)))

    def reach(self) -> int:
        norms = self.arrived()
        if not norms or not math.isfinite(norms[-1]):
            return 0
        return next((k - 1 for k, n in enumerate(reversed(norms)) if n < REACHED * norms[-1]), len(norms) - 1)


def audit_time(weight: str, loss: Profile, alone: Profile) -> AuditTime:
    steps = max(len(loss.norms), len(alone.norms))
    return AuditTime(weight, steps, loss.growth(), alone.growth(), alone.per_step(), alone.reach())


def reason_through_time(row: AuditTime) -> str:
    """What is wrong with a recurrence; empty if nothing is, or if it only forgets as recurrent nets do."""
    back = f"back through {row.steps - 1} steps"
    for growth in (row.growth, row.alone):
        if growth > MAX_GROWTH_THROUGH_TIME and row.alone > MAX_ALONE:
            return f"the gradient explodes through time, x{growth:.3g} {back}, x{row.per_step:.3g} a step"
    if row.alone < REACHED and row.per_step < MIN_PER_STEP:
        return f"the gradient vanishes through time, x{row.alone:.3g} {back}, x{row.per_step:.3g} a step"
    return ""


def notes_through_time(rows: Sequence[AuditTime], off: Container[str]) -> list[str]:
    """What a user should know of recurrences that are not off, and what could not be measured."""
    notes = []
    rows = [row for row in rows if row.weight not in off]
    fading = [
        f"{row.weight} x{row.per_step:.2g} a step, below 1/1000 after {row.reach + 1} of {row.steps - 1} steps"
        for row in rows
        if row.alone < REACHED
    ]
    if fading:
        notes.append(
            f"the gradient fades through time: {'; '.join(fading[:4])}{'; ...' if len(fading) > 4 else ''}. Default "
            "initialisations do; if what to learn lies further back, see forget_bias_ (LSTM) and orthogonal_recurrent_"
        )
    for row in rows:
        if row.growth > MAX_GROWTH_THROUGH_TIME:
            notes.append(
                f"{row.weight}: the loss gradient is x{row.growth:.3g} larger at its first step than at its last, "
                f"but not by this layer (x{row.alone:.3g} alone): it arrives so from above"
            )
        elif math.isnan(row.growth):
            notes.append(
                f"{row.weight}: growth of the loss gradient through time not measured: it arrives at less than two "
                "steps (frozen, detached, read at its first step only), or is not finite"
            )
    return notes


def chain(nodes: Sequence[Node], through_weights: bool = True) -> list[Node]:
    """The longest run of calls of which each depends on the one before: the steps of one sequence."""
    runs: list[list[Node]] = []
    for node in nodes:
        if runs and _leads_to(runs[-1][-1], node, through_weights):
            runs[-1].append(node)
        else:
            runs.append([node])
    return max(runs, key=len)


def _leads_to(first: Node, second: Node, through_weights: bool) -> bool:
    stack, seen = [second], {second}
    while stack:
        for parent in stack.pop().parents:
            if parent is first:
                return True
            passes = through_weights or not parent.weights
            if passes and parent.index > first.index and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return False


def places(recorder: Measured, step: Node) -> list[Node]:
    """Where the state of one step of a loop is: in what a cell gives, or in what another weight takes.

    Not in what a plain weight gives: a norm behind it may scale the gradient there by 1/sqrt(eps) at a zero state.
    """
    cell = step.name.endswith("_cell") or step in recorder.fused
    return [n for n in (recorder.values(step) if cell else step.parents) if n in recorder.edges]


def loop_loss(recorder: Measured, steps: Sequence[Node], gradients: Mapping[Node, Tensor | None]) -> Profile:
    """Norms of the loss gradient at the state of each step; a zero state at the start has none."""
    found = [[n for n in places(recorder, step) if n in gradients] for step in steps]
    norms = [norm_of(*(gradients[n] for n in nodes)) for nodes in found if nodes]
    return Profile(norms or [math.nan] * len(steps))


def loop_alone(recorder: Measured, steps: Sequence[Node]) -> Profile:
    """The same for a random gradient put in behind the last one."""
    last = recorder.value(steps[-1])
    if last not in recorder.edges:
        return Profile([])
    shape, dtype, device = recorder.like[last]
    found = [nodes for step in steps if (nodes := places(recorder, step))]
    edges = [recorder.edges[n] for nodes in found for n in nodes]
    if not edges:
        return Profile([])
    seed = torch.randn(shape, dtype=dtype, device=device)
    got = iter(torch.autograd.grad(recorder.edges[last], edges, seed, retain_graph=True, allow_unused=True))
    return Profile([norm_of(*[next(got) for _ in nodes]) for nodes in found])
