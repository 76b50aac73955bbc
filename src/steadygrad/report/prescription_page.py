"""A prescription as one self-contained HTML page, without JavaScript: what was wrong, what cures it, and the proof."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from steadygrad import __version__
from steadygrad.report.curves import thin
from steadygrad.report.repair_table import merged, outcome
from steadygrad.report.repair_text import HEADS, clean_line
from steadygrad.report.text import clean, duration, number
from steadygrad.report.verdict_text import located_in_words

if TYPE_CHECKING:
    from steadygrad.diagnose.trial import TrialReport

MAX_POINTS = 900
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 920, 300, 64, 34, 14, 16
LOG_FROM = 30.0  # ratio of the largest to the smallest loss from which the axis is logarithmic
HEADROOM = 30.0  # times the highest loss of the repaired run that is still shown: the untouched one leaves the picture
KEPT = 1024  # losses that a report holds
MAX_FINDINGS = 8

CSS = """
.diff { margin: 0; padding: 14px 18px; overflow-x: auto; font: 13px/1.5 var(--mono); white-space: pre; }
.diff .add { color: var(--good); } .diff .del { color: var(--alarm); } .diff .at { color: var(--muted); }
svg.curves { display: block; width: 100%; height: auto; }
svg.curves text { font: 12px var(--sans); fill: var(--muted); }
svg.curves .grid { stroke: var(--line); }
svg.curves path { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
svg.curves .twin { stroke: var(--alarm); } svg.curves path.twin { stroke-width: 4; opacity: 0.45; }
svg.curves .fixed { stroke: var(--good); }
svg.curves text.twin { fill: var(--alarm); stroke: none; } svg.curves text.fixed { fill: var(--good); stroke: none; }
tr.best td { font-weight: 650; }
.do { font-size: 17px; }
.remedies { list-style: none; display: grid; gap: 6px; }
"""


def render(found: Mapping[str, Any], twin: TrialReport, fixed: TrialReport, diff: str, again: str) -> str:
    """Return the page.

    Args:
        found: the JSON object of a repair, numbers that are not finite as strings.
        twin: the untouched run, for its losses.
        fixed: the repaired one.
        diff: the patch; "" without one.
        again: the command that runs the script under the prescription.
    """
    nonce = secrets.token_urlsafe(16)
    css = (files("steadygrad.report") / "assets" / "report.css").read_text("utf-8") + CSS
    title = escape(clean(f"{' + '.join(found['remedies'])} cures {found['script']}"))
    policy = (
        f"default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = [
        _verdict(found, title),
        _section("proof", "The untouched run and the repaired one", curves(twin, fixed)),
        _section("change", "The change", _change(found, diff, again)),
        _section("cause", "Why it failed", _causes(found)),
        _section("seeds", "Other seeds", _seeds(found)),
        _section("tried", "What else was tried", _tried(found)),
        _section("notes", "What else is to be known", _list(found["notes"])) if found["notes"] else "",
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">',
            f"<title>{title} · steadygrad</title>",
            f'<style nonce="{nonce}">{css}</style></head><body>',
            '<header class="top"><p class="brand"><b>steadygrad</b>',
            f'<span class="run">{_text(found["script"])}</span></p></header><main>',
            *parts,
            "</main>",
            f"<footer>Written by steadygrad {escape(__version__)}. This file is complete: it needs no network.",
            "</footer>",
            "</body></html>\n",
        ]
    )


def _text(value: object) -> str:
    return escape(clean(value))


def _section(name: str, title: str, body: str) -> str:
    return (
        f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{escape(title)}</h2>\n'
        f'<div class="card">{body}</div></section>'
    )


def _list(texts: Iterable[str]) -> str:
    return "<ul class='remedies'>" + "".join(f"<li>{_text(t)}</li>" for t in texts) + "</ul>"


def _verdict(found: Mapping[str, Any], title: str) -> str:
    rows, twin, fixed = found["seeds"], found["twin"], found["fixed"]
    numbers = [
        ("untouched run, at its end", outcome(twin)),
        ("repaired run, at its end", outcome(fixed)),
        ("seeds on which it trains", f"{sum(r['fixed_trains'] for r in rows)} of {len(rows)}"),
        ("the untouched one", f"{sum(r['twin_trains'] for r in rows)} of {len(rows)}"),
        ("found by", found["found_by"]),
        ("cost", f"{float(found['runs_worth']):.1f} runs, {duration(float(found['seconds']))}"),
    ]
    shown = "".join(f"<div><dt>{escape(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in numbers)
    return (
        '<section class="verdict steady" aria-labelledby="h-verdict"><p class="word">✓ cured</p>'
        f'<h1 id="h-verdict">{title}</h1>'
        f'<p class="detail">The untouched run failed: {_text(twin["verdict"])}.</p>'
        f'<dl class="numbers">{shown}</dl></section>'
    )


def _change(found: Mapping[str, Any], diff: str, again: str) -> str:
    body = [f'<ul class="remedies do">{"".join(f"<li>{_text(a)}</li>" for a in found["advice"])}</ul>']
    state = found["patch_state"]
    if state == "proven":
        body.append(
            f"<p>The patch is proven: the patched script was run, and its losses equal those of the remedy bit for bit "
            f"over {found['patch_steps']:,} steps.</p>"
        )
    elif state == "as well":
        body.append("<p>The patched script was run: it trains as well, though not bit for bit the same.</p>")
    elif found["patch_note"]:
        word = "The patch is not offered" if state == "differs" else "There is no patch"
        first, *lines = found["patch_note"].splitlines()
        body.append(f"<p>{word}: {_text(first)}</p>")
        if lines:
            body.append(f'<pre class="diff">{escape(chr(10).join(map(clean_line, lines)))}</pre>')
    if diff:
        body.append(f'<pre class="diff">{_diff(diff)}</pre>')
    body += [f"<p>{_text(note)}</p>" for note in found["patch_notes"]]
    body.append(f'<p class="detail">Without a change to the script: <code>{_text(again)}</code></p>')
    return "\n".join(body)


def _diff(diff: str) -> str:
    kinds = {"+": "add", "-": "del", "@": "at"}
    out = []
    for line in diff.splitlines():
        kind = "at" if line[:3] in HEADS else kinds.get(line[:1], "")
        text = escape(clean_line(line))
        out.append(f'<span class="{kind}">{text}</span>' if kind else text)
    return "\n".join(out)


def _causes(found: Mapping[str, Any]) -> str:
    rows = []
    for cause in found["causes"][:4]:
        told = f": {_text(cause['message'])}" if cause["message"] else ""
        name = escape(cause["cause"].replace("_", " "))
        rows.append(f"<li><b>{name}</b> ({float(cause['probability']):.2f}){told}</li>")
    if found["first_nonfinite"]:
        first = found["first_nonfinite"]
        rows.append(f"<li>first {escape(first['value'])}: {_text(located_in_words(first))}</li>")
    seen: dict[tuple[str, str], Mapping[str, Any]] = {}
    for finding in found["findings"]:
        if finding["severity"] != "info":
            seen.setdefault((finding["code"], finding["where"]), finding)
    for finding in list(seen.values())[:MAX_FINDINGS]:
        rows.append(
            f'<li>{_text(finding["message"])} <span class="at">step {finding["step"]:,}, {_text(finding["where"])}, '
            f"{_text(finding['code'])}</span></li>"
        )
    return f'<ul class="remedies">{"".join(rows)}</ul>' if rows else "<p>No cause is known.</p>"


def _seeds(found: Mapping[str, Any]) -> str:
    if len(found["seeds"]) < 2:
        return "<p>It was run with the script's own seed alone.</p>"
    rows = [
        (_seed(row["seed_offset"]), outcome(row["twin"]), outcome(row["fixed"])) for row in found["seeds"]
    ]
    return _table(("seed", "untouched, at its end", "repaired, at its end"), rows)


def _seed(offset: int) -> str:
    return "the script's own" if offset == 0 else f"another, number {offset}"


def _tried(found: Mapping[str, Any]) -> str:
    best = " + ".join(found["remedies"])
    rows = merged(found["arms"])
    brief_at = max((row["brief_steps"] for row in rows), default=0)
    cells = [("nothing changed (twin)", "", outcome(found["twin"]), "")]
    cells += [(row["name"], row["brief"], row["whole"], row["said"]) for row in rows]
    heads = ("arm", f"loss at step {brief_at:,}" if brief_at else "", "loss at the end", "")
    return _table(heads, cells, best=best)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], best: str = "") -> str:
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    body = "".join(
        f"<tr{' class=best' if best and row[0] == best else ''}>{''.join(f'<td>{_text(c)}</td>' for c in row)}</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


# ---------------------------------------------------------------------- the picture
def curves(twin: TrialReport, fixed: TrialReport) -> str:
    """The losses of both runs as an SVG. Where a run is not finite its curve ends, and a word says so."""
    both = {"twin": _curve(twin), "fixed": _curve(fixed)}
    data = thin(both, max_points=MAX_POINTS)
    if not data["step"]:
        return "<p>No loss was seen.</p>"
    low, high, log = _range(both["twin"][1], both["fixed"][1])
    last = max(data["step"][-1], 1)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(value: float) -> float:
        share = (
            math.log(max(value, low) / low) / math.log(high / low) if log else (value - low) / (high - low)
        )
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * min(max(share, -0.02), 1.03)

    out = [
        f'<svg class="curves" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Loss over the steps: '
        f'untouched {escape(_ended(twin))}, repaired {escape(_ended(fixed))}">'
    ]
    for value in _ticks(low, high, log):
        out.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        out.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for part in (0.0, 0.5, 1.0):
        step = round(last * part)
        anchor = "start" if part == 0 else "end" if part == 1 else "middle"
        out.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 10}" text-anchor="{anchor}">step {step:,}</text>')
    for name in ("twin", "fixed"):
        if name not in data:
            continue
        out.append(f'<path class="{name}" d="{_path(data["step"], data[name], x, y)}"/>')
        lost = _lost(data["step"], data[name])
        if lost is not None:
            at = min(x(lost) + 6, WIDTH - 120)
            out.append(f'<text class="{name}" x="{at:.1f}" y="{TOP + 12}">× lost at step {lost:,}</text>')
    words = {"twin": "untouched", "fixed": "repaired"}
    for i, name in enumerate(("twin", "fixed")):
        out.append(
            f'<text class="{name}" x="{WIDTH - RIGHT - 70}" y="{TOP + 34 + 18 * i}">{words[name]}</text>'
        )
    out.append("</svg>")
    return "\n".join(out)


def _curve(report: TrialReport) -> tuple[np.ndarray, np.ndarray]:
    stride = max(1, -(-report.steps // KEPT))
    values = np.array(report.losses, dtype=np.float64)
    return np.arange(len(values), dtype=np.int64) * stride, values


def _ended(report: TrialReport) -> str:
    verdict = report.facts.verdict
    return clean(verdict.reason) if verdict is not None else ""


def _lost(steps: Sequence[int], values: Sequence[float | None]) -> int | None:
    """The step from which on a run is not finite; None if it is in the end, whatever it met on the way."""
    lost = None
    for step, value in zip(steps, values, strict=True):
        if value is not None:
            lost = None if math.isfinite(value) else step if lost is None else lost
    return lost


def _range(twin: np.ndarray, fixed: np.ndarray) -> tuple[float, float, bool]:
    """What the axis of the losses spans, and whether it is logarithmic."""
    seen = np.concatenate([fixed[np.isfinite(fixed)], twin[np.isfinite(twin)]])
    if not len(seen):
        return 0.0, 1.0, False
    mine = fixed[np.isfinite(fixed)]
    top = float(mine.max()) if len(mine) else float(seen.max())
    low, high = float(seen.min()), float(min(seen.max(), top + HEADROOM * max(abs(top), 1e-12)))
    log = low > 0 and high / low > LOG_FROM
    if not high > low:
        low, high = low - 0.5 * max(abs(low), 1.0), high + 0.5 * max(abs(high), 1.0)
    return low, high, log and low > 0


def _ticks(low: float, high: float, log: bool) -> list[float]:
    if log:
        first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
        step = max(1, (last - first) // 5)
        found = [10.0**e for e in range(first, last + 1, step)]
        return found if len(found) > 1 else [low, high]
    return [low + (high - low) * i / 4 for i in range(5)]


def _path(steps: Sequence[int], values: Sequence[float | None], x: Any, y: Any) -> str:
    """The curve; it is broken where it is not finite."""
    out, pen = [], False
    for step, value in zip(steps, values, strict=True):
        if value is None:
            continue
        if not math.isfinite(value):
            pen = False
            continue
        out.append(f"{'L' if pen else 'M'}{x(step):.1f} {y(value):.1f}")
        pen = True
    return "".join(out)
