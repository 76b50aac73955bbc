"""The sinks that can be asked for by name, and what each needs. Nothing of theirs is imported here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from steadygrad.sinks.sink import METHODS, is_sink

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
"""Name of the sink, and of the package that has to be installed for it: also the name of our extra."""


class UnknownSink(ValueError):
    """No sink has this name."""


class SinkNotInstalled(ImportError):
    """The package of this sink is missing."""


def check_name(name: str) -> str:
    """Return ``name`` if a sink has it.

    Raises:
        UnknownSink: naming what is allowed.

    Example:
        >>> check_name("tensorboard")
        'tensorboard'
        >>> check_name("tensorbord")
        Traceback (most recent call last):
        steadygrad.sinks.names.UnknownSink: no sink 'tensorbord'; there are: tensorboard, wandb, mlflow, trackio
    """
    if name not in PACKAGES:
        raise UnknownSink(f"no sink {name!r}; there are: {', '.join(PACKAGES)}")
    return name


def check_installed(name: str) -> str:
    """Return ``name`` if its package can be imported; nothing of it is run for that.

    Raises:
        SinkNotInstalled: saying what to install.
    """
    if find_spec(PACKAGES[check_name(name)]) is None:
        raise SinkNotInstalled(
            f'the sink {name} needs the package {PACKAGES[name]}: pip install "steadygrad[{name}]"'
        )
    return name


def checked_sinks(sinks: Any) -> tuple[Any, ...]:
    """One sink or several, names or objects, as a tuple without repeats, to be called before the run begins.

    Raises:
        TypeError: something is neither a name nor an object that can be a sink.
        UnknownSink, SinkNotInstalled: as above.

    Example:
        >>> checked_sinks(None), checked_sinks([])
        ((), ())
    """
    if sinks is None:
        return ()
    if isinstance(sinks, str) or is_sink(sinks) or not isinstance(sinks, Iterable):
        sinks = [sinks]
    checked: list[Any] = []
    for sink in sinks:
        if isinstance(sink, str):
            check_installed(sink)
        elif not is_sink(sink) or isinstance(sink, type):
            needed = ", ".join(f"{name}()" for name in METHODS)
            raise TypeError(
                f"sink must be one of {', '.join(map(repr, PACKAGES))} or an object with {needed},"
                f" got {sink if isinstance(sink, type) else type(sink).__name__}"
            )
        if all(sink is not other and not (isinstance(sink, str) and sink == other) for other in checked):
            checked.append(sink)
    return tuple(checked)
