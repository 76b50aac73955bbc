"""What a stabiliser may do at an attention site."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from steadygrad.nn.attention._follow import Site
    from steadygrad.nn.attention._products import Operand


class Edit:
    """A stabiliser or a listener in force on a model. Shared by the modules of the model, copied with them."""

    title = ""
    changes_operands = False
    cap: float | None = None

    def __init__(self) -> None:
        self.sites: dict[str, None] = {}  # found so far, in the order of the forward pass
        self.must_find = True  # warn if the first forward pass had none
        self.told: set[tuple[str, str]] = set()

    def wants(self, name: str) -> bool:
        return True

    def operands(self, site: Site, query: Operand, key: Operand) -> tuple[Tensor, Tensor]:
        return query.value, key.value

    def listens(self, site: Site) -> bool:
        return False

    def hear(self, site: Site, largest: Tensor) -> None:
        """The largest logit of each head, as it goes into the softmax but for a soft cap."""
