from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.records import Finding, Severity, StepStats, TensorStats
from steadygrad.rules.history import MIN_NORMS, History
from steadygrad.rules.rule import Rule, sampled, sampled_name

LARGE = 0.3


@dataclass
class UpdateRatio(Rule):
    """One step moves a weight matrix by a large part of itself.

    What it measures: the norm of the update over the norm of the weight, for weights of at least two dimensions,
    on a rotating sixteenth of the parameters a step: above 0.3.

    Why it matters: about 0.001 is usual. At 0.3 three steps replace the matrix; what it had learned is gone.

    Stays silent on: the first ten steps, biases and gains, weights that start at 0. It only records: small
    matrices under Adam do this for a while and recover.

    Remedies: a smaller learning rate; warm-up.

    Source: TheDeepChecker (log10 outside [-4, -1]), SageMaker Debugger (above 10).
    """

    code: ClassVar[str] = "O101"
    severity: ClassVar[Severity] = "info"
    needs: ClassVar = ("tensors",)

    def __call__(self, stats: StepStats, history: History) -> Finding | None:
        if not stats.tensors or history.num_accepted < MIN_NORMS or not stats.applied:
            return None
        worst = max(
            (t for t in stats.tensors if t.update_ratio > LARGE and _is_matrix(stats, t)),
            key=lambda t: t.update_ratio,
            default=None,
        )
        if not self.onset.begins("info" if worst else None) or worst is None:
            return None
        name = sampled_name(stats, worst.param)
        return self.tell(
            stats,
            "info",
            name,
            f"one step moved {name} by {worst.update_ratio:.3g} of its norm",
            update_ratio=worst.update_ratio,
            weight_norm=worst.weight_norm,
            lr=stats.lr,
        )


def _is_matrix(stats: StepStats, tensor: TensorStats) -> bool:
    info = sampled(stats, tensor.param)
    return info is not None and len(info.shape) >= 2
