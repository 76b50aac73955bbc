"""What happened this step, as one record. Reads only."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from operator import is_
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.clip._told import fold_of
from steadygrad.probe.activations import ActivationSampler, sampled
from steadygrad.probe.at_step import first_rate, norms_at_step, scale_of
from steadygrad.probe.compiled import Compiled
from steadygrad.probe.embeddings import embedding_stats
from steadygrad.probe.ended import Ended, Unread
from steadygrad.probe.full_look import names_of_nonfinite
from steadygrad.probe.host import Pending, post
from steadygrad.probe.loop_facts import LoopFacts
from steadygrad.probe.loss import LossKeeper
from steadygrad.probe.moving_target import MovingTarget
from steadygrad.probe.names import any_sharded, find_roots, flat_params, name_parameters, named_roots
from steadygrad.probe.norms import MISSING, gradient_norms, norms_on_device, total_norm
from steadygrad.probe.portrait import Portraitist
from steadygrad.probe.root_outputs import RootOutputs
from steadygrad.probe.rotation import Rotation
from steadygrad.probe.shared_norms import norms_at_hand
from steadygrad.probe.tiers import CHEAP, Tier
from steadygrad.records import NAN, EmbeddingStats, Oddity, ParamInfo, Portrait, StepStats

EMBEDDINGS_EVERY = 10  # steps from one look to the next


class _Watched:
    """What the probe keeps of one optimizer."""

    def __init__(self, optimizer: Optimizer, index: int, tier: Tier) -> None:
        self.optimizer = weakref.ref(optimizer)
        self.index = index
        self.step = 0
        self.infos: list[ParamInfo] = []
        self.numbers: list[int] = []  # of its parameters in the tables of the trace
        self.tensors: list[Tensor] = []
        self.rotation = Rotation(
            tier.rotation, tier.state_turns, tier.most_tensors, tier.small_every, tier.most_compared
        )
        self.raw: dict[int, float] = {}  # id of a parameter -> norm of its gradient before the user's clip
        self.amp_skips = 0
        self.last_time: float | None = None

    def let_go(self) -> None:
        """Hold no tensor of an optimizer that the script has discarded."""
        if self.optimizer() is None:
            self.tensors, self.rotation = [], Rotation()


class Probe:
    """Reads every signal of a run's optimizer steps.

    Args:
        roots: the models; found in memory at the first step if None.
        tier: how closely it looks.

    Attributes:
        whole: the norms of a sharded tensor are those of all of it, which takes collectives. To be set to False by
            whoever adds up the ranks' parts himself.
        applied: norms of the gradients of the step that is under way, as they reached the optimizer: (parameters,).

    A step is :meth:`before` and :meth:`after`, around the user's own; the other calls tell what was seen between.
    """

    def __init__(self, roots: Sequence[nn.Module] | None = None, *, tier: Tier = CHEAP) -> None:
        self.roots: list[nn.Module] = list(roots or ())
        self.params: list[ParamInfo] = []
        self.notes: list[str] = []
        self.whole = True
        self.applied = np.zeros(0)
        self._given = roots is not None
        self._tier = tier
        self._sampler: ActivationSampler | None = None
        self._watched: weakref.WeakKeyDictionary[Optimizer, _Watched] = weakref.WeakKeyDictionary()
        self._order: list[_Watched] = []
        self._loss = LossKeeper()
        self._portraits = Portraitist()
        self._compiled = Compiled()
        self._outputs = RootOutputs(self._compiled)
        self._portrait_due = True
        self._loop = LoopFacts()
        self._told = 0  # oddities of the loop that are on a record already
        self._target = MovingTarget()
        self._following: tuple[Oddity, ...] = ()  # what it has found, until it is on a record
        self._embedding: EmbeddingStats | None = None  # of the step under way
        self._scaler: Any = None
        if self._given:
            self._arm_for(0)

    # ------------------------------------------------------------------ what was seen
    def saw_backward(self, roots: Sequence[Tensor]) -> None:
        """A backward pass begins on these 0-D values, unscaled."""
        self._loss.saw(roots)
        self._loop.backward(roots, self.roots)

    def saw_graph(self, roots: Sequence[Tensor], *, now: bool = False) -> None:
        """A backward pass is about to begin on these roots: on sampled steps, or ``now``, its graph is read."""
        outputs = self._outputs.take()  # of each backward, or those of an accumulation would add up
        if self._portraits.waiting or self._portraits.broken or not (now or self._portrait_due):
            return
        trained = {p: info.name for w in self._order for p, info in zip(w.tensors, w.infos, strict=True)}
        # Which of several optimizers this backward is for shows only when one of them steps. And where the trained
        # tensors are shards, the graph has others: the whole ones, gathered for this pass.
        parameters = trained if len(self._order) == 1 and not any_sharded(trained) else None
        try:
            self._portraits.look(roots, *outputs, parameters)
        except Exception as error:  # noqa: BLE001 - what we cannot read of a stranger's graph is no reason to leave
            self._portraits.forget()
            self._portraits.broken = True
            text = str(error).partition("\n")[0]
            self.notes.append(f"the graph of the loss cannot be read: {type(error).__name__}: {text}")

    def saw_clip(self, params: Sequence[Tensor], max_norm: float) -> None:
        """The user is about to clip these parameters' gradients: their raw norms are taken now, once a step."""
        self._loop.clipped(params, max_norm)
        owners = {id(p): w for w in self._order for p in w.tensors}
        fresh = [p for p in params if id(p) in owners and id(p) not in owners[id(p)].raw]
        grads = [p.grad for p in fresh]
        norms = norms_at_hand(grads) or gradient_norms(grads, whole=self.whole).tolist()
        for p, norm in zip(fresh, norms, strict=True):
            owners[id(p)].raw[id(p)] = norm

    def saw_embeddings(self, embeddings: Tensor, other: Tensor | None) -> None:
        """A loss without labels is given these: measured on sampled steps, the first of each step."""
        step = self._order[0].step if self._order else 0
        if self._embedding is None and embeddings.numel() and sampled(step, EMBEDDINGS_EVERY):
            self._embedding = embedding_stats(embeddings, other)

    def saw_scaler(self, scaler: Any) -> None:
        self._scaler = scaler
        self._loop.scaler_seen(scaler)

    def saw_amp_skip(self, optimizer: Optimizer) -> None:
        """The GradScaler took no step for this optimizer."""
        watched = self._watched.get(optimizer)
        if watched is not None:
            watched.amp_skips += 1
            watched.raw.clear()
        self._portraits.forget()
        self._loss.forget()

    # ------------------------------------------------------------------ the step
    def optimizer_index(self, optimizer: Optimizer) -> int:
        """Number of this optimizer in the run; on first sight its parameters are named."""
        return self._of(optimizer).index

    def trained(self) -> list[tuple[Sequence[ParamInfo], Sequence[Tensor]]]:
        """Names and tensors of the parameters of each optimizer, in the order of their numbers."""
        return [(watched.infos, watched.tensors) for watched in self._order]

    def leave_out(self, optimizer: Optimizer) -> int:
        """Count a step that the GradScaler did not take as one that was not taken. Returns its number."""
        watched = self._of(optimizer)
        watched.step += 1
        return watched.step - 1

    def look_around(self, optimizers: Sequence[Optimizer]) -> None:
        """Find the models that these optimizers train. Models that were given stay as they are."""
        if not self._given:
            self.roots = [root for _, root in named_roots(find_roots(), optimizers)]

    def forget_models(self) -> None:
        """Let go of models that were found, and of the tensors of optimizers that are gone."""
        self.close()
        self._loop, self._told = LoopFacts(), 0
        self._target, self._following = MovingTarget(), ()
        if not self._given:
            self._sampler = None
            self.roots = []
        for watched in self._order:
            watched.let_go()

    def before(self, optimizer: Optimizer) -> StepStats:
        """Read the gradients of the coming step. The host waits once: for their norms, behind all the rest."""
        watched = self._of(optimizer)
        self._name(watched, optimizer)
        scale = getattr(optimizer, "grad_scale", None)
        posted = post([scale.reshape(())]) if scale is not None else Pending([1.0])
        loss, passes = self._loss.post(), self._loss.passes
        loss_scale = scale_of(self._scaler) if self._scaler is not None else None
        raw, applied, factor = norms_at_step(optimizer, watched.tensors, posted, self.whole)
        self.applied = applied
        if watched.raw:
            raw = np.array([watched.raw.get(id(p), n) for p, n in zip(watched.tensors, applied, strict=True)])
            watched.raw.clear()
        self._open_step(optimizer, watched, raw, factor)
        embedding = None
        if watched.index == 0:
            embedding, self._embedding = self._embedding, None
        grad_norm = total_norm(raw)
        return StepStats(
            step=watched.step,
            optimizer=watched.index,
            loss=loss.numbers()[0] if loss is not None else None,
            grad_norm=grad_norm,
            clipped_grad_norm=grad_norm if applied is raw else total_norm(applied),
            grad_norms=raw,
            lr=first_rate(optimizer),
            params=watched.infos,
            num_backwards=passes,
            loss_scale=loss_scale.numbers()[0] if loss_scale is not None else None,
            amp_skips=watched.amp_skips,
            portrait=self._take_portrait(watched),
            embedding=embedding,
        )

    def before_unread(self, optimizer: Optimizer) -> Unread | None:
        """As :meth:`before`, and the host does not wait. None, with nothing done, where it has to know at once.

        That is where the user has clipped or a GradScaler is at work, and in the steps that are looked at closely.
        """
        watched = self._of(optimizer)
        self._name(watched, optimizer)
        first = watched.index == 0
        if watched.raw or self._portraits.waiting or fold_of(optimizer) is not None:
            return None
        if self._scaler is not None and self._scaler.is_enabled():
            return None
        if first and (self._target.due(watched.step) or (self._sampler and self._sampler.due(watched.step))):
            return None
        if watched.amp_skips or self._loop.reads_norms(optimizer) or (first and self._embedding is not None):
            return None
        present = [p.grad is not None for p in watched.tensors]
        norms = norms_on_device([p.grad for p in watched.tensors if p.grad is not None])
        if norms is None:
            return None
        loss, passes = self._loss.post(), self._loss.passes
        unknown = np.full(len(present), MISSING)
        self._open_step(optimizer, watched, unknown, 1.0)
        stats = StepStats(
            step=watched.step,
            optimizer=watched.index,
            loss=None,
            grad_norm=NAN,
            clipped_grad_norm=NAN,
            grad_norms=unknown,
            lr=first_rate(optimizer),
            params=watched.infos,
            num_backwards=passes,
            loss_scale=scale_of(self._scaler).numbers()[0] if self._scaler is not None else None,
        )
        return Unread(stats, norms, present, loss)

    def _open_step(self, optimizer: Optimizer, watched: _Watched, norms: np.ndarray, factor: float) -> None:
        """What is looked at in the moment before a step."""
        self._loop.before_step(optimizer, watched.tensors, watched.infos, norms, self.roots)
        if watched.index == 0 and self._target.due(watched.step):
            odd = self._target.look(watched.step, self._alive(), self.roots)
            self._following += (odd,) if odd is not None else ()
        self._loss.in_step = True
        watched.rotation.before(optimizer, watched.tensors, watched.numbers, watched.step, factor)

    def after(self, optimizer: Optimizer, stats: StepStats, applied: bool) -> StepStats:
        """The step is over, taken or not: what could only be read now is filled in."""
        return self.end(optimizer, stats, applied).complete()

    def end(
        self, optimizer: Optimizer, stats: StepStats, applied: bool, unread: Unread | None = None
    ) -> Ended:
        """As :meth:`after`, without waiting for numbers that are on their way from a device.

        ``unread``: what :meth:`before_unread` gave; ``applied`` is then what the step is taken for until it is read.
        """
        watched = self._order[stats.optimizer]
        now = time.perf_counter()
        seconds = now - watched.last_time if watched.last_time is not None else NAN
        watched.last_time = now
        watched.step += 1
        watched.amp_skips = 0
        self._loss.in_step = False
        self._loop.after_step(optimizer)
        look = watched.rotation.leave(optimizer, applied)
        here = look is not None and unread is None and look.ready()
        tensors = look.finish() if look is not None and here else ()
        activations: tuple = ()
        if watched.index == 0:
            if self._sampler is not None:
                activations = self._sampler.take()
                self._sampler.disarm()
            self._arm_for(watched.step)
        portrait = self._with_oddities(stats.step, stats.portrait)
        return Ended(
            stats.with_outcome(applied, tensors, activations, seconds, portrait),
            None if here else look,
            unread,
        )

    def step_raised(self) -> None:
        """The user's step raised: nothing of it is recorded."""
        self._loss.in_step = False
        self._loop.step_raised()

    # ------------------------------------------------------------------ a run that is resumed
    def state_dict(self) -> list[dict[str, Any]]:
        """How far each optimizer has come: its steps decide what the next ones look at."""
        return [
            {"step": w.step, "amp_skips": w.amp_skips, "params": [i.name for i in w.infos]}
            for w in self._order
        ]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Put it back, for optimizers that are known in the same order."""
        for watched, kept in zip(self._order, state, strict=False):  # none before the first step
            watched.step, watched.amp_skips = kept["step"], kept["amp_skips"]
        if self._sampler is not None:
            self._sampler.disarm()
        if self._order:
            self._arm_for(self._order[0].step)

    # ------------------------------------------------------------------ looks on demand
    def nonfinite_state(self) -> list[str]:
        """Names of parameters, buffers and optimizer state that hold a NaN or an infinity. A full look."""
        alive = [(w.optimizer(), w.infos, w.tensors) for w in self._order]
        return names_of_nonfinite([(o, i, t) for o, i, t in alive if o is not None], self.roots)

    def close(self) -> None:
        """Take every hook away."""
        if self._sampler is not None:
            self._sampler.disarm()
        self._outputs.disarm()
        self._portraits.forget()

    # ------------------------------------------------------------------ inside
    def _of(self, optimizer: Optimizer) -> _Watched:
        """What is kept of this optimizer; on first sight its parameters are named."""
        watched = self._watched.get(optimizer)
        if watched is None:
            watched = _Watched(optimizer, len(self._order), self._tier)
            self._watched[optimizer] = watched
            self._order.append(watched)
            self._name(watched, optimizer)
        return watched

    def _name(self, watched: _Watched, optimizer: Optimizer) -> None:
        """Name the parameters of an optimizer; again when groups or parameters were added."""
        tensors = flat_params(optimizer)
        if len(tensors) == len(watched.tensors) and all(map(is_, tensors, watched.tensors)):
            return
        if watched.tensors and not self._given:  # parameters were added on the way
            self.look_around(self._alive())
        known = {id(p): info for p, info in zip(watched.tensors, watched.infos, strict=True)}
        named = name_parameters(optimizer, watched.index, self.roots, 0, self._alive())
        infos = []
        for p, info in zip(tensors, named, strict=True):
            if id(p) not in known:
                known[id(p)] = replace(info, index=len(self.params))
                self.params.append(known[id(p)])
            infos.append(known[id(p)])
        watched.tensors, watched.infos = tensors, infos
        watched.numbers = [info.index for info in infos]

    def _alive(self) -> list[Optimizer]:
        return [o for o in (w.optimizer() for w in self._order) if o is not None]

    def _take_portrait(self, watched: _Watched) -> Portrait | None:
        if not self._portraits.waiting:
            return None
        return self._portraits.take(
            {id(p): i.name for p, i in zip(watched.tensors, watched.infos, strict=True)}
        )

    def _with_oddities(self, step: int, portrait: Portrait | None) -> Portrait | None:
        """The portrait with what has become certain about the loop and its targets since the last record."""
        if portrait is not None and portrait.nodes:
            self._loop.graph_size(step, portrait.nodes)
        oddities = self._loop.oddities()
        fresh, self._told = oddities[self._told :] + self._following, len(oddities)
        self._following = ()
        if not fresh:
            return portrait
        portrait = portrait or Portrait()
        return replace(portrait, oddities=portrait.oddities + fresh)

    def _arm_for(self, step: int) -> None:
        """Hooks for the coming step, if its activations are to be sampled."""
        if self._sampler is None or list(self._sampler.roots) != self.roots:
            self._compiled.forget()
            self._sampler = ActivationSampler(
                self.roots, self._tier.activation_every, compiled=self._compiled
            )
        self._outputs.disarm()
        self._portrait_due = sampled(step, self._tier.portrait_every)
        if self._sampler.due(step):
            self._sampler.arm()
        if self._portrait_due:
            self._outputs.arm(self.roots)
