"""Mistakes of the training loop, seen from its calls alone."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from steadygrad.probe.idle import IdleSteps
from steadygrad.probe.kept_gradients import KeptGradients
from steadygrad.probe.loss_reuse import LossReuse
from steadygrad.probe.modes import EvalMode
from steadygrad.probe.scaler_use import ScalerUse
from steadygrad.records import Oddity, ParamInfo


class LoopFacts:
    """Told of what the loop calls, in the order in which it calls; says what is certainly odd about it.

    Reads only. Most checks decide within six steps of an optimizer and then look no more; the mode of the model
    and the learning rate are looked at throughout. Passes inside a step (a closure that is evaluated again) are
    left out.

    Kinds: ``zero_grad_missing``, ``clip_before_unscale``, ``scale_ignored``, ``eval_mode``, ``loss_used_twice``,
    ``graph_grows``, ``zero_lr``, ``no_gradient``.
    """

    def __init__(self) -> None:
        self._kept = KeptGradients()
        self._scaler = ScalerUse()
        self._modes = EvalMode()
        self._losses = LossReuse()
        self._idle = IdleSteps()
        self._infos: Sequence[ParamInfo] = ()
        self._found: dict[tuple[str, str], Oddity] = {}
        self._passes = 0
        self._marks: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._in_step = False

    def oddities(self) -> tuple[Oddity, ...]:
        """Everything that is certain so far, in the order in which it became so; each kind once at each place."""
        return tuple(self._found.values())

    def scaler_seen(self, scaler: GradScaler) -> None:
        """The scaler has scaled a loss."""
        self._scaler.scaler_seen(scaler)

    def backward(self, roots: Sequence[Tensor], models: Sequence[nn.Module] = ()) -> None:
        """A backward pass begins.

        Args:
            roots: what is differentiated, as detached 0-D values over the memory of the loss.
            models: the models of the run.
        """
        if self._in_step:
            return
        self._passes += 1
        self._kept.backward()
        self._scaler.backward()
        self._modes.backward(models, self._passes)
        self._losses.backward(roots)

    def clipped(self, params: Sequence[Tensor], max_norm: float) -> None:
        """The user is about to clip the gradients of these parameters."""
        self._take(self._scaler.clipped(params, max_norm))

    def before_step(
        self,
        optimizer: Optimizer,
        tensors: Sequence[Tensor],
        infos: Sequence[ParamInfo],
        norms: np.ndarray,
        models: Sequence[nn.Module] = (),
    ) -> None:
        """The optimizer is about to step.

        Args:
            optimizer: with its gradients in place.
            tensors: its parameters.
            infos: their names, in the same order.
            norms: of their gradients, in the same order; nan where there is none.
            models: the models of the run.
        """
        mark = self._marks.get(optimizer)
        self._marks[optimizer] = self._passes
        passes = range((mark or 0) + 1, self._passes + 1)
        self._infos = infos
        self._take(
            self._kept.before_step(optimizer),
            self._scaler.before_step(optimizer, tensors),
            self._modes.before_step(tensors, models, passes) if mark is not None else None,
            self._losses.before_step(optimizer),
            *self._idle.before_step(optimizer, tensors, infos, norms, len(passes)),
        )
        self._in_step = True

    def reads_norms(self, optimizer: Optimizer) -> bool:
        """Whether the norms that this optimizer's next :meth:`before_step` is told may still tell something."""
        return self._idle.reads_norms(optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        """The step is over, taken or not."""
        self._in_step = False
        self._kept.after_step(optimizer, self._infos)

    def step_raised(self) -> None:
        """The user's step raised."""
        self._in_step = False

    def graph_size(self, step: int, nodes: int) -> None:
        """The graph of the loss of this step has so many nodes."""
        self._take(self._losses.graph_size(step, nodes))

    def _take(self, *odd: Oddity | None) -> None:
        for one in odd:
            if one is not None:
                self._found.setdefault((one.kind, one.where), one)
