"""The rules of one optimizer, and which of them a step is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from steadygrad.records import Finding, StepStats
from steadygrad.rules.history import History

AnyRule = Callable[[StepStats, History], Finding | None]


class Memory:
    """Rules by name, with what each of them remembers.

    Most rules look at fields that few steps have (``Rule.needs``). Which rules are due is worked out once for every
    set of fields, so that an ordinary step costs nothing for the others.
    """

    def __init__(self, rules: dict[str, AnyRule]) -> None:
        self.rules = rules
        self._due: dict[tuple[bool, ...], list[tuple[str, AnyRule]]] = {}
        # A rule that says no alarm cannot hold one.
        self._alarmers: list[tuple[str, Any]] = [
            (name, rule)
            for name, rule in rules.items()
            if hasattr(rule, "alarming") and getattr(rule, "severity", "alarm") == "alarm"
        ]

    def due(self, stats: StepStats) -> list[tuple[str, AnyRule]]:
        """Those that have something to look at in this step, in their order. A plain function always has."""
        given = (
            stats.portrait is not None,
            bool(stats.tensors),
            bool(stats.activations),
            stats.loss_scale is not None,
            stats.embedding is not None,
        )
        due = self._due.get(given)
        if due is None:
            names = ("portrait", "tensors", "activations", "loss_scale", "embedding")
            there = {name for name, is_given in zip(names, given, strict=True) if is_given}
            due = self._due[given] = [
                (name, rule) for name, rule in self.rules.items() if _wants(rule, there)
            ]
        return due

    def alarming(self) -> tuple[str, ...]:
        """Names of the rules whose alarm still holds."""
        return tuple([name for name, rule in self._alarmers if rule.alarming])

    def take_out(self, names: Iterable[str]) -> None:
        """Ask these no more."""
        for name in names:
            self.rules.pop(name, None)
        self._due.clear()
        self._alarmers = [(name, rule) for name, rule in self._alarmers if name in self.rules]


def _wants(rule: AnyRule, given: set[str]) -> bool:
    needs = getattr(rule, "needs", ())
    return not needs or not given.isdisjoint(needs)
