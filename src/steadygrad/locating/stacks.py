"""Keep the user's line with every autograd node, so that a node found later can be told as a line of code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from steadygrad.graph.walk import Graph, op
from steadygrad.locating.frames import NOWHERE, Site, site_of_node


@contextmanager
def capture_stacks() -> Iterator[None]:
    """Nodes made inside know the lines that made them. Nothing is checked, no number changes; twice the time.

    What the user has set himself, anomaly mode with its checks, stays as it is.
    """
    check = torch.is_anomaly_enabled() and torch.is_anomaly_check_nan_enabled()
    with torch.autograd.set_detect_anomaly(True, check_nan=check):
        yield


def line_of(name: str, nth: int, roots: Sequence[Tensor]) -> Site:
    """The user's line of one operation of a graph whose forward pass ran under :func:`capture_stacks`.

    Args:
        name: operation as :func:`steadygrad.graph.walk.op` has it, e.g. ``"Sqrt"`` (``Suspect.node``).
        nth: so many of the same name come before it in the order of execution (``Suspect.nth``).
        roots: losses of that pass. It may be a later step than the one in which the suspect was found: a training
            repeats its graph. Where it has fewer operations of the name, the last of them is taken.

    Returns:
        The line; ``NOWHERE`` (path "" and line 0) if there is no such operation or no line was kept.
    """
    same = [node for node in Graph(roots).nodes if op(node) == name]
    return site_of_node(same[min(nth, len(same) - 1)]) if same else NOWHERE
