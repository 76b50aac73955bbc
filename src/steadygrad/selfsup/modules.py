"""What stands beside an encoder while it is pre-trained: heads that are dropped afterwards, and a slow teacher."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn

from steadygrad._check import count, fraction


def mlp_head(
    in_features: int, hidden: int, out_features: int, layers: int = 2, *, last_norm: bool = False
) -> nn.Sequential:
    """A projector or a predictor: linear layers with BatchNorm and ReLU between them.

        [Linear - BatchNorm - ReLU] x (layers - 1) - Linear (- BatchNorm without affine)

    When to use it: between an encoder and its loss; the encoder's own output is what is kept.

    Values in use: projector: 2 layers (SimCLR, BYOL) or 3 with a last norm (SimSiam), hidden as wide as the encoder
    or wider. Predictor: 2 layers, hidden a quarter of the output for SimSiam, wider than it for BYOL.

    Cost: that of its layers.

    Args:
        in_features: of the encoder's output, at least 1.
        hidden: width between, at least 1.
        out_features: D, at least 1.
        layers: number of linear layers, at least 1.
        last_norm: a BatchNorm after the last layer as well.

    Returns:
        An `nn.Sequential`. In training it needs batches of 2 samples at least, as BatchNorm does.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> mlp_head(64, 128, 32)(torch.randn(8, 64)).shape
        torch.Size([8, 32])

    Source: Chen et al. (2020), section 4.2, https://arxiv.org/abs/2002.05709
    """
    widths = [count("in_features", in_features)]
    widths += [count("hidden", hidden)] * (count("layers", layers) - 1)
    parts: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        # the norm takes the mean away: no bias before it
        parts += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    parts.append(nn.Linear(widths[-1], count("out_features", out_features), bias=not last_norm))
    if last_norm:
        parts.append(nn.BatchNorm1d(out_features, affine=False))
    return nn.Sequential(*parts)


class EMATeacher(nn.Module):
    """A slow copy of a net: its weights are the running average of the student's, and get no gradient.

        teacher <- momentum * teacher + (1 - momentum) * student

    When to use it: for the targets of `byol`, or of any self-distillation. Call `update` after each optimizer step.

    Values in use: 0.996 rising to 1 over the run (`ema_momentum`), 0.99 for short runs, 0.999 for MoCo's keys.

    Cost: the memory of the net, one read of both and one write a step.

    Args:
        student: the net to follow, projector included, predictor not. It is held, but is no submodule: the teacher's
            ``state_dict`` is its own.
        momentum: in [0, 1]; 0 copies, 1 never moves.

    A parameter that is nan in the student becomes nan here: call `update` for steps that were taken. Buffers stay the
    teacher's own: a BatchNorm keeps the statistics of what it was given. Give both to ``sg.watch([student, teacher],
    optimizer)``, so that a rollback takes both back.

    Raises:
        ValueError: a momentum outside [0, 1].
        TypeError: ``student`` is no module.

    Example:
        >>> student = nn.Linear(2, 2)
        >>> teacher = EMATeacher(student, momentum=0.9)
        >>> teacher(torch.ones(1, 2)).requires_grad
        False
        >>> teacher.update()

    Source: Grill et al. (2020), Eq. 1, https://arxiv.org/abs/2006.07733
    """

    def __init__(self, student: nn.Module, momentum: float = 0.996) -> None:
        super().__init__()
        if not isinstance(student, nn.Module):
            raise TypeError(f"student must be a torch.nn.Module, got {type(student).__name__}")
        self.momentum = fraction("momentum", momentum)
        self.net = copy.deepcopy(student).requires_grad_(False)
        self._student = (student,)  # in a tuple: no submodule

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The teacher's output, without a graph."""
        return self.net(*args, **kwargs)

    @torch.no_grad()
    def update(self, momentum: float | None = None) -> None:
        """Take a step towards the student; with another momentum if one is given.

        Raises:
            ValueError: a momentum outside [0, 1].
        """
        keep = self.momentum if momentum is None else fraction("momentum", momentum)
        mine = [p.data for p in self.net.parameters()]
        theirs = [p.detach() for p in self._student[0].parameters()]
        torch._foreach_lerp_(mine, theirs, 1.0 - keep)


def ema_momentum(step: int, total_steps: int, base: float = 0.996) -> float:
    """The momentum of a teacher that slows down until it stands still: from ``base`` to 1 along a cosine.

        1 - (1 - base) * (cos(pi step / total_steps) + 1) / 2

    When to use it: `teacher.update(ema_momentum(step, total_steps))` in BYOL.

    Values in use: base 0.996 for 1,000 epochs, 0.99 for 300 epochs.

    Cost: none.

    Args:
        step: at least 0; past the end it stays at 1.
        total_steps: at least 1.
        base: in [0, 1].

    Returns:
        The momentum of this step, in [base, 1].

    Raises:
        ValueError: a number out of its range.

    Example:
        >>> ema_momentum(0, 100), ema_momentum(100, 100)
        (0.996, 1.0)

    Source: Grill et al. (2020), section 3.2, https://arxiv.org/abs/2006.07733
    """
    done = min(count("step", step, 0) / count("total_steps", total_steps), 1.0)
    return 1 - (1 - fraction("base", base)) * (math.cos(math.pi * done) + 1) / 2
