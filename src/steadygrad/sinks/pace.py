"""How often a sink is given numbers: each step where it can take them, fewer where steps come faster."""

from __future__ import annotations

SHARE = 0.02  # of the time, as CPU seconds of the sink's thread, that a sink may take
MAX_STRIDE = 4096


def next_stride(stride: int, every: int, spent: float, elapsed: float) -> int:
    """The next distance between two steps that are written: doubled, halved or kept.

    Args:
        stride: the distance so far, ``every`` times a power of two, so that the steps written lie on one grid.
        every: the distance that the sink asks for.
        spent: CPU seconds that it took since it was last asked.
        elapsed: seconds since then, > 0.

    Example:
        >>> next_stride(1, 1, spent=0.05, elapsed=1.0), next_stride(4, 1, spent=0.001, elapsed=1.0)
        (2, 2)
    """
    if spent > SHARE * elapsed:
        return min(2 * stride, max(MAX_STRIDE, every))
    if stride > every and spent < SHARE * elapsed / 4:  # twice as much still leaves room
        return stride // 2
    return stride
