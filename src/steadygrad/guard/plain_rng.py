"""The state of the random number generators in a form that every checkpoint format takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from steadygrad.guard.rng import rng_state, set_rng_state


def plain_rng_state() -> dict[str, Any]:
    """As :func:`steadygrad.guard.rng.rng_state`, of tensors, numbers, strings and lists alone.

    Example:
        >>> state = plain_rng_state()
        >>> a = torch.rand(1)
        >>> set_plain_rng_state(state)
        >>> bool(a == torch.rand(1))
        True
    """
    state = rng_state()
    version, numbers, gauss = state["random"]
    state["random"] = [version, list(numbers), gauss]
    if "numpy" in state:
        kind, keys, *rest = state["numpy"]
        state["numpy"] = [kind, torch.from_numpy(keys.astype(np.int64)), *rest]
    return state


def set_plain_rng_state(state: dict[str, Any]) -> None:
    """Put every generator back, wherever the tensors were loaded to."""
    state = dict(state)
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            state[name] = value.cpu()
        elif name not in ("random", "numpy"):
            state[name] = [v.cpu() for v in value]  # one of each device
    version, numbers, gauss = state["random"]
    state["random"] = (version, tuple(numbers), gauss)
    if "numpy" in state:
        kind, keys, *rest = state["numpy"]
        state["numpy"] = (kind, keys.cpu().numpy().astype(np.uint32), *rest)
    set_rng_state(state)
