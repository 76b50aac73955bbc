"""What the rules have in common: a memory that can be saved, and one finding per onset."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from steadygrad.records import Finding, ParamInfo, Severity, StepStats
from steadygrad.rules.history import History

RANKS: dict[Severity, int] = {"info": 1, "warning": 2, "alarm": 3}

Need = Literal["portrait", "tensors", "activations", "loss_scale", "embedding"]
"""A field that only some step records have."""


@dataclass
class Onset:
    """Lets a condition speak once when it begins, once more when it grows worse, and again after a quiet time.

    Example:
        >>> onset = Onset(quiet=2)
        >>> [onset.begins(s) for s in ("info", "info", "alarm", None, None, "info")]
        [True, False, True, False, False, True]
    """

    quiet: int = 50  # looks without the condition after which a new onset may be told
    told: int = 0  # rank of the worst severity told since then
    calm: int = 0
    now: int = 0  # rank of the condition at the last look

    def begins(self, severity: Severity | None) -> bool:
        self.now = rank = RANKS[severity] if severity else 0
        if rank == 0:
            self.calm += 1
            if self.calm >= self.quiet:
                self.told = 0
            return False
        self.calm = 0
        if rank <= self.told:
            return False
        self.told = rank
        return True


@dataclass
class Rule:
    """Base of the rules: ``rule(stats, history)`` returns a finding when its condition begins, else None.

    Fields of a subclass are its memory: numbers, strings, None, lists and dicts of them. They are saved and
    restored as they are, so that a rollback puts the detectors back as well.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    severity: ClassVar[Severity]  # the worst that this rule may say
    needs: ClassVar[tuple[Need, ...]] = ()
    """Fields of a step record without all of which the rule neither speaks nor remembers: it is not asked then."""

    onset: Onset = field(default_factory=Onset)

    def __init_subclass__(cls) -> None:
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        raise NotImplementedError

    def tell(
        self, stats: StepStats, severity: Severity, where: str, message: str, **evidence: float
    ) -> Finding:
        return Finding(
            code=self.code,
            rule=self.name,
            step=stats.step,
            where=where,
            message=message,
            evidence=evidence,
            severity=severity,
            optimizer=stats.optimizer,
        )

    @property
    def alarming(self) -> bool:
        """Whether the condition held at the rank of an alarm when it was last looked at."""
        return self.onset.now >= RANKS["alarm"]

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Onset):
                value = {"told": value.told, "calm": value.calm, "now": value.now}
            elif isinstance(value, (list, dict)):
                value = value.copy()
            state[f.name] = value
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for f in fields(self):
            value = state[f.name]
            if f.name == "onset":
                for key in ("told", "calm", "now"):
                    setattr(self.onset, key, value[key])
            else:
                setattr(self, f.name, value.copy() if isinstance(value, (list, dict)) else value)


def listing(names: list[str], most: int = 3) -> str:
    """``a, b, c and 4 more``."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def sampled(stats: StepStats, index: int) -> ParamInfo | None:
    """The parameter that a :class:`TensorStats` speaks of; None if the record does not list it."""
    params = stats.params
    if not params:
        return None
    position = index - params[0].index  # the rule; a parameter that came later may break it
    if 0 <= position < len(params) and params[position].index == index:
        return params[position]
    return next((p for p in params if p.index == index), None)


def sampled_name(stats: StepStats, index: int) -> str:
    info = sampled(stats, index)
    return info.name if info is not None else f"parameter {index}"


def dominant(stats: StepStats) -> tuple[str, float]:
    """The parameter that makes up most of the gradient norm, and its share of the squared norm."""
    best, best_norm, total = -1, 0.0, 0.0
    for i, x in enumerate(stats.grad_norms.tolist()):
        if 0 < x < float("inf"):
            total += x * x
            if x > best_norm:
                best, best_norm = i, x
    if best < 0 or not 0 < total < float("inf"):
        return "model", 0.0
    name = stats.params[best].name if best < len(stats.params) else "model"
    return name, best_norm * best_norm / total
