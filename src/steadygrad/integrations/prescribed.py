"""The prescription of ``steadygrad run --with``, read and tried out before anything of the script runs.

Loads neither torch nor numpy: the script decides what has to be decided before torch is imported. So a process of its
own reads the file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steadygrad.integrations.script import BadTarget

ROOT = Path(__file__).resolve().parents[2]
# Behind all else: a module of the folder that the user is in, or of site-packages, must not stand for torch's own.
CODE = (
    "import sys; del sys.path[0]; sys.path.append(sys.argv[1]);"
    "from steadygrad.integrations.prescribed import answer; answer(sys.argv[2])"
)


def read_prescription(path: str) -> dict[str, Any]:
    """What a prescription says, as plain data: ``{"plan": {...}, "name": "lr / 10", "file": PATH, "eager": False}``.

    Raises:
        BadTarget: there is no such file, or it cannot be put in force; the message says why.
    """
    out = subprocess.run(
        [sys.executable, "-c", CODE, str(ROOT), path],
        capture_output=True,
        text=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
    )
    try:
        found = json.loads(out.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        lines = out.stderr.strip().splitlines() or [f"exit code {out.returncode}"]
        raise BadTarget(f"the prescription {path} could not be read: {lines[-1]}") from None
    if "error" in found:
        raise BadTarget(found["error"])
    return dict(found)


def answer(path: str) -> None:
    """In that process: print what was found as one line of JSON."""
    from steadygrad.repair.effects.change import Change
    from steadygrad.repair.effects.effect import NotApplicable
    from steadygrad.repair.prescription import BadPrescription, Prescription

    found: dict[str, Any]
    try:
        prescription = Prescription.read(Path(path))
        Change(prescription.plan)  # has a look at every value
        found = {
            "plan": dict(prescription.plan),
            "name": name_of(prescription.plan, prescription.about),
            "file": Path(path).name,
            "eager": prescription.eager,
        }
    except BadPrescription as error:
        found = {"error": str(error)}
    except (NotApplicable, KeyError, TypeError, ValueError, AttributeError) as error:
        why = str(error) if isinstance(error, NotApplicable) else f"{type(error).__name__}: {error}"
        found = {"error": f"{path} cannot be put in force: {why}"}
    print(json.dumps(found))


def name_of(plan: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What the change is called for people: its remedies, or the keys of its plan.

    Example:
        >>> name_of({"lr_factor": 0.1}, {"remedies": [{"name": "lr / 10"}]}), name_of({"lr_factor": 0.1}, {})
        ('lr / 10', 'lr_factor 0.1')
    """
    remedies = about.get("remedies")
    if isinstance(remedies, list) and remedies:
        names = [r.get("name") if isinstance(r, Mapping) else r for r in remedies]
        if all(isinstance(name, str) and name for name in names):
            return " + ".join(map(str, names))
    shown = [f"{k} {v}" if isinstance(v, (int, float)) else k for k, v in plan.items()]
    return " + ".join(shown) or "nothing changed"
