"""Write docs/api.md and docs/commands.md, from docstrings and from the command line. A test checks that they are fresh.

python docs/generate_api.py
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from generate_methods import card, code

import steadygrad
from steadygrad import testing
from steadygrad.cli import app

FOLDER = Path(__file__).parent
API = """# The package

What `import steadygrad as sg` gives; each name is loaded when it is first used. The methods (clipping, initialisation,
layers, optimizers, ...) have [pages of their own](methods/index.md)."""
COMMANDS = """# Commands

What `steadygrad COMMAND --help` says. What follows a script on the command line belongs to the script."""


def names() -> Iterator[tuple[str, Any, str]]:
    """Name, object and module of everything public that is no method."""
    for name in steadygrad.__all__:
        value = getattr(steadygrad, name)
        if callable(value):
            yield name, value, "sg"
    for name, value in vars(testing).items():
        if not name.startswith("_") and getattr(value, "__module__", "") == testing.__name__:
            yield name, value, "sg.testing"


def members(kind: type) -> Iterator[str]:
    """A row for each public method and property of a class that says what it does."""
    for name, member in vars(kind).items():
        inner = member.fget if isinstance(member, property) else member
        inner = getattr(inner, "__func__", inner)
        text = inspect.getdoc(inner) if callable(inner) else None
        if name.startswith("_") or not text:
            continue
        line = code(" ".join(text.split("\n\n")[0].split())).replace("|", "\\|")
        shown = f"`.{name}`" if isinstance(member, property) else f"`.{name}()`"
        yield f"| {shown} | {line} |"


def api() -> str:
    """The page of the package."""
    parts = [API]
    for name, value, room in names():
        if inspect.isclass(value) and issubclass(value, BaseException):
            parts += [f"## {name}", code(inspect.getdoc(value) or "")]
            continue
        parts.append(card(name, value, room))
        rows = list(members(value)) if inspect.isclass(value) else []
        if rows:
            parts.append("\n".join(["| | |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """The page of the command line."""
    parts = [COMMANDS]
    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="steadygrad")
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        if command.hidden:
            continue
        usage = " ".join(command.get_usage(typer.Context(command, info_name=name, parent=context)).split())
        rows = [f"| {_how(p)} | {_what(p)} |" for p in command.params if not getattr(p, "hidden", False)]
        said = inspect.cleandoc(command.help or "").replace("\b\n", "").split("\n\n")
        text = "\n\n".join(f"```text\n{t}\n```" if t.startswith("steadygrad ") else t for t in said)
        parts += [
            f"## {name}",
            f"```text\n{usage.removeprefix('Usage: ')}\n```",
            text,
            "\n".join(["| | |", "|---|---|", *rows]),
        ]
    return "\n\n".join(parts) + "\n"


def _how(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    names = [*parameter.opts, *parameter.secondary_opts]
    return ", ".join(f"`{name}`" for name in names)


def _what(parameter: Any) -> str:
    return " ".join((getattr(parameter, "help", "") or "").split()).replace("|", "\\|")


def pages() -> dict[str, str]:
    """File name to text."""
    return {"api.md": api(), "commands.md": commands()}


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
