"""Write docs/plan.md from the docstrings of the effects. A test checks that it is fresh.

python docs/generate_effects.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from steadygrad.repair.effects import ALL

HEAD = """# What a prescription can change

The `plan` of a prescription maps these keys to values. `steadygrad repair` writes it; it may be written by
hand as well, as `{"schema": 1, "plan": {"lr_factor": 0.1}}`, and put in force by
`steadygrad run --with FILE train.py`. Keys can be combined. Those marked eager do not reach into compiled
code: the run goes with `TORCH_COMPILE_DISABLE=1`.

"""


def text() -> str:
    """The page."""
    parts = []
    for effect in sorted(ALL, key=lambda effect: effect.key):
        mark = " (eager)" if effect.eager else ""
        parts.append(f"## `{effect.key}`{mark}\n\n{shown(inspect.getdoc(effect) or '')}\n")
    return HEAD + "\n".join(parts)


def shown(doc: str) -> str:
    """A docstring without its argument headings and example, as plain Markdown."""
    doc = doc.split("Example:")[0].rstrip()
    doc = re.sub(r":(class|func|meth|mod|data):`~?", "`", doc)
    lines = ["The value:" if line.strip() == "Args:" else line for line in doc.splitlines()]
    return "\n".join(lines).replace("``", "`")


if __name__ == "__main__":
    (Path(__file__).parent / "plan.md").write_text(text())
