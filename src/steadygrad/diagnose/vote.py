"""One voice for or against a cause."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from steadygrad.diagnose.facts import Facts
from steadygrad.records import Finding

MANY = 10.0  # times its mean: a loss that is a sum


class FactVote(NamedTuple):
    """What one fact says about one cause, in words with its numbers."""

    cause: str
    weight: float
    because: str
    where: str = ""


FactVoter = Callable[[Facts, set[str], list[Finding]], list[FactVote]]


def of_code(findings: Iterable[Finding], *codes: str) -> list[Finding]:
    """The findings with one of these codes, in their order."""
    return [f for f in findings if f.code in codes]
