"""Dynamical isometry: the singular values of a net's input-output Jacobian."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from steadygrad._preserve import untouched
from steadygrad.init.follow import check_model


def jacobian_singular_values(model: nn.Module, examples: Tensor) -> Tensor:
    """How a net stretches the directions of its input: the singular values of its Jacobian, example by example.

        s(x) = singular values of J = d f(x) / d x

    All near 1 is dynamical isometry: every direction of signal and gradient comes through as long as it went in.
    The mean of their squares may be 1 (a critical net, which ``audit`` cannot tell from an isometric one) while most of
    them are nearly 0 and a few are large: then the net has forgotten most directions, and learns slowly.

    Args:
        model: takes a batch of one and gives one tensor; left bit-identical, gradients and random streams included.
            Run in the mode it is in, in double precision.
        examples: (N, ...) of a real dtype, N at least 1; each is run alone.

    Returns:
        (N, min(inputs, outputs)) of float64, largest first, on the device of the examples. Those below 1e-16 of
        the largest are rounding. nan throughout for an example whose Jacobian is not finite.

    Raises:
        TypeError: ``model`` is no module, ``examples`` no floating tensor (token ids have no Jacobian: pass the net
            behind the embedding), or the model gives something else than a tensor.
        ValueError: ``examples`` has no example, the model has no weights or one without values, or its output does
            not depend on its input.

    When to use it: to see why a deep net whose norms are in order stalls; to compare initialisations.

    Values in use: orthogonal weights at a gain of 1 keep a linear net at 1 whatever its depth; Gaussian weights
    spread by sqrt(2) a layer from the largest to the median.

    Cost: one forward and as many backward passes as the output has numbers, and one singular value
    decomposition, for each example; a copy of the model in double precision.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(20)))
        >>> for layer in net:
        ...     _ = nn.init.orthogonal_(layer.weight)
        >>> values = jacobian_singular_values(net, torch.randn(1, 16))
        >>> bool((values - 1).abs().max() < 1e-5)
        True

    Source: Saxe, McClelland & Ganguli (2014), https://arxiv.org/abs/1312.6120; Pennington, Schoenholz & Ganguli
    (2017), https://arxiv.org/abs/1711.04735
    """
    check_model(model)
    if not isinstance(examples, Tensor) or not examples.is_floating_point():
        got = examples.dtype if isinstance(examples, Tensor) else type(examples).__name__
        raise TypeError(
            f"examples must be a floating tensor (N, ...), got {got}: pass the net behind the embedding"
        )
    if examples.dim() < 1 or examples.shape[0] < 1:
        raise ValueError(f"examples must be (N, ...) with N at least 1, got shape {tuple(examples.shape)}")
    with untouched(model), torch.inference_mode(False), torch.enable_grad():
        twin = copy.deepcopy(model).double().requires_grad_(False)
        return torch.stack([_of_one(twin, x) for x in examples.detach().double().split(1)])


def _of_one(model: nn.Module, x: Tensor) -> Tensor:
    """(min(inputs, outputs),) for a batch of one."""
    x = x.clone().requires_grad_()
    y = model(x)
    if not isinstance(y, Tensor):
        raise TypeError(
            f"the model must give one tensor, got {type(y).__name__}: wrap it in a module that does"
        )
    if not y.requires_grad:
        raise ValueError(
            "the output does not depend on the input: is it detached, or rounded to whole numbers?"
        )
    rows = [torch.autograd.grad(number, x, retain_graph=True)[0].flatten() for number in y.flatten()]
    jacobian = torch.stack(rows)
    if not bool(jacobian.isfinite().all()):
        return jacobian.new_full((min(jacobian.shape),), torch.nan)
    return torch.linalg.svdvals(jacobian)
