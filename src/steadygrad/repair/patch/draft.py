"""Changes of a script's text, gathered, and written down as the new source and a unified diff."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from steadygrad.repair.patch.script import NoPatch, Script

BEHIND, LINES, LEFT, INSIDE, RIGHT, TAIL = range(6)  # order of what is put in at the same place


class Edit(NamedTuple):
    start: int
    end: int
    rank: int
    number: int
    text: str


@dataclass
class Draft:
    """A script with what is to be changed in it. Nothing else of its text moves."""

    script: Script
    survey: Mapping[str, Any]
    plan: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)
    needs: set[str] = field(default_factory=set)  # modules, by these names, for what is put in
    _edits: list[Edit] = field(default_factory=list)
    _helpers: list[str] = field(default_factory=list)
    _wrapped: dict[ast.AST, list[tuple[str, str]]] = field(default_factory=dict)

    # ------------------------------------------------------------------ changes
    def replace(self, node: ast.AST, text: str) -> None:
        """Put a text in the place of an expression; the same again changes nothing.

        Raises:
            NoPatch: something else was to be put there.
        """
        self.cut(self.script.start(node), self.script.end(node), text)

    def cut(self, start: int, end: int, text: str) -> None:
        """As :meth:`replace`, between two offsets."""
        for e in self._edits:
            if e.rank == INSIDE and e.start < end and start < e.end:
                if (e.start, e.end, e.text) == (start, end, text):
                    return
                raise NoPatch(f"line {self.script.line_of(start)} would have to be changed twice")
        self._add(start, end, INSIDE, text)

    def insert(self, offset: int, text: str) -> None:
        """Put a text in; of several at one place the first comes first."""
        self._edits.append(Edit(offset, offset, INSIDE, len(self._edits), text))

    def wrap(self, node: ast.AST, left: str, right: str) -> None:
        """Put an expression into a call; later ones go around earlier ones, the same is done once."""
        around = self._wrapped.setdefault(node, [])
        if (left, right) not in around:
            around.append((left, right))

    def before(self, stmt: ast.stmt, *lines: str) -> None:
        """Add lines, indented as the statement is; a line may have further lines in it."""
        margin, newline = self.script.margin(stmt), self.script.newline
        if margin is None:
            text = "".join(f"{self._simple(line, stmt)}; " for line in lines)
        else:
            text = "".join(self._indented(line, margin) + newline + margin for line in lines)
        self._add(self.script.start(stmt), self.script.start(stmt), LINES, text)

    def after(self, stmt: ast.stmt, *lines: str) -> None:
        margin, newline = self.script.margin(stmt), self.script.newline
        end = self.script.end(stmt)
        last = self.script.line_of(end)
        next_line = self.script.line_end(last)
        rest = self.script.data[end:next_line].decode()
        if isinstance(stmt, (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)):
            raise NoPatch(f"line {stmt.lineno} begins a block, behind which nothing can be added")
        if margin is not None and re.fullmatch(r"[ \t\f]*(#[^\r\n]*)?(\r\n|\r|\n)?", rest):
            text = "".join(margin + self._indented(line, margin) + newline for line in lines)
            if not rest.endswith(("\r", "\n")):
                text = newline + text.removesuffix(newline)
            self._add(next_line, next_line, BEHIND, text)
        else:
            text = "".join(f"; {self._simple(line, stmt)}" for line in lines)
            self._add(end, end, TAIL, text)

    def step(self, stmt: ast.stmt, call: ast.Call, header: str, lines: Sequence[str]) -> None:
        """Put lines before a statement, and all under a header such as ``if this:``; without one, if it is "".

        Raises:
            NoPatch: under a header, the statement is more than this call: its value is used.
        """
        if not header:
            if lines:
                self.before(stmt, *lines)
            return
        if not isinstance(stmt, ast.Expr) or stmt.value is not call:
            raise NoPatch(
                f"line {stmt.lineno} uses what the step returns, which a step that is left out does not do"
            )
        rest = self.script.data[self.script.end(stmt) : self.script.line_end(stmt.end_lineno or 0)].decode()
        margin, start = self.script.margin(stmt), self.script.start(stmt)
        if margin is not None and not rest.lstrip(" \t").startswith(";"):
            inside = self.script.newline + margin + self.script.indent
            self._add(start, start, LEFT, header + "".join(inside + line for line in (*lines, "")))
        elif header.startswith("if "):
            condition = header.removeprefix("if ").removesuffix(":")
            self._add(start, start, LEFT, f"{condition} and ({''.join(f'{line}, ' for line in lines)}")
            self._add(self.script.end(stmt), self.script.end(stmt), RIGHT, ")")
        else:
            raise NoPatch(f"line {stmt.lineno} holds more than one statement: give each its own line first")

    def helper(self, source: str) -> None:
        """A function of the script's own, put below its imports. Once, however often it is asked for."""
        if source not in self._helpers:
            self._helpers.append(source)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _add(self, start: int, end: int, rank: int, text: str) -> None:
        edit = Edit(start, end, rank, len(self._edits), text)
        if not any(e[:3] == edit[:3] and e.text == text for e in self._edits):
            self._edits.append(edit)

    def _indented(self, line: str, margin: str) -> str:
        steps = [
            re.sub(r"^(    )+", lambda m: self.script.indent * (len(m[0]) // 4), part)
            for part in line.split("\n")
        ]
        return (self.script.newline + margin).join(steps)

    @staticmethod
    def _simple(line: str, stmt: ast.stmt) -> str:
        if (
            len(ast.parse(line).body) != 1
            or "\n" in line
            or isinstance(ast.parse(line).body[0], (ast.For, ast.If))
        ):
            raise NoPatch(f"line {stmt.lineno} holds more than one statement: give each its own line first")
        return line

    # ------------------------------------------------------------------ the result
    def source(self) -> str:
        """The changed text.

        Raises:
            NoPatch: it would not be Python.
        """
        edits = list(self._edits)
        for node, around in self._wrapped.items():
            start, end = self.script.start(node), self.script.end(node)
            edits.append(Edit(start, start, LEFT, 0, "".join(left for left, _ in reversed(around))))
            edits.append(Edit(end, end, RIGHT, 0, "".join(right for _, right in around)))
        if edits and (self._helpers or self.needs):
            edits += self._preamble(min(e.start for e in edits))
        data = self.script.data
        for edit in sorted(edits, key=lambda e: (e.start, e.rank, e.number), reverse=True):
            data = data[: edit.start] + edit.text.encode() + data[edit.end :]
        text = data.decode()
        try:
            compile(text, self.script.path, "exec", dont_inherit=True)
        except SyntaxError as error:
            raise NoPatch(f"the change does not fit into line {error.lineno} of {self.script.path}") from None
        return self.script.bom + text

    def _preamble(self, first: int) -> list[Edit]:
        """torch and the helpers: behind the last import that comes before whatever is changed."""
        script, newline = self.script, self.script.newline
        ahead = [s for s in script.tree.body if script.end(s) <= first]
        imports = [s for s in ahead if isinstance(s, (ast.Import, ast.ImportFrom))]
        known = {_bound(a) for s in imports if isinstance(s, ast.Import) for a in s.names}
        needs = self.needs | {"torch"} if self._helpers else self.needs
        parts = [f"import {name}" for name in sorted(needs - known)]
        parts += [f"\n\n{helper.strip()}" for helper in self._helpers]
        if not parts:
            return []
        text = "\n".join(parts)
        if imports:
            last = imports[-1].end_lineno or 0
            at = script.line_end(last)
            if at == len(script.data):
                text = "\n" + text
        else:
            stmt = next((s for s in script.tree.body if script.end(s) > first), script.tree.body[0])
            last = min([stmt.lineno, *(d.lineno for d in getattr(stmt, "decorator_list", []))]) - 1
            at = script.offset(last + 1, 0)
        following = script.data[at:].decode().replace("\r\n", "\n")
        blank = len(following) - len(following.lstrip("\n"))
        text += "\n" * (1 + (max(0, 2 - blank) if self._helpers else 0))
        return [Edit(at, at, BEHIND, -1, text.replace("\n", newline))]

    def diff(self, new: str) -> str:
        """As ``patch -p1`` reads it."""
        old, changed = (_lines(text) for text in (self.script.bom + self.script.data.decode(), new))
        path = self.script.path.replace("\\", "/")
        parts = difflib.unified_diff(old, changed, f"a/{path}", f"b/{path}")
        return "".join(p if p.endswith("\n") else f"{p}\n\\ No newline at end of file\n" for p in parts)


def _bound(alias: ast.alias) -> str:
    """The module that an import binds to its own name."""
    return alias.name.split(".")[0] if alias.asname in (None, alias.name) else ""


def _lines(text: str) -> Sequence[str]:
    """Lines as the patch program sees them: they end at line feeds only."""
    return re.findall(r"[^\n]*\n|[^\n]+\Z", text)
