"""The side of a session that asks why: it gathers facts as the run goes, and has the causes at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from steadygrad.diagnose.casefile import CaseFile, optimizer_facts
from steadygrad.diagnose.causes import diagnose, rank_causes
from steadygrad.diagnose.facts import Facts
from steadygrad.diagnose.risk import risk
from steadygrad.diagnose.stored import EVENT, facts_to_json
from steadygrad.locating.live import LiveLocator
from steadygrad.probe.loss import without_sync
from steadygrad.probe.probe import Probe
from steadygrad.records import Cause, Finding, FirstNonFinite, StepStats
from steadygrad.rules.engine import RuleSet
from steadygrad.trace.writer import TraceWriter

FIRST_STEPS = 10  # that the forecast of a run rests on
MAX_URGENT = 5  # portraits of alarming steps, of which a broken run has many


class Reasons:
    """Why a run went as it did.

    Args:
        locate: look at every operation from this step on; None: only after an incident.
    """

    def __init__(self, locate: int | None) -> None:
        self.findings: list[Finding] = []
        self.forecast: dict[str, Any] | None = None  # what the first steps said of the rest
        self._casefile = CaseFile()
        self._locator = LiveLocator(locate)
        self._module_types: tuple[str, ...] = ()
        self._newest: StepStats | None = None  # of the step that has just ended, or become known
        self._urgent = 0

    @property
    def modes_on(self) -> bool:
        """Whether operations are being watched: what is ours has to be kept out of sight."""
        return self._locator.armed

    @property
    def located(self) -> FirstNonFinite | None:
        return self._locator.found

    @property
    def notes(self) -> list[str]:
        return self._locator.notes

    def optimizer_built(self) -> None:
        self._locator.arm_for_start(())

    def models_found(self, roots: Sequence[nn.Module]) -> None:
        self._module_types = tuple(sorted({type(m).__name__ for root in roots for m in root.modules()}))

    def before_backward(
        self, roots: Sequence[Tensor], values: Sequence[Tensor], step: int, probe: Probe, rules: RuleSet
    ) -> None:
        """A backward pass is about to begin: read its graph if it is sampled, or if its loss is alarming."""
        losses = without_sync(values)
        self._locator.before_backward(roots, losses, step)
        probe.saw_graph(roots, now=losses is not None and self._alarming(sum(losses), rules))

    def _alarming(self, loss: float, rules: RuleSet) -> bool:
        """Whether this loss is one that a diagnosis will ask about."""
        losses = rules.history(0).losses.ordered
        alarming = not math.isfinite(loss) or len(losses) > 5 and abs(loss) > 5 * max(-losses[0], losses[-1])
        self._urgent += alarming
        return alarming and self._urgent <= MAX_URGENT

    def before_step(self) -> None:
        self._locator.before_step()

    def step_over(self, stats: StepStats) -> None:
        """A step is over, and its numbers are known. A bad one that came late is not forgotten for the next."""
        if self._newest is None or self._newest.finite and _finite_loss(self._newest):
            self._newest = stats

    def judged(
        self, optimizer: Optimizer | None, stats: StepStats, findings: Sequence[Finding], rules: RuleSet
    ) -> None:
        """The rules have judged a step, the next one of all that are over. ``optimizer``: None if it is gone."""
        self.findings += findings
        history = rules.history(stats.optimizer)
        self._casefile.step(stats, findings, history, optimizer_facts(optimizer, self._module_types))
        if stats.optimizer == 0 and stats.step == FIRST_STEPS - 1:
            self.forecast = self._forecast()

    def watch_next_step(self, roots: Sequence[nn.Module], *, compiled: bool) -> None:
        """Apart from :meth:`step`: a mode cannot be entered or left while modes are switched off.

        Args:
            roots: the models.
            compiled: the step is part of a compiled function.
        """
        if self._newest is not None:
            self._locator.after_step(self._newest, roots, compiled=compiled)
        self._newest = None

    def _forecast(self) -> dict[str, Any] | None:
        """As far as watching alone can tell: no curvature was measured."""
        facts = self._casefile.facts()
        if facts is None:
            return None
        confidence = risk(self.findings, facts)
        causes = rank_causes(self.findings, facts) if confidence >= 0.5 else []
        return {
            "will_fail": confidence >= 0.5,
            "confidence": confidence,
            "causes": [c.to_json() for c in causes],
            "steps_seen": FIRST_STEPS,
        }

    # ------------------------------------------------------------------ a run that is resumed
    def state_dict(self) -> dict[str, Any]:
        """What has been found so far, as plain data."""
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "forecast": self.forecast,
            "casefile": self._casefile.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put it back."""
        self.findings = [Finding(**finding) for finding in state["findings"]]
        self.forecast = state["forecast"]
        self._casefile.load_state_dict(state["casefile"])

    # ------------------------------------------------------------------ the end
    def stop_watching(self) -> None:
        """Leave the mode if it is on."""
        self._locator.close()

    def conclude(
        self, writer: TraceWriter | None, steps: int, *, acted: bool, stopped: bool
    ) -> tuple[str, list[Cause]]:
        """How the run went, in a sentence, and its causes; the facts go on record for a later diagnosis."""
        self._casefile.located = self._locator.found
        self._casefile.stopped = stopped
        facts: Facts | None = self._casefile.facts()
        if facts is None or facts.verdict is None:
            return "", []
        if writer is not None:
            writer.event(EVENT, max(steps - 1, 0), {"end": True, "facts": facts_to_json(facts)})
        return facts.verdict.reason, diagnose(self.findings, facts, acted=acted)


def _finite_loss(stats: StepStats) -> bool:
    return stats.loss is None or math.isfinite(stats.loss)
