"""Our own code in the middle of the user's loop: an error of ours must not become one of his."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

from steadygrad.guard.policy import GuardExit, GuardStop
from steadygrad.integrations.ranks.group import RanksDiffer

if TYPE_CHECKING:
    from steadygrad.integrations.session import Session

T = TypeVar("T")


def ours(default: Any) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """An error of ours disarms the session; the loop gets ``default`` and goes on.

    A stop passes through, and so do settings with which the ranks of a training cannot decide alike.
    """

    def decorate(method: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(method)
        def safe(self: Session, *args: Any, **kwargs: Any) -> T:
            if not self.armed:
                return default
            grad = torch.is_grad_enabled()
            torch._C._set_grad_enabled(False)  # torch.no_grad takes as long as some of these methods
            try:
                if self.modes_on:
                    with _disable_current_modes():
                        return method(self, *args, **kwargs)
                return method(self, *args, **kwargs)
            except (GuardStop, GuardExit):
                raise
            except (
                RanksDiffer
            ) as error:  # what the user has set cannot be watched: he is told before the first step
                self.disarm(error)
                raise
            except Exception as error:  # noqa: BLE001 - whatever we did wrong, the user's run must go on
                self.disarm(error)
                return default
            finally:
                torch._C._set_grad_enabled(grad)

        return safe

    return decorate
