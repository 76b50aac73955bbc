"""Do something once, right after torch has been imported, wherever that happens.

The script still decides everything that has to be decided before torch is imported (threads, devices), and a
script without torch pays nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from steadygrad.integrations.afterimport import AfterImport


class TorchFinder(AfterImport):
    """A meta-path finder that stands first until torch has been imported, then steps aside for ever."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__("torch", lambda _: then())


def when_torch_is_imported(then: Callable[[], None]) -> TorchFinder | None:
    """Call ``then`` right after torch is fully imported; at once if it is already. Only the newest caller waits.

    Args:
        then: called once, in the thread that imports torch; must not raise.

    Returns:
        The finder that waits, to be removed when nobody waits any more; None if ``then`` was called at once.
    """
    if "torch" in sys.modules:
        then()
        return None
    # `steadygrad run -- make train`, and the recipe says `steadygrad run` again: the inner one watches.
    sys.meta_path[:] = [other for other in sys.meta_path if not isinstance(other, TorchFinder)]
    finder = TorchFinder(then)
    sys.meta_path.insert(0, finder)
    return finder
