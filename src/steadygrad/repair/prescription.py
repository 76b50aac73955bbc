"""A prescription: the remedy that won, the evidence for it, and all that is needed to put it in force."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steadygrad.repair.effects import EFFECTS
from steadygrad.trace.jsontext import loads

SCHEMA = 1


class BadPrescription(ValueError):
    """The file is no prescription that can be put in force; the message says why, and what to do."""


@dataclass(frozen=True)
class Prescription:
    """What ``steadygrad run --with`` reads: ``plan`` is put in force, the rest is for people."""

    plan: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)  # cause, evidence, twin, fixed, seeds, tried, cost

    @property
    def eager(self) -> bool:
        """Whether it does not reach into compiled code."""
        return any(EFFECTS[key].eager for key in self.plan)

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "plan": dict(self.plan), **self.about}

    @classmethod
    def read(cls, path: Path) -> Prescription:
        """Read one that ``steadygrad repair`` has written.

        Raises:
            BadPrescription: there is no such file, it is no prescription, or a newer steadygrad has written it.
        """
        try:
            data = loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise BadPrescription(f"{path} cannot be read: {error}") from None
        except (ValueError, json.JSONDecodeError) as error:
            raise BadPrescription(f"{path} is no prescription: {error}") from None
        if not isinstance(data, dict) or not isinstance(data.get("plan"), dict):
            raise BadPrescription(
                f"{path} is no prescription: it has no plan. `steadygrad repair SCRIPT` writes one"
            )
        if data.get("schema") != SCHEMA:
            raise BadPrescription(
                f"{path} has schema {data.get('schema')!r}, this steadygrad reads {SCHEMA}: repair the script anew"
            )
        unknown = sorted(set(data["plan"]) - set(EFFECTS))
        if unknown:
            raise BadPrescription(
                f"{path} asks for {unknown[0]!r}, which this steadygrad does not know: update it"
            )
        if any(isinstance(v, float) and not math.isfinite(v) for v in data["plan"].values()):
            raise BadPrescription(
                f"{path} has a number that is not finite in its plan: repair the script anew"
            )
        about = {k: v for k, v in data.items() if k not in ("schema", "plan")}
        return cls(data["plan"], about)
