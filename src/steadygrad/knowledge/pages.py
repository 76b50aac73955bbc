"""The pages: those of causes are files of the package, those of rules their docstrings."""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.resources import files

SECTIONS = ("What it is", "How it looks", "Why it happens", "What cures it", "What does not", "Source")


class UnknownPage(ValueError):
    """No cause or rule has that name."""


@cache
def causes() -> tuple[str, ...]:
    """The names of all causes that have a page, sorted.

    Example:
        >>> "lr_too_large" in causes()
        True
    """
    folder = files("steadygrad.knowledge") / "causes"
    return tuple(
        sorted(page.name.removesuffix(".md") for page in folder.iterdir() if page.name.endswith(".md"))
    )


def cause_page(name: str) -> str:
    """The page of a cause, in Markdown, with `SECTIONS` as its second headings.

    Raises `UnknownPage` for a name that is not in `causes`.

    Example:
        >>> print(cause_page("bad_batch").splitlines()[0])
        # bad_batch
    """
    if name not in causes():
        raise UnknownPage(_unknown(name))
    return (files("steadygrad.knowledge") / "causes" / f"{name}.md").read_text("utf-8")


def summary(name: str) -> str:
    """A cause in one sentence: the first of its page.

    Raises `UnknownPage` for a name that is not in `causes`.

    Example:
        >>> summary("lr_too_small")
        'The learning rate is so small that the weights hardly move in the steps that the run has.'
    """
    _, _, rest = cause_page(name).partition(f"## {SECTIONS[0]}\n")
    return re.split(r"(?<=\.)\s", " ".join(rest.split()), maxsplit=1)[0]


def explain(name_or_code: str | None = None) -> str:
    """The page of a cause (``lr_too_large``) or of a rule (``G101``), in Markdown; of nothing, the list of all.

    Upper and lower case are the same, and so are ``-``, spaces and ``_``. Raises `UnknownPage`, which names the
    nearest names, for anything else.

    Example:
        >>> print(explain("g101").splitlines()[0])
        # G101 exploding_gradient (alarm)
    """
    if name_or_code is None:
        return _all()
    word = re.sub(r"[\s-]+", "_", name_or_code.strip())
    if word.lower() in causes():
        return cause_page(word.lower())
    if word.upper() in _codes():
        return f"# {_rule_page(word.upper())}"
    raise UnknownPage(_unknown(name_or_code))


def _all() -> str:
    lines = ["# Causes", "", *(f"- `{name}`: {summary(name)}" for name in causes()), "", "# Rules", ""]
    for code in _codes():
        title, _, first, *_ = _rule_page(code).splitlines()
        lines.append(f"- `{title}`: {first}")
    return "\n".join(lines) + "\n"


def _codes() -> tuple[str, ...]:
    from steadygrad.rules import RULES  # here, for the page of a cause needs no rules

    return tuple(rule.code for rule in RULES)


def _rule_page(code: str) -> str:
    from steadygrad.rules import page

    return page(code)


def _unknown(name: str) -> str:
    names = {known.lower(): known for known in (*causes(), *_codes())}
    near = [names[n] for n in difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)]
    nearest = f"; the nearest: {', '.join(near)}" if near else ""
    return f"no cause or rule is called {name[:60]!r}{nearest}. All of them: steadygrad explain"
