"""``scale_targets``: a regression is trained as if its targets had mean 0 and deviation 1, in the user's own units."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from steadygrad.repair.effects._affine import Kept, kept_with
from steadygrad.repair.effects.effect import Effect, Models

NAME = "_steadygrad_outputs"


class ScaleTargets(Effect):
    """The layer that makes the prediction puts out ``mean + std * o``, and its gradient is divided by ``std^power``.

    With a power of 2 that is the gradient of a squared error of targets ``(y - mean) / std``; with 1, of an absolute
    error. The loss, the predictions and every evaluation stay in the user's units, so that nothing has to be undone.

    Args:
        value: ``{"modules": {path: {"mean": numbers, "std": numbers, "axis": -1, "power": 2}}}``, as the survey
            ``targets`` finds them; one number for all columns or one for each along ``axis``.

    A NaN or an infinity in an output stays one.
    """

    key: ClassVar[str] = "scale_targets"

    def __init__(self, value: Any) -> None:
        self._kept = Kept(NAME, value)
        self._handle: Any = None

    def install(self) -> None:
        self._handle = register_module_forward_hook(_scale)  # type: ignore[arg-type]

    def models(self, models: Models) -> None:
        self._kept.put(models)

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._kept.take()


def _scale(module: nn.Module, args: Any, output: Any) -> Tensor | None:
    kept = kept_with(module, NAME)
    if kept is None or not isinstance(output, Tensor):
        return None
    affine = kept.along(output)
    if affine is None:
        return None
    mean, std = affine
    if output.requires_grad:
        divisor = std**kept.power
        output.register_hook(lambda grad: grad / divisor)
    return mean + std * output
