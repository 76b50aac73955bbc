"""Where settings come from: ``steadygrad.toml`` or ``[tool.steadygrad]``, then ``STEADYGRAD_*``, then flags.

Nothing is guessed: an unknown key or a bad value is a :class:`ConfigError` that names its place.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from steadygrad.trace.rundir import check_run_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENV_PREFIX = "STEADYGRAD_"
LAUNCH_VARIABLE = "STEADYGRAD_LAUNCH"  # from the launcher to its processes, not a setting
GUARD_MODES = ("off", "warn", "on")
TIERS = ("cheap", "standard", "deep")
SINKS = ("tensorboard", "wandb", "mlflow", "trackio")


class ConfigError(ValueError):
    """A setting that cannot be used. The message names where it stands, its value, and what is allowed."""


def _runs(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("the path of a folder")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a string")
    return check_run_name(value)  # names the value and what is allowed


def _guard(value: Any) -> str:
    if value not in GUARD_MODES:
        raise ValueError(", ".join(GUARD_MODES))
    return str(value)


def _tier(value: Any) -> str:
    if value not in TIERS:
        raise ValueError(", ".join(TIERS))
    return str(value)


def _quiet(value: Any) -> bool:
    if isinstance(value, str):  # from the environment
        value = {"1": True, "true": True, "0": False, "false": False}.get(value.lower())
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _sinks(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):  # from the environment
        value = [word.strip() for word in value.split(",") if word.strip()]
    if not isinstance(value, (list, tuple)) or any(item not in SINKS for item in value):
        raise ValueError(f"a list of {', '.join(SINKS)}")
    return tuple(dict.fromkeys(value))


SETTINGS: Mapping[str, Callable[[Any], Any]] = {
    "runs": _runs,
    "name": _name,
    "guard": _guard,
    "tier": _tier,
    "quiet": _quiet,
    "sinks": _sinks,
}
"""Every setting and its check: gives the value back, or raises ValueError with what is allowed."""


def load(cwd: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings in force in a folder, before the flags. Only what is set is in the result.

    Args:
        cwd: folder from which ``steadygrad.toml`` and ``pyproject.toml`` are looked for, upwards; the nearest
            file that has settings counts.
        environ: environment; ``STEADYGRAD_GUARD=warn`` beats the file.

    Raises:
        ConfigError: an unknown key, a bad value, a file that cannot be read.

    Example:
        >>> load(Path("/"), {"STEADYGRAD_GUARD": "warn"})
        {'guard': 'warn'}
    """
    settings: dict[str, Any] = {}
    found = _nearest(cwd)
    if found is not None:
        path, table, place = found
        settings = {key: check(key, value, place) for key, value in table.items()}
        if "runs" in settings:  # means the folder beside the file, wherever the command is typed
            settings["runs"] = str(path.parent / settings["runs"])
    for variable, text in environ.items():
        if variable.startswith(ENV_PREFIX) and variable != LAUNCH_VARIABLE:
            key = variable.removeprefix(ENV_PREFIX).lower()
            settings[key] = check(key, text, f"environment variable {variable}")
    return settings


def check(key: str, value: Any, place: str) -> Any:
    """The checked value of one setting that stands at ``place``."""
    if key not in SETTINGS:
        near = difflib.get_close_matches(key, SETTINGS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"{place}: unknown key {key!r} (value {value!r}); {hint}allowed: {', '.join(sorted(SETTINGS))}"
        )
    try:
        return SETTINGS[key](value)
    except ValueError as error:
        raise ConfigError(f"{place}: {key} = {value!r} is not allowed; allowed: {error}") from None


def _nearest(cwd: Path) -> tuple[Path, dict[str, Any], str] | None:
    """The nearest file with settings, from ``cwd`` upwards, with its table and what to call its place."""
    for folder in (cwd, *cwd.parents):
        own = folder / "steadygrad.toml"
        if os.path.isfile(own):  # unlike Path.is_file, no error for a folder that may not be looked into
            return own, _parse(own), str(own)
        shared = folder / "pyproject.toml"
        if not os.path.isfile(shared) or b"steadygrad" not in _read(shared):
            continue
        table = _parse(shared).get("tool", {}).get("steadygrad")
        if isinstance(table, dict):
            return shared, table, f"{shared} [tool.steadygrad]"
        if table is not None:
            raise ConfigError(f"{shared}: [tool.steadygrad] must be a table, got {table!r}")
    return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read(path).decode("utf-8"))
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
