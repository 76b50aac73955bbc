"""The parts of sharded parameters that lie on this rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from steadygrad.probe.norms import shard_dims
from steadygrad.records import ParamInfo


@dataclass(frozen=True, slots=True)
class Part:
    """A parameter of which this rank has a part."""

    position: int  # among the parameters of its optimizer
    key: str  # optimizer | name | ranks that have the other parts
    ranks: tuple[int, ...]
    copies: int  # ranks that have this very part


def parts_of(optimizer: int, infos: Sequence[ParamInfo], params: Sequence[Tensor]) -> list[Part]:
    """Those of the parameters of an optimizer that are sharded."""
    found = []
    for position, (info, param) in enumerate(zip(infos, params, strict=True)):
        dims = shard_dims(param)
        if not dims:
            continue
        mesh = dims[0][0]
        ranks = tuple(sorted(mesh.mesh.flatten().tolist()))
        copies = len(ranks) // math.prod(mesh.size(dim) for _, dim in dims)
        found.append(Part(position, f"{optimizer}|{info.name}|{','.join(map(str, ranks))}", ranks, copies))
    return found


def squares(parts: Sequence[Part], norms: np.ndarray) -> tuple[dict[str, float], float]:
    """Squares of norms that add up over the ranks: key -> that of a part; and the joint one of all the rest.

    Args:
        parts: of an optimizer.
        norms: (parameters,) of what lies here; nan where there is no gradient.
    """
    with np.errstate(over="ignore"):  # a float64 norm above 1e154 counts as not finite
        square = np.square(np.nan_to_num(norms, nan=0.0, posinf=math.inf))
    found = {part.key: float(square[part.position]) / part.copies for part in parts}
    square[[part.position for part in parts]] = 0.0
    return found, float(square.sum())
