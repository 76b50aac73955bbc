"""What ``check`` and ``diagnose`` say to people."""

from __future__ import annotations

import math
import os
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from steadygrad.report.terminal import BOLD, DIM, GREEN, RED, RESET, YELLOW, is_terminal
from steadygrad.report.text import clean

MAX_LAYERS = 12
MAX_CAUSES = 4
MARKED = 2.0  # a gain beyond this, or below its inverse, is pointed at
LABELS = {"forward_gain": "forward gain", "backward_gain": "backward gain"}
Line = tuple[str, str]  # style and text


def print_forecast(forecast: Mapping[str, Any], shown: str, ended: str, again: str, stream: TextIO) -> None:
    """Print what ``steadygrad check`` has seen.

    Args:
        forecast: the JSON object of the forecast.
        shown: the script's name.
        ended: how it ended, as a verb, if it was not stopped by us.
        again: the command that runs it.
        stream: where to.
    """
    _print(_forecast(forecast, shown, ended, again), stream)


def print_diagnosis(diagnosis: Mapping[str, Any], stream: TextIO) -> None:
    """Print what ``steadygrad diagnose`` found, from its JSON object."""
    _print(_diagnosis(diagnosis), stream)


def print_rerun(diagnosis: Mapping[str, Any], stream: TextIO) -> None:
    """Print what ``steadygrad diagnose --rerun`` found, from its JSON object."""
    _print([*_diagnosis(diagnosis), *_arms(diagnosis["twin"], diagnosis["arms"])], stream)


def _arms(twin: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> Iterable[Line]:
    if not arms:
        return
    rows = [{"name": "nothing (the twin)", "recovered": False, **twin}, *arms]
    width = max(len(row["name"]) for row in rows)
    yield "", ""
    yield "", f"  {'changed':{width}}  loss at the end"
    for row in rows:
        loss = "" if row["loss_last"] is None else f"{_number(row['loss_last']):.3g}"
        said = clean(row["verdict"].partition("\n")[0])
        end = f"recovered: {said}" if row["recovered"] else said
        yield GREEN if row["recovered"] else "", f"  {clean(row['name']):{width}}  {loss:>15}  {end}"


def _forecast(forecast: Mapping[str, Any], shown: str, ended: str, again: str) -> Iterable[Line]:
    steps = forecast["steps_seen"]
    ended = "was stopped" if forecast["stopped"] else ended
    yield "", f"{clean(shown)} {ended} after {'its first step' if steps == 1 else f'{steps} steps'}."
    yield "", ""
    confidence = _number(forecast["confidence"])
    if forecast["will_fail"]:
        yield RED + BOLD, f"Will fail ({confidence:.2f})."
    elif not forecast["stopped"] and ended != "ended":
        yield YELLOW + BOLD, f"Steady ({1 - confidence:.2f}) as far as it came: its own error is above."
    else:
        yield GREEN + BOLD, f"Steady ({1 - confidence:.2f})."
    yield from _causes(forecast["causes"], {f["code"]: f["message"] for f in forecast["findings"]})
    if forecast.get("lr_only"):
        yield (
            "",
            "  Only the learning rate speaks for it, and nets often bear more than the curvature says: watch the run.",
        )
    lr, limit = _number(forecast["lr"]), _number(forecast["lr_limit"])
    if limit > 0 and not any(c["cause"] == "lr_too_large" for c in forecast["causes"]):
        yield (
            "",
            f"  learning rate  {lr:.3g}, {lr / limit:.2g} times what the curvature of the first step allows",
        )
    yield from _located(forecast.get("first_nonfinite"))
    yield from _layers(forecast["layers"], [c["where"] for c in forecast["causes"][:1]])
    for text in forecast["cannot_see"]:
        yield DIM, f"cannot see: {clean(text)}"
    if forecast["causes"]:
        yield DIM, f"next: steadygrad explain {forecast['causes'][0]['cause']}"
    else:
        yield DIM, f"next: {again}"


def _diagnosis(diagnosis: Mapping[str, Any]) -> Iterable[Line]:
    what = diagnosis["run_dir"] or diagnosis["script"]
    yield BOLD, f"{clean(what)}: {diagnosis['steps']:,} steps; {clean(diagnosis['verdict'])}."
    if not diagnosis["causes"]:
        yield GREEN, "No sign of trouble."
    yield from _causes(diagnosis["causes"], {f["code"]: f["message"] for f in diagnosis["findings"]})
    yield from _located(diagnosis["first_nonfinite"])
    for note in diagnosis["notes"]:
        yield "", f"note: {clean(note)}"
    if diagnosis["causes"]:
        yield DIM, f"next: steadygrad explain {diagnosis['causes'][0]['cause']}"


def _causes(causes: Sequence[Mapping[str, Any]], messages: Mapping[str, str] | None = None) -> Iterable[Line]:
    for place, cause in enumerate(causes[:MAX_CAUSES]):
        probability = _number(cause["probability"])
        name = cause["cause"].replace("_", " ")
        yield YELLOW if place == 0 else "", f"  {probability:.2f}  {name}"
        yield from _row("", clean(cause["message"]))
        if place == 0:
            against = [messages.get(code, code) for code in cause["against"]] if messages else []
            if against:
                yield from _row("against", "; ".join(map(clean, against)))
            yield from _row("do", clean(cause["advice"]))


def _row(label: str, text: str) -> Iterable[Line]:
    first = f"        {label:9}" if label else "        "
    for line in _wrapped(text, first, " " * len(first)):
        yield "", line


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    width = min(shutil.get_terminal_size((110, 24)).columns, 110)
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest)


def located_in_words(found: Mapping[str, Any]) -> str:
    """Where the first non-finite value was made, from its JSON object.

    Example:
        >>> located_in_words({"op": "log", "module": "head", "file": "train.py", "line": 7, "step": 3,
        ...                   "kind": "forward", "sample": None, "detail": "log of 0 in 1 of 2 values"})
        'log in head, train.py:7, forward pass of step 3: log of 0 in 1 of 2 values'
    """
    parts = [f"{found['op']} in {found['module']}" if found["module"] else str(found["op"])]
    if found["line"]:
        parts.append(f"{found['file']}:{found['line']}")
    phase = {"forward": "forward pass", "backward": "backward pass"}.get(found["kind"], found["kind"])
    parts.append(f"{phase} of step {found['step']}")
    if found["sample"] is not None:
        parts.append(f"sample {found['sample']}")
    return ", ".join(parts) + (f": {found['detail']}" if found["detail"] else "")


def _located(found: Mapping[str, Any] | None) -> Iterable[Line]:
    if found:
        for line in _wrapped(f"first {found['value']}: {clean(located_in_words(found))}", "  ", "        "):
            yield "", line


def _layers(layers: Sequence[Mapping[str, Any]], where: Sequence[str]) -> Iterable[Line]:
    rows = [row for row in layers if any(not math.isnan(_number(row[key])) for key in LABELS)]
    if not rows:
        return
    num_layers = len(rows)
    if len(rows) > MAX_LAYERS:
        worst = sorted(range(len(rows)), key=lambda i: -_strangeness(rows[i]))[: MAX_LAYERS - 2]
        rows = [rows[i] for i in sorted({0, len(rows) - 1, *worst})]
    width = min(48, max(len(row["name"]) for row in rows))
    yield "", ""
    yield "", f"  {'layer':{width}}  forward gain  backward gain"
    for row in rows:
        name = clean(row["name"])[-width:]
        mark = "  <-" if row["name"] in where or _strangeness(row) > 1 else ""
        yield (
            "",
            f"  {name:{width}}  {_gain(row['forward_gain']):>12}  {_gain(row['backward_gain']):>13}{mark}",
        )
    if len(rows) < num_layers:
        yield DIM, f"  ({num_layers - len(rows)} more layers)"


def _strangeness(row: Mapping[str, Any]) -> float:
    """How far the gains of a layer are from 1, in units of what is pointed at."""
    out = 0.0
    for key in LABELS:
        gain = _number(row[key])
        if gain > 0 and math.isfinite(gain):
            out = max(out, abs(math.log(gain)) / math.log(MARKED * 2))
    return out


def _gain(value: Any) -> str:
    number = _number(value)
    return "" if math.isnan(number) else f"{number:.3g}"


def _number(value: Any) -> float:
    return float(value)  # "NaN" and "Infinity" too


def _print(lines: Iterable[Line], stream: TextIO) -> None:
    colour = is_terminal(stream) and "NO_COLOR" not in os.environ
    for style, line in lines:
        print(f"{style}{line}{RESET}" if colour and style else line, file=stream)
