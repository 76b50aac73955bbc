"""What stands behind our own options on the command line: a script, a module or a command, with its own arguments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from steadygrad.integrations.launcher import check_command
from steadygrad.integrations.script import BadTarget, Target

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="SCRIPT",
        help="A script, -m MODULE, or a command that starts Python. What follows belongs to it.",
        show_default=False,
    ),
]


class RunCommand(TyperCommand):
    """``-m NAME`` ends our own options, as it does for python: what follows belongs to the module."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        takes_value = {o for p in self.params if not getattr(p, "is_flag", True) for o in p.opts}
        return list(super().parse_args(ctx, end_options_at_module(args, takes_value)))


class DiagnoseCommand(RunCommand):
    """Behind ``--rerun`` stands a script, and what follows that belongs to it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.allow_interspersed_args = "--rerun" not in args
        return super().parse_args(ctx, args)


def end_options_at_module(args: Sequence[str], takes_value: set[str]) -> list[str]:
    """Put ``--`` before a ``-m`` that stands among our own options.

    Example:
        >>> end_options_at_module(["--name", "-m", "-m", "train", "--lr", "3"], {"--name"})
        ['--name', '-m', '--', '-m', 'train', '--lr', '3']
    """
    i = 0
    while i < len(args) and args[i].startswith("-") and args[i] != "--":
        if args[i].startswith("-m"):
            return [*args[:i], "--", *args[i:]]
        i += 2 if args[i] in takes_value else 1
    return list(args)


def target_of(words: Sequence[str]) -> Target | None:
    """The script or module that the words name; None if they are another command.

    Example:
        >>> target_of(["-m", "pkg.train", "--lr", "3"])
        Target(name='pkg.train', args=('--lr', '3'), is_module=True)
        >>> target_of(["torchrun", "train.py"]) is None
        True
    """
    first = words[0]
    if first.startswith("-m"):
        if first == "-m" and len(words) == 1:
            raise BadTarget("-m needs the name of a module")
        name, rest = (words[1], words[2:]) if first == "-m" else (first[2:], words[1:])
        return Target(name, tuple(rest), is_module=True)
    if first.endswith(".py") or os.path.isdir(first):
        return Target(first, tuple(words[1:]))
    return None


def checked_target(words: Sequence[str]) -> Target | None:
    """The script or module that the words name; None if they are another command.

    Raises:
        BadTarget: it cannot be run, and nothing of it was.
    """
    target = target_of(words)
    if target is not None:
        target.check()
    else:
        check_command(words)
    return target
