"""Write docs/methods/: a card for every method, made from its docstring. A test checks that they are fresh.

python docs/generate_methods.py
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parent / "methods"
CARD = ("When to use it", "Values in use", "Cost", "Source")  # what every method must say
BLOCKS = ("Args", "Attributes", "Returns", "Raises", "Example")


@dataclass(frozen=True)
class Family:
    """One page: a room of the package."""

    page: str
    title: str
    room: str
    parts: tuple[str, ...] = ()  # public names that are no methods: records, and pieces of a method
    shown: str = ""  # where users import it from, if not from the room
    table: Callable[[], str] | None = None  # of what was worked out or looked at, behind the cards


def choices() -> str:
    """Where to get each optimizer that was looked at."""
    rows = [
        "## Where to get which",
        "",
        'Those of pytorch_optimizer come with `pip install "steadygrad[optimizers]"`.',
        "",
    ]
    rows += ["| optimizer | use | why |", "|---|---|---|"]
    for choice in importlib.import_module("steadygrad.optim").CHOICES:
        rows.append(f"| [{choice.name}]({choice.paper}) | `{choice.use}` | {choice.why} |")
    return "\n".join(rows)


def gains() -> str:
    """The table of gains and of depths."""
    table = str(importlib.import_module("steadygrad.init").gain_table())
    return (
        f"## Gains, and how deep a plain net can be\n\n`print(init.gain_table())`:\n\n```text\n{table}\n```"
    )


FAMILIES = (
    Family(
        "clip",
        "Clipping",
        "steadygrad.clip",
        ("Chain", "chain", "ClipStats", "reset_momentum_", "unit_norm", "update_rms", "warmup_factor"),
    ),
    Family(
        "init",
        "Initialisation",
        "steadygrad.init",
        (
            "ACTIVATIONS", "Audit", "AuditTime", "Followed", "InitReport", "SCHEMES", "backward_gain",
            "branch_scale", "chi",
            "critical_point", "depth_limits", "fixed_point", "fixup_scale", "follow", "forward_gain",
            "gain_table", "gated_gain", "init_gain", "jacobian_singular_values", "moments", "scaled_groups",
            "variance_map",
        ),
    ),
    Family("norm", "Normalisation", "steadygrad.nn.norm", shown="steadygrad.nn"),
    Family("residual", "Residual and other connections", "steadygrad.nn.residual", shown="steadygrad.nn"),
    Family(
        "models",
        "Whole nets of any depth",
        "steadygrad.nn.models",
        ("RecurrentNet", "TransformerNet"),
    ),
    Family("attention", "Attention stabilisers", "steadygrad.nn.attention", shown="steadygrad.nn"),
    Family(
        "recurrent",
        "Recurrent stability",
        "steadygrad.nn.recurrent",
        ("Chunk", "mod_relu", "zoneout"),
        shown="steadygrad.nn",
    ),
    Family(
        "activations",
        "Activations",
        "steadygrad.nn.activations",
        ("crelu", "group_sort", "max_min", "maxout", "squared_relu", "swiglu"),
        shown="steadygrad.nn",
        table=gains,
    ),
    Family(
        "optim",
        "Optimizers",
        "steadygrad.optim",
        (
            "CHOICES", "Choice", "atan2_direction", "balance_", "lars_rates", "muon_groups", "orthogonalise",
            "parameter_blocks", "parameter_roles", "relative_rates", "scion_groups", "trust_ratios",
        ),
        table=choices,
    ),
    Family(
        "plasticity",
        "Homeostasis and plasticity",
        "steadygrad.plasticity",
        ("Reading", "contribution", "dormant_scores", "recurrent_factor", "soft_winner_update", "synaptic_factor"),
    ),
    Family(
        "schedule",
        "Schedules and curricula",
        "steadygrad.schedule",
        (
            "accumulation_steps", "effective_lr", "lr_factors", "linear_cooldown", "sqrt_cooldown",
            "cosine_cooldown",
        ),
    ),
    Family(
        "selfsup",
        "Training without labels",
        "steadygrad.selfsup",
    ),
    Family(
        "quantum",
        "Quantum layers",
        "steadygrad.quantum",
        ("Decay", "PlateauForecast", "Sampled", "gradient_samples", "run_together"),
    ),
    Family("recipes", "Recipes", "steadygrad.recipes", ("Recipe",)),
    Family(
        "precision",
        "Low precision",
        "steadygrad.precision",
        (
            "CastCounts", "ExponentHistogram", "FORMATS", "Format", "Headroom", "TensorHeadroom", "emulated_cast",
            "exponent_histogram",
        ),
    ),
)  # fmt: skip


def public(room: ModuleType) -> dict[str, Any]:
    """The names that a room exports, in the order of its list."""
    source = inspect.getsource(room)
    return {name: getattr(room, name) for name in re.findall(r"^from \S+ import \S+ as (\S+)", source, re.M)}


def methods(family: Family) -> dict[str, Callable[..., Any]]:
    """What gets a card on a page."""
    found = {n: f for n, f in public(importlib.import_module(family.room)).items() if n not in family.parts}
    if family.page == "init":
        schemes = importlib.import_module(family.room).SCHEMES
        found |= {f'initialise(scheme="{name}")': scheme for name, scheme in schemes.items()}
    return found


@dataclass
class Piece:
    """A paragraph of a docstring, or a block under its label."""

    label: str  # a word of CARD or BLOCKS, "" for prose
    text: str


def read(method: Callable[..., Any]) -> list[Piece]:
    """Take its docstring apart into the pieces of a card, in their order; the first is its first line."""
    first, *rest = re.split(r"\n\s*\n", (inspect.getdoc(method) or "").strip())
    pieces = [Piece("", " ".join(first.split()))]
    for paragraph in rest:
        label, _, body = paragraph.partition(":")
        if paragraph.startswith("    ") and pieces[-1].label in BLOCKS:
            pieces[-1].text += "\n\n" + textwrap.dedent(paragraph)
        elif label in CARD:
            pieces.append(Piece(label, " ".join(body.split())))
        elif label in BLOCKS and body.startswith("\n"):
            pieces.append(Piece(label, textwrap.dedent(body.lstrip("\n"))))
        else:
            pieces.append(Piece("", paragraph))
    return pieces


def _arguments(block: str) -> Iterator[str]:
    """The lines of a list from ``name: what it is``, continued by indented lines."""
    for item in re.split(r"\n(?=\S)", block):
        name, _, what = item.partition(": ")
        yield f"- `{name.strip()}`: {' '.join(what.split())}"


def code(text: str) -> str:
    """Double backquotes and names of classes as Markdown has them, web addresses as links."""
    text = re.sub(r":(?:class|func|meth|mod|attr):`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"(?<![(<`])(https?://[^\s,;)]+[^\s,;).])", r"<\1>", text.replace("``", "`"))


def _prose(paragraph: str) -> str:
    """Indented lines are equations or code; the rest is text."""
    out: list[str] = []
    for indented, lines in groupby(paragraph.splitlines(), lambda line: line.startswith("    ")):
        body = textwrap.dedent("\n".join(lines)).strip("\n")
        if body:
            out.append(f"```text\n{body}\n```" if indented else code(body))
    return "\n\n".join(out)


def _named_default(parameter: inspect.Parameter) -> inspect.Parameter:
    """Without its annotation, and with the name of a function or class as its default instead of an address."""
    default = parameter.default
    if default is not inspect.Parameter.empty:
        default = _Shown(_default(default))
    return parameter.replace(annotation=inspect.Parameter.empty, default=default)


def _default(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_default, value))}{',' * (len(value) == 1)})"
    return value.__name__ if callable(value) else repr(value)


class _Shown(str):
    def __repr__(self) -> str:
        return str(self)


def call(method: Callable[..., Any]) -> str:
    """The arguments of a method as they may be written: ``(model, x, *, total_steps, lr=0.001)``."""
    signature = inspect.signature(method)
    shown = [_named_default(p) for p in signature.parameters.values()]
    return str(signature.replace(parameters=shown, return_annotation=inspect.Signature.empty))


def _signature(name: str, method: Callable[..., Any], room: str) -> str:
    if "(" not in name:
        return f"{room}.{name}{call(method)}"
    settings = call(method).removeprefix("(job").removesuffix(")")  # of a scheme: options of ``initialise``
    head, _, chosen = name.removesuffix(")").partition("(")
    return f"{room}.{head}(model, example_input, {chosen}{settings})"


def _rendered(piece: Piece) -> str:
    if piece.label == "Example":
        return f"```pycon\n{piece.text}\n```"
    if piece.label in ("Args", "Attributes", "Raises"):
        return f"{piece.label}:\n\n" + "\n".join(code(a) for a in _arguments(piece.text))
    if piece.label:
        text = " ".join(piece.text.split())
        return f"**{piece.label}.** {code(text)}"
    return _prose(piece.text)


def card(name: str, method: Callable[..., Any], room: str) -> str:
    """One method's section of its page."""
    signature = textwrap.wrap(
        _signature(name, method, room), 100, subsequent_indent="    ", break_on_hyphens=False
    )
    head = [f"## {name}", "```text\n" + "\n".join(signature) + "\n```"]
    return "\n\n".join([*head, *map(_rendered, read(method))])


def page(family: Family) -> str:
    """A page: the cards, and a table of the parts that belong to them."""
    room = importlib.import_module(family.room)
    found = methods(family)
    head = [f"# {family.title}", _prose(inspect.getdoc(room) or ""), _table(found)]
    rest = [family.table()] if family.table else []
    parts = {n: value for n, value in public(room).items() if n in family.parts and callable(value)}
    if parts:
        rest += [
            "## Parts",
            "Records, and pieces of the methods above; their docstrings say more.",
            _table(parts),
        ]
    cards = [card(name, method, family.shown or family.room) for name, method in found.items()]
    return "\n\n".join([*head, *cards, *rest]) + "\n"


def _table(found: dict[str, Callable[..., Any]]) -> str:
    rows = ["| name | what it does |", "|---|---|"]
    for name, method in found.items():
        line = read(method)[0].text.replace("|", "\\|")
        rows.append(f"| `{name}` | {code(line)} |")
    return "\n".join(rows)


def index() -> str:
    """The page that leads to the others."""
    rows = ["| family | methods |", "|---|---|"]
    for family in FAMILIES:
        names = ", ".join(f"`{n}`" for n in methods(family) if "(" not in n)
        rows.append(f"| [{family.title}]({family.page}.md) | {names} |")
    text = """# Methods

Every method against exploding gradients that steadygrad holds, one card each: when to use it, which values people use,
what it costs, and where it comes from. Each can be used alone, without the rest of steadygrad. What torch already has
(Xavier, He, BatchNorm, LayerNorm, RMSNorm, SELU, `parametrizations.orthogonal`, Muon, ...) stays torch's.
The cards are made from the docstrings (`python docs/generate_methods.py`)."""
    return text + "\n\n" + "\n".join(rows) + "\n"


def pages() -> dict[str, str]:
    """File name to text."""
    return {"index.md": index()} | {f"{family.page}.md": page(family) for family in FAMILIES}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
