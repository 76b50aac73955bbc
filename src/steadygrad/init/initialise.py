"""Initialise a model by what really follows each of its weights."""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.init import schemes, schemes_residual
from steadygrad.init._job import InitRow, Job
from steadygrad.init.depth import aligned
from steadygrad.init.follow import Followed, check_model, follow
from steadygrad.init.mup import scaled_groups

SCHEMES: dict[str, Callable[..., None]] = {
    "auto": schemes.auto,
    "xavier_uniform": schemes.xavier_uniform,
    "xavier_normal": schemes.xavier_normal,
    "he_uniform": schemes.he_uniform,
    "he_normal": schemes.he_normal,
    "lecun_normal": schemes.lecun_normal,
    "critical": schemes.critical,
    "orthogonal": schemes.orthogonal,
    "delta_orthogonal": schemes.delta_orthogonal,
    "orthogonal_recurrent": schemes.orthogonal_recurrent,
    "identity_recurrent": schemes.identity_recurrent,
    "lsuv": schemes.lsuv,
    "fixup": schemes_residual.fixup,
    "skipinit": schemes_residual.skipinit,
    "rezero": schemes_residual.skipinit,
    "t_fixup": schemes_residual.t_fixup,
    "deepnorm": schemes_residual.deepnorm,
    "gpt2": schemes_residual.gpt2,
    "mup": schemes_residual.mup,
}


@dataclass(frozen=True)
class InitReport:
    """What ``initialise`` did; ``str()`` aligns it."""

    scheme: str
    rows: tuple[InitRow, ...]  # one per weight written, in order of execution
    kept: Mapping[str, str]  # weight -> why it was left as it was
    notes: tuple[str, ...]
    followed: Followed
    adam_lr: Mapping[
        str, float
    ]  # learning-rate factor of each parameter; empty unless the scheme has some (mup)
    sgd_lr: Mapping[str, float]

    def adam_groups(self, model: nn.Module, lr: float, **options: Any) -> list[dict[str, Any]]:
        """Parameter groups for Adam, AdamW and their kin, with the scheme's learning-rate factors."""
        return scaled_groups(model, lr, self.adam_lr, **options)

    def sgd_groups(self, model: nn.Module, lr: float, **options: Any) -> list[dict[str, Any]]:
        """Parameter groups for SGD, with the scheme's learning-rate factors."""
        return scaled_groups(model, lr, self.sgd_lr, **options)

    def __str__(self) -> str:
        head = ("weight", "followed by", "method", "gain", "fan_in", "std", "note")
        body = [
            (
                r.weight,
                r.activation,
                r.method,
                "" if math.isnan(r.gain) else f"{r.gain:.4f}",
                str(r.fan_in),
                f"{r.std:.4g}",
                r.note,
            )
            for r in self.rows
        ]
        lines = [f"scheme {self.scheme}", *aligned([head, *body])]
        lines += [f"kept {name}: {why}" for name, why in self.kept.items()]
        return "\n".join([*lines, *self.notes])


def initialise(
    model: nn.Module,
    example_input: Any,
    scheme: str = "auto",
    generator: torch.Generator | None = None,
    *,
    keep: Sequence[str] = (),
    **options: Any,
) -> InitReport:
    """Give every weight of a model the initialisation that suits what really follows it. In place.

        std(W) = gain(what follows) / sqrt(fan_in)        (scheme "he_normal"; the others: ``init.schemes``)

    The model runs once on the example, which shows the activation behind each weight, however it is written,
    residual branches, recurrent weights, attention and the output head (``follow``).

    Args:
        model: on any device and in any floating dtype; it runs in the mode it is in, so call
            ``model.train()`` first.
        example_input: a tensor, a tuple of positional arguments, or a dict of keyword arguments. For "lsuv" a
            real batch.
        scheme: a name in ``SCHEMES``; "auto" chooses by layer.
        generator: source of the random numbers. Left out, one is seeded from the weights the model has, so
            that a fresh ``torch.manual_seed(0); model = Net()`` is initialised alike each time and two nets
            are not.
        keep: prefixes of parameter names to leave alone, e.g. a pretrained ``"backbone."``; each must match.
        options: of the scheme: ``gain=`` for xavier, he and orthogonal (1.0 gives the plain paper formula),
            ``std=`` for gpt2, ``tol=`` and ``max_iter=`` for lsuv, ``base=`` for mup, ``scale=`` and
            ``input_std=`` for identity_recurrent.

    Returns:
        A report with a row for each weight, the weights left alone and why, and learning-rate factors for
        mup.

    The values of the example, non-finite ones included, matter to "lsuv" only.
    Biases become 0 (N(0, sigma_b^2) for "critical" and "orthogonal", 1 in the forget gate of an LSTM); one
    that is constant and not 0 was chosen on purpose and stays. Norm layers, tokens and position tables stay.
    A tied weight is written once. A parametrised weight is assigned through its parametrization. Frozen
    parameters stay and are named in ``kept``. Pretrained weights cannot be told from others: name them in
    ``keep`` or freeze them, or they are lost. Build the optimizer before or after, but before its first step.
    The global RNG is untouched.

    Raises TypeError or ValueError before any change if the scheme is unknown, an option is not the scheme's, a
    prefix in ``keep`` begins no parameter's name (the nearest are named), a parameter is lazy, on the meta
    device or sharded, the model has no weights, or it does not run on the example. If the scheme fails on the
    way (a non-finite value, an output without variance) the old values are put back, bit for bit, and it
    raises.

    When to use it: on a new model, before its first step.

    Values in use: scheme "auto" where nothing speaks for another; each scheme names its own.

    Cost: one forward pass and a copy of the weights.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
        >>> report = initialise(net, torch.zeros(1, 4))
        >>> [(row.method, round(row.gain, 3)) for row in report.rows]
        [('he_normal', 1.414), ('xavier_uniform', 1.0), ('lecun_normal', 1.0)]

    Source: each scheme names its own in ``init.schemes``.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme!r}: use one of {', '.join(SCHEMES)}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if isinstance(keep, str):
        raise TypeError(
            f"keep must be a sequence of name prefixes, got the string {keep!r}: write [{keep!r}]"
        )
    _check_options(scheme, options)
    check_model(model)
    model = getattr(model, "_orig_mod", model)
    followed = follow(model, example_input)
    generator = generator or torch.Generator().manual_seed(_seed(model))
    job = Job(model, followed, example_input, generator, tuple(keep))
    saved = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    try:
        SCHEMES[scheme](job, **options)
    except BaseException:
        for tensor, old in saved:
            tensor.data.copy_(old)
        raise
    order = [layer.weight for layer in followed if layer.weight in job.rows]
    return InitReport(
        scheme,
        tuple(job.rows[w] for w in order),
        job.kept,
        tuple(dict.fromkeys(job.notes)),
        followed,
        {name: adam for name, (adam, _) in job.multipliers.items()},
        {name: sgd for name, (_, sgd) in job.multipliers.items()},
    )


def _check_options(scheme: str, options: Mapping[str, Any]) -> None:
    allowed = list(inspect.signature(SCHEMES[scheme]).parameters)[1:]
    unknown = sorted(options.keys() - set(allowed))
    if unknown:
        takes = f"takes {', '.join(allowed)}" if allowed else "takes no options"
        raise TypeError(f"scheme {scheme!r} has no option {', '.join(unknown)}: it {takes}")
    for name, value in options.items():
        if isinstance(value, (int, float)) and not math.isfinite(value):
            raise ValueError(f"option {name} must be finite, got {value}")


def _seed(model: nn.Module) -> int:
    """A seed from the weights that the model has: its first values of each parameter."""
    code = 0
    for parameter in model.parameters():
        if parameter.is_floating_point():
            head: Tensor = parameter.detach().flatten()[:256].to("cpu", torch.float32)
            code = zlib.crc32(head.numpy().tobytes(), code)
    return code
