"""A remedy: one change that may cure a cause, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Safety = Literal["exact", "tuning", "surgery"]
"""``exact``: the same function, the same training where nothing was wrong. ``tuning``: the optimizer's numbers.
``surgery``: the model, its weights or its data are changed."""

Plan = Mapping[str, Any]


@dataclass(frozen=True)
class Remedy:
    """One change to a run.

    ``plan`` is all that is needed to put it in force: keys of :data:`steadygrad.repair.effects.EFFECTS`, values that
    JSON can hold.
    """

    name: str  # as people are told: "clip at 1.1"
    plan: Plan
    serves: tuple[str, ...]  # causes
    safety: Safety
    intrusiveness: float  # 0 nothing is changed, 1 another model
    advice: str  # the change that it means in the user's code, a sentence
    lead: float | None = (
        None  # there is evidence for just this change: the part of the twin's loss it must reach
    )
    family: str = ""  # two of one family are never combined; "" is the name

    def combines_with(self, other: Remedy) -> bool:
        """Whether both can be in force together: of different families, and nothing set twice."""
        if (self.family or self.name) == (other.family or other.name):
            return False
        return all(key == "lr_factor" for key in self.plan.keys() & other.plan.keys())

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "plan": dict(self.plan),
            "serves": list(self.serves),
            "safety": self.safety,
            "intrusiveness": self.intrusiveness,
            "advice": self.advice,
        }


@dataclass(frozen=True)
class Arm:
    """A run to be made: the script under these remedies; none for the twin."""

    remedies: tuple[Remedy, ...] = ()

    @property
    def name(self) -> str:
        return " + ".join(r.name for r in self.remedies) or "nothing changed (twin)"

    @property
    def plan(self) -> dict[str, Any]:
        return merged(self.remedies)

    @property
    def intrusiveness(self) -> float:
        return sum(r.intrusiveness for r in self.remedies)


def merged(remedies: Sequence[Remedy]) -> dict[str, Any]:
    """The plan of several remedies together; factors of a rate multiply.

    Raises:
        ValueError: two of them set the same key to different values.

    Example:
        >>> lower = Remedy("lr / 10", {"lr_factor": 0.1}, ("lr_too_large",), "tuning", 0.12, "")
        >>> merged([lower, lower])
        {'lr_factor': 0.010000000000000002}
    """
    plan: dict[str, Any] = {}
    for remedy in remedies:
        for key, value in remedy.plan.items():
            if key == "lr_factor" and key in plan:
                plan[key] *= value
            elif key in plan and plan[key] != value:
                raise ValueError(f"{remedy.name} sets {key} to {value!r}, another remedy to {plan[key]!r}")
            else:
                plan[key] = value
    return plan
