"""What people do today against a run that fails: ten strategies, put on a training of the zoo.

Each has the defaults that it was published with, whatever the training. Only the two that say so skip steps: the others
take what their rule leaves of a non-finite gradient, as their authors' code does.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from benchmarks.repair_plans import outcome_json
from benchmarks.zoo import Training, outcome
from benchmarks.zoo_runs import Draw, Row
from steadygrad.clip import (
    SPAM,
    AutoClip,
    ZClip,
    chain,
    clip_by_global_norm_,
    clip_by_unit_norm_,
    clipped_updates,
)
from steadygrad.probe.joinpoints import JoinPoints

Grads = Sequence[Tensor | None]
Rule = Callable[[Grads, Sequence[Tensor]], Any]


class Strategy:
    """Does nothing. Others say what becomes of each step of a training; it may have several optimizers."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def before(self, optimizer: Optimizer, losses: Sequence[float]) -> bool:
        """The gradients are there; ``losses``: of the backward passes since the last step. False: no step is taken."""
        return True

    def after(self, optimizer: Optimizer) -> None:
        """The step is over."""


# ---------------------------------------------------------------------- gradients changed before the step
def params_of(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


class Clipped(Strategy):
    """A rule on the gradients, with its own memory for each optimizer; ``skip``: a non-finite step is not taken."""

    def __init__(
        self, training: Training, make: Callable[[Training], Rule] | None, skip: bool = False
    ) -> None:
        super().__init__(training)
        self.make, self.skip = make, skip
        self.rules: dict[int, Rule] = {}

    def before(self, optimizer: Optimizer, losses: Sequence[float]) -> bool:
        params = params_of(optimizer)
        grads = [p.grad for p in params]
        if self.skip and not (_finite(losses) and _all_finite(grads)):
            return False
        if self.make is not None:
            if id(optimizer) not in self.rules:
                self.rules[id(optimizer)] = self.make(self.training)
            self.rules[id(optimizer)](grads, params)
        return True


def _finite(losses: Sequence[float]) -> bool:
    return all(math.isfinite(x) for x in losses)


def _all_finite(tensors: Sequence[Tensor | None]) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in tensors if t is not None)


def _clip(training: Training) -> Rule:
    return lambda grads, params: clip_by_global_norm_(grads, 1.0)


def _zclip(training: Training) -> Rule:
    rule = ZClip()
    return lambda grads, params: rule(grads)


def _capped_zclip(training: Training) -> Rule:
    """Its authors' code has a fixed bound behind it, 1.0."""
    rule = chain(ZClip(), partial(clip_by_global_norm_, max_norm=1.0))
    return lambda grads, params: rule(grads)


def _autoclip(training: Training) -> Rule:
    rule = AutoClip()
    return lambda grads, params: rule(grads)


def _agc(training: Training) -> Rule:
    """The last linear layer is left out, as the paper does."""
    linear = [m for m in training.model.modules() if isinstance(m, nn.Linear)]
    last = {id(p) for p in linear[-1].parameters()} if linear else set()

    def rule(grads: Grads, params: Sequence[Tensor]) -> None:
        clip_by_unit_norm_([None if id(p) in last else g for g, p in zip(grads, params, strict=True)], params)

    return rule


# ---------------------------------------------------------------------- another optimizer in its place
class Replaced(Strategy):
    """The steps are taken by an AdamW in the place of the user's optimizer.

    From Adam or AdamW it takes the rate and the weight decay; for any other the rate is AdamW's own 1e-3, under the
    user's schedule.

    Args:
        training: the training.
        betas: of AdamW.
        around: what the step is taken inside of.
    """

    RATE = 1e-3

    def __init__(
        self,
        training: Training,
        betas: tuple[float, float],
        around: Callable[[Optimizer], Callable[[Optimizer], AbstractContextManager[Any]]],
    ) -> None:
        super().__init__(training)
        self.betas, self.around = betas, around
        self.shadows: dict[int, tuple[Optimizer, Callable[[Optimizer], AbstractContextManager[Any]]]] = {}

    def before(self, optimizer: Optimizer, losses: Sequence[float]) -> bool:
        if id(optimizer) not in self.shadows:
            shadow = self._shadow(optimizer)
            self.shadows[id(optimizer)] = shadow, self.around(shadow)
        shadow, around = self.shadows[id(optimizer)]
        for own, group in zip(shadow.param_groups, optimizer.param_groups, strict=True):
            own["lr"] = own["rate"] * group["lr"] / own["of"]
        with around(shadow):
            shadow.step()
        return False

    def _shadow(self, optimizer: Optimizer) -> Optimizer:
        adam = isinstance(optimizer, (Adam, AdamW))
        groups = []
        for group in optimizer.param_groups:
            first = group.get("initial_lr", group["lr"]) or 1.0  # a rate of 0 stays 0
            groups.append({"params": group["params"], "rate": first if adam else self.RATE, "of": first})
            if adam:
                groups[-1]["weight_decay"] = group["weight_decay"]
        return AdamW(groups, lr=self.RATE, betas=self.betas)


def _stable(shadow: Optimizer) -> Callable[[Optimizer], AbstractContextManager[Any]]:
    return clipped_updates


def _spam(shadow: Optimizer) -> Callable[[Optimizer], AbstractContextManager[Any]]:
    rule = SPAM(shadow)

    def around(shadow: Optimizer) -> AbstractContextManager[Any]:
        rule([p.grad for p in params_of(shadow)])
        return rule.warmed_up()

    return around


# ---------------------------------------------------------------------- a smaller rate after an explosion
class BackOff(Strategy):
    """On an explosion: back to the last good snapshot, and from there on a tenth of the rate; six times at most.

    An explosion is a loss or a gradient that is not finite, or a loss above ten times the size of the first one. A
    snapshot of weights, buffers and optimizer states is taken every ten steps. The data go on.
    """

    EVERY, TIMES, FACTOR, LIMIT = 10, 6, 0.1, 10.0

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.optimizers = (training.optimizer, *training.others)
        self.first: float | None = None
        self.steps = self.times = 0
        self.rates: list[float] = []  # of the groups of the step that is being taken
        self.take_snapshot()

    def before(self, optimizer: Optimizer, losses: Sequence[float]) -> bool:
        if self.first is None and losses and math.isfinite(losses[0]):
            self.first = abs(losses[0])
        grown = self.first is not None and any(x > self.LIMIT * self.first for x in losses)
        bad = grown or not (_finite(losses) and _all_finite([p.grad for p in params_of(optimizer)]))
        if bad and self.times < self.TIMES:
            self.times += 1
            self.restore()
            return False
        if not bad and optimizer is self.training.optimizer:
            if self.steps % self.EVERY == 0:
                self.take_snapshot()
            self.steps += 1
        self.rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] *= self.FACTOR**self.times
        return True

    def after(self, optimizer: Optimizer) -> None:
        for group, lr in zip(optimizer.param_groups, self.rates, strict=False):
            group["lr"] = lr
        self.rates = []

    @torch.no_grad()
    def take_snapshot(self) -> None:
        model = self.training.model
        trained = [p for o in self.optimizers for p in params_of(o)]
        self.tensors = {
            id(t): (t, t.detach().clone()) for t in (*model.parameters(), *model.buffers(), *trained)
        }
        self.states = [{p: copy.deepcopy(s) for p, s in o.state.items()} for o in self.optimizers]

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, saved in self.tensors.values():
            tensor.copy_(saved)
        for optimizer, states in zip(self.optimizers, self.states, strict=True):
            optimizer.state.clear()
            for p, state in states.items():
                optimizer.state[p] = copy.deepcopy(state)


STRATEGIES: dict[str, Callable[[Training], Strategy]] = {
    "skip": partial(Clipped, make=None, skip=True),
    "clip 1.0": partial(Clipped, make=_clip),
    "clip 1.0 + skip": partial(Clipped, make=_clip, skip=True),
    "lr / 10 on explosion": BackOff,
    "ZClip": partial(Clipped, make=_zclip),
    "ZClip, capped at 1.0": partial(Clipped, make=_capped_zclip),
    "AutoClip": partial(Clipped, make=_autoclip),
    "AGC": partial(Clipped, make=_agc),
    "StableAdamW": partial(Replaced, betas=(0.9, 0.99), around=_stable),
    "SPAM": partial(Replaced, betas=(0.9, 0.999), around=_spam),
}
"""All but "nothing", which is the plain run."""


# ---------------------------------------------------------------------- a strategy in force
class _Listener:
    """Passes on what a strategy asks for."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.losses: list[float] = []

    def backward(self, roots: Sequence[Tensor]) -> None:
        self.losses += [float(root) for root in roots]

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> bool:
        losses, self.losses = self.losses, []
        return self.strategy.before(optimizer, losses)

    def after_step(self, optimizer: Optimizer, applied: bool) -> None:
        self.strategy.after(optimizer)

    def step_raised(self, optimizer: Optimizer) -> None:
        self.strategy.after(optimizer)

    def optimizer_built(self, optimizer: Optimizer) -> None: ...
    def scheduler_built(self, scheduler: Any) -> None: ...
    def scaler_seen(self, scaler: Any) -> None: ...
    def graph(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None: ...
    def clipped(self, params: Sequence[Tensor], max_norm: float) -> None: ...
    def amp_skipped(self, optimizer: Optimizer, scaler: Any) -> None: ...


@contextmanager
def following(strategy: Strategy) -> Iterator[None]:
    """Inside the block the steps of the strategy's training are what it makes of them."""
    joinpoints = JoinPoints(_Listener(strategy))
    joinpoints.install(all_optimizers=False)
    try:
        for optimizer in (strategy.training.optimizer, *strategy.training.others):
            joinpoints.attach(optimizer)
        yield
    finally:
        joinpoints.remove()


def baseline_row(name: str, draw: Draw) -> Row:
    """How a training ends under a strategy. One that raises has not trained, and the row says why."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    training = draw.build()
    ended, error = None, ""
    try:
        with following(STRATEGIES[name](training)):
            ended = outcome(training)
    except RuntimeError as raised:
        error = f"{type(raised).__name__}: {raised}"
    return {
        **draw._asdict(),
        "trained": ended is not None and ended.trained,
        "outcome": None if ended is None else outcome_json(ended),
        "seconds": time.perf_counter() - start,
        "error": error,
    }


def kind(name: str) -> str:
    """The file of a strategy's rows."""
    return "repair_baseline_" + "".join(c if c.isalnum() else "_" for c in name)
