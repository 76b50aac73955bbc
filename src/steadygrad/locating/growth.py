"""Which operation has made the numbers larger by most: an overflow is often prepared somewhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from steadygrad.locating.calls import Part
from steadygrad.locating.frames import NOWHERE, Site, current_site
from steadygrad.locating.ops import ACCUMULATING, CARRIERS, CREATORS
from steadygrad.locating.values import storage_key, tensors_in

WORTH_TELLING = 10.0  # an operation that has grown by less has prepared nothing


@dataclass
class Largest:
    """The largest growth so far."""

    ratio: float = WORTH_TELLING
    op: str = ""
    before: float = 0.0
    after: float = 0.0
    module: nn.Module | None = None
    site: Site = NOWHERE


class Growth:
    """Follows the largest absolute values from operation to operation."""

    def __init__(self) -> None:
        self._peaks: dict[int, float] = {}
        self.largest = Largest()

    def restart(self) -> None:
        """Another pass begins."""
        self._peaks.clear()
        self.largest = Largest()

    def follow(self, part: Part, module: nn.Module | None) -> None:
        """Take in an operation whose result is finite.

        Its growth is the ratio of the result to the largest input that was made in this pass; for a product of
        matrices to the smallest, so that a huge weight shows at the operation that uses it.
        """
        keys = map(storage_key, tensors_in(part.arguments))
        known = [self._peaks[key] for key in keys if key in self._peaks]
        for tensor, top in part.outputs:
            # A copy of data or of a weight comes from outside as they do.
            if known or part.op not in CARRIERS:
                self._peaks[storage_key(tensor)] = top
            sizes = [size for size in known if size > 0]
            if not sizes or part.op in CARRIERS or part.op in CREATORS:
                continue
            before = min(sizes) if part.op in ACCUMULATING else max(sizes)
            if top / before > self.largest.ratio:
                self.largest = Largest(top / before, part.op, before, top, module, current_site())

    def sentence(self, path: str) -> str:
        """The largest growth in words, "" if there was none worth telling. ``path``: of its module."""
        large = self.largest
        if not large.op or not math.isfinite(large.ratio):
            return ""
        place = f" in {path}" if path else ""
        line = f" at {large.site.shown()}:{large.site.line}" if large.site.path else ""
        return f"{large.op}{place}{line}: {large.before:.3g} -> {large.after:.3g}"
