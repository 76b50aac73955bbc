"""What ``steadygrad repair`` says to people, from its JSON object."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from steadygrad.report.repair_table import Line, outcome, table
from steadygrad.report.terminal import BOLD, DIM, GREEN, RED, RESET, YELLOW, is_terminal
from steadygrad.report.text import clean, duration, number
from steadygrad.report.verdict_text import located_in_words

STAGES = {  # the four stages, with the column in which their text begins
    "untouched": "1/4  the untouched run   ",
    "why": "2/4  why                 ",
    "trials": "3/4  trials              ",
    "seeds": "4/4  whole run, ",
}
INDENT = " " * len(STAGES["why"])
MAX_CAUSES = 3
LEAST = 0.1  # probability below which a cause is not told, but for the first
MAX_WIDTH = 120


def say(lines: Iterable[Line], stream: TextIO) -> None:
    """Print lines, in colour where somebody looks."""
    colour = is_terminal(stream) and "NO_COLOR" not in os.environ
    for style, line in lines:
        print(f"{style}{line}{RESET}" if colour and style else line, file=stream)
    stream.flush()


def untouched(verdict: str, failed_at: int | None) -> Iterable[Line]:
    """The first stage: how the untouched run failed, and from which step on if there is one."""
    since = f"; trouble from step {failed_at:,} on" if failed_at is not None else ""
    yield from _hanging(STAGES["untouched"], f"failed: {clean(verdict)}{since}", RED + BOLD)


def why(causes: Sequence[Mapping[str, Any]], first_nonfinite: Mapping[str, Any] | None) -> Iterable[Line]:
    """The second: the likely causes, before anything was tried."""
    told = [c for i, c in enumerate(causes[:MAX_CAUSES]) if i == 0 or float(c["probability"]) >= LEAST]
    names = ", ".join(f"{c['cause'].replace('_', ' ')} ({float(c['probability']):.2f})" for c in told)
    yield from _hanging(STAGES["why"], names or "no cause is known", BOLD)
    if told and told[0]["message"]:
        yield from _hanging(INDENT, clean(told[0]["message"]))
    if first_nonfinite:
        where = f"first {first_nonfinite['value']}: {clean(located_in_words(first_nonfinite))}"
        yield from _hanging(INDENT, where)


def healthy(found: Mapping[str, Any]) -> Iterable[Line]:
    """Nothing is to be repaired."""
    twin = found["twin"]
    if twin["kind"] == "unknown":
        yield from _hanging(
            "", f"The untouched run is not seen to fail: {clean(twin['verdict'])}. Nothing to repair."
        )
    else:
        course = f"loss {number(float(twin['loss_first']))} -> {number(float(twin['loss_last']))}"
        yield (
            GREEN,
            f"The untouched run trains ({course}, no incident that did not recover). Nothing to repair.",
        )
    if found["arms"]:
        tried = ", ".join(clean(arm["name"]) for arm in found["arms"])
        yield from _hanging(
            "", f"It might have done better, so this was tried: {tried}. None did clearly better."
        )
    yield from notes(found["notes"])


def trials(found: Mapping[str, Any]) -> Iterable[Line]:
    """The third stage, when it is over."""
    ended = len({arm["name"] for arm in found["arms"]})
    cost = f"{found['runs_worth']:.1f} runs' worth of steps"
    yield (
        "",
        f"{STAGES['trials']}{ended} {'arm' if ended == 1 else 'arms'}, {duration(found['seconds'])}, {cost}",
    )
    best = " + ".join(found["remedies"]) if found["cured"] else ""
    yield from table(found["twin"], found["arms"], best)


def seeds(found: Mapping[str, Any]) -> Iterable[Line]:
    """The fourth: the remedy beside the untouched run, seed by seed."""
    rows = found["seeds"]
    twin = sum(row["twin_trains"] for row in rows)
    fixed = sum(row["fixed_trains"] for row in rows)
    losses = " ".join(outcome(row["fixed"]) for row in rows)
    of = f"{len(rows)} seed{'s' if len(rows) > 1 else ''}"
    name = clean(" + ".join(found["remedies"]))
    end = f", ended at step {found['cut_at']:,}" if found["cut_at"] else ""
    yield (
        BOLD,
        f"{STAGES['seeds']}{of}{end}  twin {twin} of {len(rows)} | {name}: {fixed} of {len(rows)} ({losses})",
    )


def cure(found: Mapping[str, Any], diff: str) -> Iterable[Line]:
    """The change to make: the patch if there is one that was proven, else what to do, in words."""
    yield "", ""
    state = found["patch_state"]
    if diff and state != "differs":
        yield from coloured(diff)
        yield "", ""
        if state == "proven":
            said = (
                f"patch proven: its losses equal the remedy's bit for bit over {found['patch_steps']:,} steps"
            )
            yield GREEN, said
        else:
            yield YELLOW, "patch run: it trains as well, though its losses are not the remedy's bit for bit"
        yield from (("", f"note: {clean(note)}") for note in found["patch_notes"])
        return
    for advice in found["advice"]:
        yield from _hanging("do   ", clean(advice), BOLD)
    if state == "differs":
        yield from _hanging(
            "     ", f"The patch is not offered: {clean(found['patch_note'])}. Its lines, as advice:"
        )
        yield from (
            (DIM, f"     {line}") for _, line in coloured(diff) if line[:1] in "+-" and line[:3] not in HEADS
        )
    elif found["patch_note"]:
        first, *lines = found["patch_note"].splitlines()
        yield from _hanging("     ", f"No patch: {clean(first)}{'' if lines else '.'}")
        yield from (("", f"     {clean_line(line)}") for line in lines)


HEADS = ("+++", "---")


def coloured(diff: str) -> Iterable[Line]:
    """A unified diff, a line at a time."""
    for line in diff.splitlines():
        style = BOLD if line[:3] in HEADS else GREEN if line[:1] == "+" else RED if line[:1] == "-" else ""
        yield DIM if line[:2] == "@@" else style, clean_line(line)


def clean_line(line: str) -> str:
    """A line of code without control characters, its tabs and blanks as they are."""
    return "\t".join(clean(part) if part.strip() else part for part in line.split("\t"))


def next_steps(found: Mapping[str, Any], apply: str, again: str) -> Iterable[Line]:
    """What was saved, and what to type.

    Args:
        found: the JSON object.
        apply: the command that applies the patch; "" without one.
        again: the command that runs the script under the prescription.
    """
    files = [found["prescription"], *(["fix.patch"] if found["patch"] else []), "prescription.html"]
    yield "", f"saved {', '.join(files[:-1])} and {files[-1]}"
    if apply:
        yield DIM, f"next: {apply}"
        yield DIM, f"  or: {again}"
    else:
        yield DIM, f"next: {again}"


def not_cured(found: Mapping[str, Any]) -> Iterable[Line]:
    """Nothing that was tried was better than nothing."""
    yield "", ""
    tried = {arm["name"] for arm in found["arms"]}
    ran = {arm["name"] for arm in found["arms"] if arm["loss_last"] is not None}
    if ran:
        counted = (
            "the one remedy that was tried did not train"
            if len(ran) == 1
            else f"none of {len(ran)} remedies trained"
        )
        yield YELLOW + BOLD, f"No cure was found: {counted} where the untouched run does not."
    else:
        yield YELLOW + BOLD, "No cure was found: no remedy could be tried on this run."
    if len(tried) > len(ran):
        yield "", f"{len(tried) - len(ran)} more came to no end: the table says why."
    if found["causes"]:
        cause = found["causes"][0]
        if cause["advice"]:
            yield from _hanging("what the diagnosis says: ", clean(cause["advice"]))
        yield DIM, f"next: steadygrad explain {cause['cause']}"


def notes(texts: Sequence[str]) -> Iterable[Line]:
    """What else is to be known."""
    for text in texts:
        yield from _hanging("note: ", clean(text), DIM)


def _hanging(first: str, text: str, style: str = "") -> Iterable[Line]:
    """A text whose further lines stand below its first."""
    width = min(shutil.get_terminal_size((MAX_WIDTH, 24)).columns, MAX_WIDTH)
    indent = " " * len(first)
    for line in textwrap.wrap(
        text, max(width, len(first) + 30), initial_indent=first, subsequent_indent=indent
    ):
        yield style, line
