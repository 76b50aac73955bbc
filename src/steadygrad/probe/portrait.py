"""The portrait of a backward pass: everything that its graph shows, taken on sampled steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from steadygrad.graph.attention import read_attention
from steadygrad.graph.layers import LayerReader
from steadygrad.graph.loss import read_loss
from steadygrad.graph.oddities import find_oddities
from steadygrad.graph.structure import read_structure
from steadygrad.graph.walk import Graph
from steadygrad.graph.weights import find_uses
from steadygrad.graph.yardstick import Yardstick
from steadygrad.records import AttentionStats, Portrait


def loss_scale(roots: Sequence[Tensor]) -> float:
    """By how much a GradScaler has multiplied what is about to be differentiated; 1 without one."""
    unscaled = getattr(roots[0], "_steadygrad_unscaled", None) if roots else None
    if unscaled is None or float(unscaled) == 0:
        return 1.0
    ratio = float(roots[0].detach()) / float(unscaled)
    return ratio if math.isfinite(ratio) and ratio > 0 else 1.0


class Portraitist:
    """Takes one portrait: :meth:`look` before ``backward``, :meth:`take` after it.

    Holds nothing of the graph between the two but small numbers, and hooks that die with it.
    """

    def __init__(self) -> None:
        self.yardstick = Yardstick()
        self.broken = False  # a graph could not be read: no further one is tried
        self._reader: LayerReader | None = None
        self._attention: list[tuple[int, AttentionStats]] = []
        self._sketch = Portrait()

    @property
    def waiting(self) -> bool:
        """Whether a look has been taken whose backward pass is still to be read."""
        return self._reader is not None

    @torch.no_grad()
    def look(
        self,
        roots: Sequence[Tensor],
        outputs: Sequence[Tensor],
        plain: Sequence[Tensor],
        parameters: Mapping[Tensor, str] | None,
    ) -> None:
        """Read the graph of these roots.

        Args:
            roots: what is about to be differentiated.
            outputs: what the models have put out in this step, for losses that keep a difference only.
            plain: those of them without a history, which a target may be made of.
            parameters: the trained tensors and their names; None if it is not known which are meant.
        """
        graph = Graph(roots)
        uses = find_uses(graph)
        self._reader = LayerReader(graph, uses)
        self._attention = read_attention(graph, uses)
        structure = read_structure(graph, uses)
        scale = loss_scale(roots)
        seen = read_loss(graph, roots, outputs, plain)
        self._sketch = Portrait(
            terms=tuple(replace(t, weight=t.weight / scale) for t in self.yardstick.take(seen)),
            oddities=find_oddities(graph, roots, seen, parameters),
            normalised=structure.norms,
            post_normalised=structure.post_norms,
            residual=structure.skips,
            nodes=len(graph.nodes),
            complete=not graph.truncated,
        )

    def take(self, names: Mapping[int, str]) -> Portrait | None:
        """The portrait, if a look was taken; its gradients are those that have passed since."""
        if self._reader is None:
            return None
        layers, recurrences = self._reader.read(names)
        attention = tuple(replace(stats, name=names.get(key, "")) for key, stats in self._attention)
        portrait = replace(self._sketch, layers=layers, recurrences=recurrences, attention=attention)
        self.forget()
        return portrait

    def forget(self) -> None:
        """Drop a look that came to nothing."""
        if self._reader is not None:
            self._reader.close()
        self._reader, self._attention, self._sketch = None, [], Portrait()
