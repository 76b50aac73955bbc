"""The house: imports point one way, and importing steadygrad pulls in nothing heavier than torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "steadygrad"

# A room may import from rooms on lower floors and from itself.
FLOORS = {
    "records": 0,
    "_foreach": 0,
    "_check": 0,
    "_preserve": 0,
    "clip": 1,
    "init": 1,
    "schedule": 1,
    "nn": 2,
    "optim": 2,
    "plasticity": 2,
    "quantum": 2,
    "recipes": 3,
    "graph": 1,
    "probe": 2,
    "trace": 3,
    "rules": 3,
    "forecasting": 5,
    "precision": 6,
    "diagnose": 4,
    "knowledge": 4,
    "selfsup": 4,
    "config": 4,
    "guard": 3,
    "locating": 4,
    "repair": 5,
    "report": 6,
    "sinks": 7,
    "integrations": 8,
    "testing": 9,
    "site_hook": 9,
    "demo": 9,
    "running": 9,
    "studying": 9,
    "checking": 9,
    "mending": 9,
    "cli_words": 9,
    "cli_choices": 9,
    "pytest_plugin": 10,
    "cli": 10,
}


def imports_of(path: Path) -> set[str]:
    """Rooms of steadygrad that a module imports, anywhere in it."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"{node.module}.{a.name}" for a in node.names]
                if node.module == "steadygrad"
                else [node.module]
            )
            assert node.level == 0, f"{path}: relative import"
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        else:
            continue
        rooms |= {n.split(".")[1] for n in names if n.startswith("steadygrad.")}
    return rooms


def modules() -> list[Path]:
    return [p for p in SRC.rglob("*.py") if p.parent != SRC or p.name != "__init__.py"]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_one_way(path):
    room = path.relative_to(SRC).parts[0].removesuffix(".py")
    if room.startswith("_") and room not in FLOORS or room == "examples":
        return
    assert room in FLOORS, f"{room} is not on the map: add its floor here and to docs/architecture.md"
    for other in imports_of(path) - {room, "__version__"}:
        assert FLOORS[other] < FLOORS[room], (
            f"{path.relative_to(SRC)} imports {other}, which is not below {room}"
        )


def test_import_is_light():
    """A fresh interpreter: after `import steadygrad` only torch, numpy and the standard library may be loaded."""
    code = (
        "import torch, sys; before = set(sys.modules); import steadygrad; steadygrad.StepStats;"
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(out.stdout)) <= {"steadygrad"} | set(sys.stdlib_module_names)


def test_every_public_name_resolves():
    import steadygrad

    for name in steadygrad.__all__:
        assert getattr(steadygrad, name) is not None
