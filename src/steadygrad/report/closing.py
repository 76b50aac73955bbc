"""The last words about a run: how it ended, each incident with its cause, and what to type next."""

from __future__ import annotations

import os
import shlex
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

from steadygrad.report.terminal import BOLD, DIM, DONE, RED, RESET, YELLOW, is_terminal, shown_path
from steadygrad.report.text import clean, duration, number
from steadygrad.report.verdict_text import located_in_words

if TYPE_CHECKING:
    from steadygrad.records import Cause, Finding, RunSummary
    from steadygrad.report.story import Done, Incident

MAX_BLOCKS = 5  # incidents told in full; all are in the report
MAX_EACH = 3  # reasons for and against, further findings
PLAIN_WIDTH = 110

REASONS_SCRIPT = (
    "the script trains without torch.optim (parameters changed by hand, an optimizer of Keras)",
    "it only defines functions: nothing called them",
    "training happens in a process it started itself: use  steadygrad run -- <the launcher and its words>",
)
REASONS_LAUNCHER = (
    "no process of it trains with torch.optim",
    "it runs another Python, without steadygrad, or gives it -I, -E, -S or a PYTHONPATH of its own",
    "training happens in a process that was forked after torch was imported: start it with spawn",
)


def print_summary(
    summary: RunSummary,
    *,
    shown: str,
    ended: str = "ended",
    cwd: str,
    guard: str = "on",
    quiet: bool = False,
    notes: bool = True,
    stream: TextIO | None,
) -> None:
    """Print the end of a run.

    Args:
        summary: what the run came to; at least one step.
        shown: what was run, for people.
        ended: how, as a verb: ``ended``, ``failed (ValueError)``, ``was interrupted``.
        cwd: the folder that paths are shown from.
        guard: the mode it ran in; without ``on`` nothing was done about an incident.
        quiet: say nothing about a healthy run.
        notes: repeat the notes; False where they were said when they arose.
        stream: where to; None: nobody listens.
    """
    if not notes:
        summary = replace(summary, notes=())
    acted = any(not a.prescribed for a in summary.actions)
    healthy = not (any(f.severity != "info" for f in summary.findings) or acted or summary.causes)
    if stream is None or (quiet and healthy and not summary.notes):
        return
    colour = is_terminal(stream) and "NO_COLOR" not in os.environ
    width = min(shutil.get_terminal_size().columns, 120) if is_terminal(stream) else PLAIN_WIDTH
    for style, line in _summary(summary, shown, ended, cwd, guard, healthy, width):
        print(f"{style}{line}{RESET}" if colour and style else line, file=stream)


def print_no_steps(
    shown: str, ended: str, *, failed: bool, launched: bool, stream: TextIO | None = None
) -> None:
    """Say that nothing was seen, and why that may be.

    Args:
        shown: what was run, for people.
        ended: how, as a verb.
        failed: it ended with an error, which is then reason enough.
        launched: it was a command, not a script.
        stream: where to; None: nobody listens.
    """
    if stream is None:
        return
    lines = [
        f"{clean(shown)} {ended}, and no optimizer step was seen." + ("" if failed else " Likely reasons:")
    ]
    if not failed:
        reasons = REASONS_LAUNCHER if launched else REASONS_SCRIPT
        lines += [f"  ({letter}) {reason}" for letter, reason in zip("abc", reasons, strict=True)]
    loud = is_terminal(stream) and "NO_COLOR" not in os.environ
    for i, line in enumerate(lines):
        print(f"{BOLD}{YELLOW}{line}{RESET}" if loud and i == 0 else line, file=stream)


def _summary(
    summary: RunSummary, shown: str, ended: str, cwd: str, guard: str, healthy: bool, width: int
) -> Iterable[tuple[str, str]]:
    from steadygrad.report.story import incidents  # loads numpy, which is the script's to load first

    course = f"{clean(shown)} {ended}: {summary.steps:,} {'step' if summary.steps == 1 else 'steps'}"
    if summary.loss_first is not None and summary.loss_last is not None:
        course += f", loss {number(summary.loss_first)} -> {number(summary.loss_last)}"
    course += f", {duration(summary.seconds)}"
    run = shown_path(summary.run_dir, cwd) if summary.run_dir else None
    under = dict.fromkeys(clean(a.reason) for a in summary.actions if a.prescribed)  # of each rank
    notes = [*(("", text) for text in under), *(("", f"note: {clean(note)}") for note in summary.notes)]
    if healthy:
        yield BOLD, f"{course}, steady throughout" + (f"; recorded in {run}" if run else "")
        yield from notes
        return
    yield BOLD, course
    blocks = incidents(summary.findings, summary.actions, summary.causes)
    if blocks:
        yield "", ""
        yield RED, _counted(len(blocks), "incident")
    told: set[str] = set()
    for block in blocks[:MAX_BLOCKS]:
        yield from _incident(block, summary.findings, told, guard, width)
    if len(blocks) > MAX_BLOCKS:
        yield "", f"  and {_counted(len(blocks) - MAX_BLOCKS, 'more incident')}: see the report"
    yield from _warnings(summary, blocks, width)
    if summary.causes and summary.causes[0].cause not in told:
        yield from _without_incident(summary, width)
    if (first := summary.first_nonfinite) is not None:
        yield "", ""
        yield "", f"first {first.value}: {clean(located_in_words(first.to_json()))}"
    yield from notes
    if run and summary.causes:
        yield (
            DIM,
            f"next: steadygrad diagnose {shlex.quote(run)}   says why, with all that speaks for and against it",
        )
    if run:
        yield DIM, f"next: steadygrad report {shlex.quote(run)}   opens the pictures"


def _incident(
    block: Incident, findings: Sequence[Finding], told: set[str], guard: str, width: int
) -> Iterable[tuple[str, str]]:
    head = block.seen[0].message if block.seen else block.done[0].reason
    step = f"  step {block.first:,}  "
    indent = " " * len(step)

    def row(label: str, text: str) -> Iterable[tuple[str, str]]:
        first = indent + (f"{label:9}" if label else "")
        yield from (("", line) for line in _wrap(text, first, " " * len(first), width))

    yield from (("", line) for line in _wrap(head, step, indent, width))
    others = block.seen[1 : 1 + MAX_EACH]
    said = {head, *(other.message for other in others)}
    for other in others:
        yield from row("also", f"{other.message} (step {other.step:,})")
    cause = block.cause
    if cause is not None and cause.cause not in told:
        told.add(cause.cause)
        because = _cause(cause)
        yield from row("", because)
        for label, codes in (("for", cause.supporting), ("against", cause.contradicting)):
            texts = [t for t in _messages(codes, findings) if t not in said and t not in because]
            for i, text in enumerate(texts[:MAX_EACH]):
                yield from row(label if i == 0 else " ", text)
    for i, done in enumerate(block.done):
        yield from row("done" if i == 0 else " ", _done(done, head))
    if not block.done:
        yield from row(
            "done",
            "nothing: it stayed finite and was given time" if guard == "on" else f"nothing: --guard {guard}",
        )


def _without_incident(summary: RunSummary, width: int) -> Iterable[tuple[str, str]]:
    """A run that came to nothing although nothing happened in it."""
    yield "", ""
    if summary.verdict:
        yield RED, f"did not train: {clean(summary.verdict)}"
    for line in _wrap(_cause(summary.causes[0]), "  ", "  ", width):
        yield "", line


def _cause(cause: Cause) -> str:
    text = f"most likely {cause.cause.replace('_', ' ')} ({cause.probability:.2f})"
    return f"{text}: {cause.message}" if cause.message else text


def _messages(codes: Sequence[str], findings: Sequence[Finding]) -> list[str]:
    """What the findings with these codes said, the first of each."""
    first = {f.code: f.message for f in reversed(findings)}
    return list(dict.fromkeys(first[code] for code in codes if code in first))


def _done(done: Done, head: str) -> str:
    """What was done, without repeating the head of the block."""
    reason = done.reason.removeprefix(head).lstrip(" ;:,")
    words = DONE.get(done.action, done.action)
    if done.count > 1:
        words += f" {done.count} steps ({done.first:,} to {done.last:,})"
    return f"{words}: {reason}" if reason else words


def _warnings(summary: RunSummary, blocks: Sequence[Incident], width: int) -> Iterable[tuple[str, str]]:
    """Warnings that belong to no incident, the first of each kind."""
    inside = {(f.code, f.where) for block in blocks for f in block.seen}
    first: dict[tuple[str, str], Finding] = {}
    for f in summary.findings:
        if f.severity == "warning" and (f.code, f.where) not in inside:
            first.setdefault((f.code, f.where), f)
    if not first:
        return
    yield "", ""
    yield YELLOW, _counted(len(first), "warning")
    for f in list(first.values())[:MAX_BLOCKS]:
        step = f"  step {f.step:,}  "
        where = "" if f.where in f.message else f" ({f.where})"
        yield from (("", line) for line in _wrap(f.message + where, step, " " * len(step), width))
    if len(first) > MAX_BLOCKS:
        yield "", f"  and {len(first) - MAX_BLOCKS} more: see the report"


def _counted(count: int, one: str) -> str:
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"


def _wrap(text: str, first: str, indent: str, width: int) -> list[str]:
    """Lines of ``text``, cleaned, under each other behind ``first``."""
    lines = textwrap.wrap(
        clean(text),
        max(width, len(indent) + 20),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines or [first.rstrip()]
