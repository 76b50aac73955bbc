"""Pages for a terminal: the Markdown that they use, as plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import NamedTuple

NARROW, WIDE = 40, 100  # columns


class Block(NamedTuple):
    """A piece of a page: a "title", "section", "text", "item" or "code"."""

    kind: str
    lines: list[str]


def plain(page: str, width: int = 80) -> str:
    """A page as lines of at most ``width`` columns: headings without marks, text wrapped, code left as it is.

    Args:
        page: Markdown with headings, paragraphs, lists, code in fences or indented by four; no tables or links.
        width: of the terminal; taken as 40 to 100. A line of code or a word that is longer stays whole.

    Example:
        >>> print(plain("# a\\n\\n## B\\n\\nText of\\n`x`.\\n\\n```py\\nx = 1\\n```\\n"), end="")
        a
        <BLANKLINE>
        B
          Text of x.
        <BLANKLINE>
              x = 1
    """
    width = min(max(width, NARROW), WIDE)
    text, before, indent = "", "", ""
    for kind, lines in blocks(page):
        if kind in ("title", "section"):
            indent = "  " if kind == "section" else ""
        if before:
            text += "\n" if before == "section" or before == kind == "item" else "\n\n"
        text += _shown(kind, lines, width, indent)
        before = kind
    return text + "\n"


def blocks(page: str) -> Iterator[Block]:
    """Take a page apart, without its marks."""
    kind, held = "", list[str]()
    for line in [*page.splitlines(), ""]:
        fence = line.startswith("```")
        inside = kind == "code in a fence" and not fence
        heading, item = not inside and line.startswith("#"), not inside and line.startswith("- ")
        if held and (fence or heading or item or not (inside or line.strip())):
            yield Block(kind.partition(" ")[0], held)
            kind, held = "" if not fence else kind, []
        if fence:
            kind = "" if kind == "code in a fence" else "code in a fence"
        elif heading:
            marks, _, words = line.partition(" ")
            yield Block("title" if marks == "#" else "section", [words])
        elif item:
            kind, held = "item", [line.removeprefix("- ")]
        elif inside or line.strip():
            kind = kind or ("code" if line.startswith("    ") else "text")
            held.append(line)


def _shown(kind: str, lines: list[str], width: int, indent: str) -> str:
    if kind in ("title", "section"):
        return lines[0]
    if kind == "code":
        return textwrap.indent(
            textwrap.dedent("\n".join(lines)), indent + "    ", lambda line: bool(line.strip())
        )
    words = " ".join(line.strip() for line in lines).replace("`", "")
    first, rest = (indent + "- ", indent + "  ") if kind == "item" else (indent, indent)
    return textwrap.fill(
        words,
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
