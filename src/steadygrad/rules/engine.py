"""Run all rules over the steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steadygrad.records import Finding, StepStats
from steadygrad.rules import RULES
from steadygrad.rules.history import History
from steadygrad.rules.memory import Memory


class RuleSet:
    """The rules, with one history and one memory of each rule per optimizer.

    Args:
        rules: classes of rules (one instance is made per optimizer) or plain functions
            ``rule(stats, history)`` without memory.

    Example:
        >>> import numpy as np
        >>> from steadygrad.records import StepStats
        >>> rules = RuleSet()
        >>> nan = float("nan")
        >>> found = rules.observe(StepStats(0, 0, nan, 1.0, 1.0, np.ones(1, np.float32), lr=0.1))
        >>> [(f.code, f.severity, f.message) for f in found]
        [('L100', 'warning', 'loss nan; the gradient is finite')]
    """

    def __init__(self, rules: Sequence[Any] = RULES) -> None:
        self.rules = tuple(rules)
        self.broken: dict[str, str] = {}
        """Rules that raised and were taken out: name -> what happened."""
        self._histories: dict[int, History] = {}
        self._memories: dict[int, Memory] = {}

    def observe(self, stats: StepStats) -> list[Finding]:
        """Judge one step against what came before it, then take it into the history."""
        history, memory = self.history(stats.optimizer), self._memory(stats.optimizer)
        findings, alarmed, failed = [], False, []
        for name, rule in memory.due(stats):
            try:
                finding = rule(stats, history)
            except Exception as error:  # noqa: BLE001  one rule's bug must not stop the others, nor the run
                failed.append(name)
                self.broken[name] = f"{type(error).__name__}: {error} (at step {stats.step})"
                continue
            if finding is not None:
                findings.append(finding)
                alarmed |= finding.severity == "alarm"
        for other in self._memories.values() if failed else ():
            other.take_out(failed)
        history.ingest(stats, alarmed or bool(memory.alarming()))
        return findings

    def history(self, optimizer: int = 0) -> History:
        """The statistics of one optimizer."""
        if optimizer not in self._histories:
            self._histories[optimizer] = History()
        return self._histories[optimizer]

    def alarming(self, optimizer: int = 0) -> tuple[str, ...]:
        """Codes of the rules whose alarm still holds. A finding tells of its onset only."""
        return self._memory(optimizer).alarming()

    def _memory(self, optimizer: int) -> Memory:
        if optimizer not in self._memories:
            made = ((r() if isinstance(r, type) else r) for r in self.rules)
            named = {key(rule): rule for rule in made}
            self._memories[optimizer] = Memory({k: r for k, r in named.items() if k not in self.broken})
        return self._memories[optimizer]

    def state_dict(self) -> dict[str, Any]:
        """Histories and memories as plain data, for a snapshot or a file."""
        return {
            str(i): {
                "history": history.state_dict(),
                "rules": {
                    k: r.state_dict() for k, r in self._memory(i).rules.items() if hasattr(r, "state_dict")
                },
            }
            for i, history in self._histories.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a state back. A rule or an optimizer that the state does not know starts afresh."""
        for gone in self._histories.keys() - {int(i) for i in state}:
            del self._histories[gone]
        self._memories.clear()
        for i, saved in state.items():
            self.history(int(i)).load_state_dict(saved["history"])  # in place: the guard holds on to it
            for name, rule in self._memory(int(i)).rules.items():
                if name in saved["rules"] and hasattr(rule, "load_state_dict"):
                    rule.load_state_dict(saved["rules"][name])


def key(rule: Any) -> str:
    """What a rule is filed under: its code, or the name of a plain function."""
    return str(getattr(rule, "code", None) or getattr(rule, "__name__", type(rule).__name__))
