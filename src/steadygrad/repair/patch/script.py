"""A script as a patch sees it: its syntax tree, and where in the text every part stands.

Positions of :mod:`ast` are exact for every expression and need no dependency. They are lines and bytes of UTF-8, as
those of ``co_positions`` are, so the text is kept as bytes here. What is not edited stays as it is to the byte.
"""

from __future__ import annotations

import ast
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.Module
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Module)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class NoPatch(Exception):
    """This change cannot be written into the script; the message says why, and what to add by hand."""


class Script:
    """A parsed source.

    Args:
        source: its text, with the line ends as they are in the file.
        shown_path: the file as people are shown it.

    Raises:
        NoPatch: it is not Python that this version of Python can read.
    """

    def __init__(self, source: str, shown_path: str) -> None:
        self.path = shown_path
        self.bom, text = ("\ufeff", source[1:]) if source.startswith("\ufeff") else ("", source)
        self.data = text.encode()
        try:
            self.tree = ast.parse(text)
        except (SyntaxError, ValueError) as error:
            raise NoPatch(f"{shown_path} cannot be read as Python: {error}") from None
        self._starts = [0, *(m.end() for m in re.finditer(rb"\r\n|\r|\n", self.data))]
        first_end = re.search(rb"\r\n|\r|\n", self.data)
        self.newline = first_end.group().decode() if first_end else "\n"
        self._parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}
        indent = re.search(rb"^([ \t]+)\S", self.data, re.MULTILINE)
        self.indent = "\t" if indent and indent.group(1).startswith(b"\t") else "    "

    # ------------------------------------------------------------------ text
    def offset(self, line: int, column: int) -> int:
        return self._starts[line - 1] + column

    def start(self, node: Any) -> int:
        return self.offset(node.lineno, node.col_offset)

    def end(self, node: Any) -> int:
        return self.offset(node.end_lineno, node.end_col_offset)

    def text(self, node: ast.AST) -> str:
        return self.data[self.start(node) : self.end(node)].decode()

    def line_of(self, offset: int) -> int:
        return bisect_right(self._starts, offset)

    def line_end(self, line: int) -> int:
        """Where the next line begins."""
        return self._starts[line] if line < len(self._starts) else len(self.data)

    def margin(self, stmt: ast.stmt) -> str | None:
        """The white space before a statement; None if something else stands before it on its line."""
        before = self.data[self.offset(stmt.lineno, 0) : self.start(stmt)].decode()
        return None if before.strip() else before

    # ------------------------------------------------------------------ the tree
    def parent(self, node: ast.AST) -> ast.AST | None:
        return self._parents.get(node)

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """What a node is part of, innermost first."""
        while (parent := self._parents.get(node)) is not None:
            yield parent
            node = parent

    def scope(self, node: ast.AST) -> Scope:
        return next(n for n in self.above(node) if isinstance(n, SCOPES))

    def nodes(self, kind: Any, within: ast.AST | None = None) -> list[Any]:
        return [n for n in ast.walk(within or self.tree) if isinstance(n, kind)]

    def statement(self, node: ast.AST) -> ast.stmt:
        """The statement before which a line can be added, so that it runs whenever the node runs.

        Raises:
            NoPatch: there is none; the node is part of a lambda, a comprehension or a loop's own condition.
        """
        line = getattr(node, "lineno", 0)
        below = node
        for above in (node, *self.above(node)):
            if isinstance(above, (ast.Lambda, *COMPREHENSIONS)):
                raise NoPatch(f"line {line} runs in the middle of an expression, where nothing can be added")
            if isinstance(above, ast.While) and below is above.test:
                raise NoPatch(f"line {line} is the condition of a loop, where nothing can be added")
            if isinstance(above, ast.stmt):
                if self.text(above).startswith("elif"):
                    raise NoPatch(f"line {line} is the condition of an elif, where nothing can be added")
                return above
            below = above
        raise NoPatch(f"line {line} is in no statement")

    # ------------------------------------------------------------------ places of a survey
    def has(self, place: Mapping[str, Any]) -> bool:
        """Whether a place is in this file."""
        if place["owner"] != "user":
            return False
        ours, theirs = PurePath(self.path).parts, PurePath(place["file"]).parts
        short = min(len(ours), len(theirs))
        return short > 0 and ours[-short:] == theirs[-short:]

    def call(self, place: Mapping[str, Any] | None, wanted: Callable[[ast.Call], bool]) -> ast.Call:
        """The call that ran at a place.

        Args:
            wanted: which of several it can be, where Python tells no more than the line.

        Raises:
            NoPatch: the place is in another file, or it cannot be told which call it is.
        """
        if place is None:
            raise NoPatch("where it is done is not known")
        if not self.has(place):
            raise NoPatch(f"it is done in {place['file']}, line {place['line']}, not in {self.path}")
        calls: list[ast.Call] = self.nodes(ast.Call)
        if place["span"] is not None:
            calls = [n for n in calls if tuple(place["span"]) in _spans(n)]
        else:
            around = [n for n in calls if n.lineno <= place["line"] <= (n.end_lineno or 0)]
            calls = [n for n in around if wanted(n)]
        if len(calls) != 1:
            raise NoPatch(f"which part of line {place['line']} does it cannot be told")
        return calls[0]


def _spans(call: ast.Call) -> Iterator[tuple[int, int, int | None, int | None]]:
    """Where Python says that a call stands: a method's, broken over lines, begins with the name of the method."""
    yield call.lineno, call.col_offset, call.end_lineno, call.end_col_offset
    func = call.func
    if isinstance(func, ast.Attribute) and func.end_lineno is not None and func.end_col_offset is not None:
        yield (
            func.end_lineno,
            func.end_col_offset - len(func.attr.encode()),
            call.end_lineno,
            call.end_col_offset,
        )


def last_name(node: ast.AST) -> str:
    """``SGD`` of ``torch.optim.SGD``, ``step`` of ``self.opt.step``."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def number(node: ast.AST | None) -> float | None:
    """The value of a literal number, with its sign; None for anything else."""
    sign = 1.0
    while isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        sign, node = -sign if isinstance(node.op, ast.USub) else sign, node.operand
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return sign * float(node.value)  # type: ignore[arg-type]
    return None


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def argument(call: ast.Call, name: str, position: int | None) -> ast.expr | None:
    """An argument of a call, by name or at a position; None if it is not given there in plain sight."""
    given = keyword(call, name)
    if given is not None or position is None or position >= len(call.args):
        return given
    before = call.args[: position + 1]
    return None if any(isinstance(a, ast.Starred) for a in before) else before[-1]
