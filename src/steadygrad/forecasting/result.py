"""What a forecast says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from steadygrad.records import NAN, Cause, Finding, FirstNonFinite


@dataclass(frozen=True, slots=True)
class LayerGain:
    """How one weight matrix, with all up to the next, changes the size of signals."""

    name: str
    forward_gain: float  # RMS of what the next layer is given over what this one was given; nan if unknown
    backward_gain: float  # RMS of the gradient at the output before over that at its own; nan if unknown


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the first steps of a training say about the rest.

    Attributes:
        will_fail: whether ``confidence`` is at least one half.
        confidence: share of trainings with such first steps that fail, as measured on the zoo.
        causes: most likely first; empty for a steady forecast.
        findings: what the rules noticed in the first steps.
        layers: gains in the order of execution.
        steps_seen: optimizer steps that were watched.
        loss: of the first step.
        sharpness: largest eigenvalue of the Hessian at the start, preconditioned for Adam and its kin; nan if unknown.
        lr: largest learning rate that the optimizer or its schedule will reach, as far as that can be seen.
        lr_limit: where a quadratic of this sharpness stops converging; nan if unknown. Nets bend: a warning, no bound.
        first_nonfinite: where the first NaN or infinity was made, if one was.
        cannot_see: what was out of reach, a sentence each.
    """

    will_fail: bool
    confidence: float
    causes: tuple[Cause, ...] = ()
    findings: tuple[Finding, ...] = ()
    layers: tuple[LayerGain, ...] = ()
    steps_seen: int = 0
    loss: float = NAN
    sharpness: float = NAN
    lr: float = NAN
    lr_limit: float = NAN
    first_nonfinite: FirstNonFinite | None = None
    cannot_see: tuple[str, ...] = field(default=())

    @property
    def lr_only(self) -> bool:
        """Whether nothing but the learning rate speaks for trouble: a warning, on which nothing should be changed."""
        return (
            self.will_fail
            and bool(self.causes)
            and all(c.cause == "lr_too_large" for c in self.causes[:1])
            and (not any(f.severity == "alarm" or f.code[0] in "FMD" for f in self.findings))
        )

    def to_json(self) -> dict[str, Any]:
        """The object of ``steadygrad check --json``, without its ``schema``."""
        return {
            "will_fail": self.will_fail,
            "confidence": self.confidence,
            "causes": [c.to_json() for c in self.causes],
            "findings": [f.to_json() for f in self.findings],
            "layers": [
                {"name": x.name, "forward_gain": x.forward_gain, "backward_gain": x.backward_gain}
                for x in self.layers
            ],
            "steps_seen": self.steps_seen,
            "loss": self.loss,
            "sharpness": self.sharpness,
            "lr": self.lr,
            "lr_limit": self.lr_limit,
            "lr_only": self.lr_only,
            "first_nonfinite": self.first_nonfinite.to_json() if self.first_nonfinite else None,
            "cannot_see": list(self.cannot_see),
        }

    def __str__(self) -> str:
        said = (
            f"Will fail ({self.confidence:.2f})."
            if self.will_fail
            else f"Steady ({1 - self.confidence:.2f})."
        )
        rows = [f"  {c.cause} ({c.probability:.2f}): {c.message}" for c in self.causes[:3]]
        return "\n".join([said, *rows])
