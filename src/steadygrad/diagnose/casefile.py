"""What a diagnosis needs of a run, gathered as the run goes, in bounded memory."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from steadygrad.diagnose.course import Course
from steadygrad.diagnose.facts import Facts, facts_at
from steadygrad.diagnose.verdict import Verdict, judge
from steadygrad.records import NAN, Finding, FirstNonFinite, LossTerm, Portrait, StepStats
from steadygrad.rules.history import History, step_loss
from steadygrad.rules.rule import sampled

KEPT = 40  # portraits
NEAR = 3  # steps before an alarm at which a portrait still shows its batch
EARLY = 20  # steps whose update ratios count as the first ones


class CaseFile:
    """One run, for the one who has to say why it failed.

    :meth:`step` takes every step of every optimizer; :meth:`facts` gives what is known: at the first alarm if there was
    one, else at the last step.
    """

    def __init__(self) -> None:
        self.located: FirstNonFinite | None = None
        self.lr_limit = self.lr_peak = NAN
        self.stopped = False  # by the guard
        self._main: int | None = (
            None  # the optimizer that took the first step: the run is judged by its losses
        )
        self._courses: dict[int, Course] = {}
        self._portraits: dict[int, list[Portrait]] = {}
        self._incident: Facts | None = None
        self._last: tuple[StepStats, History, dict[str, Any]] | None = None
        self._first_ratios: list[float] = []
        self._ratios: deque[float] = deque(maxlen=50)
        self._input_rms = NAN
        self._newest: tuple[int, int, Portrait] | None = None  # optimizer and step of the newest portrait
        self._poisoned = False
        self._num_backwards = 1

    def step(
        self, stats: StepStats, findings: Sequence[Finding], history: History, optimizer: dict[str, Any]
    ) -> None:
        """One step is over; ``history`` holds it already. ``optimizer``: what :func:`optimizer_facts` says of it."""
        if self._main is None:
            self._main = stats.optimizer
        loss = step_loss(stats)
        if loss is not None:
            self._courses.setdefault(stats.optimizer, Course()).add(loss)
        for tensor in stats.tensors:
            info = sampled(stats, tensor.param)
            if info is not None and len(info.shape) > 1 and math.isfinite(tensor.update_ratio):
                self._ratios.append(tensor.update_ratio)
                if stats.step < EARLY:
                    self._first_ratios.append(tensor.update_ratio)
        self._num_backwards = max(self._num_backwards, stats.num_backwards)
        self._poisoned = any(f.code == "P100" for f in findings) or (self._poisoned and not stats.finite)
        if math.isnan(self._input_rms):
            self._input_rms = next(
                (a.input_rms for a in stats.activations if not math.isnan(a.input_rms)), NAN
            )
        if stats.portrait is not None and stats.portrait.nodes:
            portrait = replace(stats.portrait, loss=NAN if loss is None else loss)
            self._keep(stats.optimizer, portrait)
            self._newest = (stats.optimizer, stats.step, portrait)
        if self._incident is not None and self._incident.one_step_only is None:
            self._incident = replace(self._incident, one_step_only=stats.finite and not findings)
        if self._incident is None and any(f.severity == "alarm" for f in findings):
            self._incident = facts_at(stats, history, **optimizer)
            optimizer_of, step_of, newest = self._newest or (-1, -1, None)
            if optimizer_of == stats.optimizer and stats.step - step_of <= NEAR:
                self._incident = replace(self._incident, at=newest)
        self._last = (stats, history, optimizer)

    def _keep(self, optimizer: int, portrait: Portrait) -> None:
        kept = self._portraits.setdefault(optimizer, [])
        kept.append(portrait)
        if len(kept) > KEPT:  # the first and the newest stay, every other one between them goes
            self._portraits[optimizer] = kept[:1] + kept[2:-1:2] + kept[-1:]

    def state_dict(self) -> dict[str, Any]:
        """How the run has gone, for one that is resumed. Portraits, which it makes anew, are left out."""
        return {
            "main": self._main,
            "courses": {str(i): course.state_dict() for i, course in self._courses.items()},
            "first_ratios": list(self._first_ratios),
            "num_backwards": self._num_backwards,
            "poisoned": self._poisoned,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put it back."""
        self._main, self._num_backwards = state["main"], state["num_backwards"]
        self._first_ratios, self._poisoned = list(state["first_ratios"]), state["poisoned"]
        self._courses = {int(i): Course() for i in state["courses"]}
        for i, course in self._courses.items():
            course.load_state_dict(state["courses"][str(i)])

    def late_terms(self) -> tuple[LossTerm, ...]:
        """The parts of the loss with the medians of their values over the last third of the portraits."""
        portraits = [p for p in self._portraits.get(self._main or 0, []) if p.terms]
        late = portraits[-max(1, len(portraits) // 3) :]
        late = [p for p in late if len(p.terms) == len(late[-1].terms)]
        return tuple(
            replace(term, value=median(p.terms[i].value for p in late))
            for i, term in enumerate(late[-1].terms if late else ())
        )

    def verdict(self) -> Verdict:
        """How the run went so far, by the optimizer that stepped first."""
        course = self._courses.get(self._main or 0, Course())
        optimizers = max(1, len(self._courses))
        return judge(
            course,
            self._portraits.get(self._main or 0, []),
            poisoned=self._poisoned,
            stopped=self.stopped,
            optimizers=optimizers,
        )

    def facts(self) -> Facts | None:
        """All that is known; None before the first step."""
        if self._last is None:
            return None
        facts = self._incident or facts_at(self._last[0], self._last[1], **self._last[2])
        portraits = self._portraits.get(self._main or 0, [])
        course = self._courses.get(self._main or 0, Course())
        level = abs(course.end)
        return replace(
            facts,
            portrait=portraits[0] if portraits else None,
            at=facts.at or (portraits[-1] if portraits else None),
            last=portraits[-1] if portraits else None,
            lowest=min((c.lowest for c in self._courses.values()), default=NAN),
            rise=course.rise,
            num_backwards=self._num_backwards,
            verdict=self.verdict(),
            located=self.located,
            input_rms=self._input_rms,
            update_ratio=median(self._first_ratios) if self._first_ratios else NAN,
            update_ratio_last=median(self._ratios) if self._ratios else NAN,
            loss_noise=course.spread() / level if level > 0 else NAN,
            steps=course.steps,
            optimizers=max(1, len(self._courses)),
            lr_limit=self.lr_limit,
            lr_peak=self.lr_peak,
        )


def optimizer_facts(optimizer: Any, module_types: Sequence[str]) -> dict[str, Any]:
    """What an optimizer and its models say of themselves, as fields of :class:`Facts`."""
    known: dict[str, Any] = {"module_types": tuple(module_types)}
    if optimizer is None:
        return known
    group = optimizer.param_groups[0]
    known |= {"optimizer": type(optimizer).__name__, "momentum": float(group.get("momentum", 0.0) or 0.0)}
    known["weight_decay"] = float(group.get("weight_decay", 0.0) or 0.0)
    if isinstance(group.get("betas"), (tuple, list)) and len(group["betas"]) >= 2:
        known["betas"] = tuple(float(b) for b in group["betas"][:2])
    if isinstance(group.get("eps"), float):
        known["eps"] = group["eps"]
    return known
