"""Pascanu's regulariser: keep the norm of the gradient from one time step to the one before."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gradient_norm_penalty(grads: Tensor, pulled: Tensor) -> Tensor:
    """How far the norm of the gradient strays from 1 to 1 in each step back through time.

        Omega = sum_k (||g_{k+1} dh_{k+1}/dh_k|| / ||g_{k+1}|| - 1)^2,        g_k = dE/dh_k

    When to use it: as the last part of ``recurrent_norm_penalty`` and ``rnn_norm_penalty``, or where the
    vector-Jacobian products are at hand already.

    Values in use: the weight in the loss is found by search. The authors' code takes the ratio of squared norms
    and the mean over the steps, so that its weights do not carry over (https://github.com/pascanur/trainingRNNs).

    Cost: two norms.

    Args:
        grads: g_1..g_T, (T, ..., H), taken as constants.
        pulled: the gradients one step further back, g_{k+1} dh_{k+1}/dh_k, same shape; the penalty is
            differentiated through these.

    Returns a 0-D tensor, float32 at least: the sum over steps, the mean over all dimensions between the first
    and the last.

    Empty, zero, nan: no steps give 0. A step with a zero gradient says nothing (0/0) and adds 0, with a zero
    gradient; so does a pulled gradient of 0 add 1, with a zero gradient. inf or nan gives nan.

    Example:
        >>> g = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> gradient_norm_penalty(g, torch.tensor([[0.0, 10.0], [7.0, 7.0]]))  # (10 / 5 - 1)^2
        tensor(1.)

    Source: Pascanu, Mikolov & Bengio (2013), eq. 9, https://arxiv.org/abs/1211.5063
    """
    if grads.shape != pulled.shape or grads.dim() < 2:
        raise ValueError(
            f"grads and pulled must have one shape (steps, ..., features), got {tuple(grads.shape)} and "
            f"{tuple(pulled.shape)}"
        )
    if not (grads.is_floating_point() and pulled.is_floating_point()):
        raise TypeError(f"grads and pulled must be floating tensors, got {grads.dtype} and {pulled.dtype}")
    wide = torch.promote_types(pulled.dtype, torch.float32)
    # a scale of each step: the ratio is the same, and squares of gradients of 1e-30 do not vanish
    grads, pulled = grads.detach().to(wide), pulled.to(wide)
    size = grads.abs().amax(-1, keepdim=True) if grads.shape[-1] else grads.sum(-1, keepdim=True)
    silent = size == 0
    size = torch.where(silent, 1.0, size)
    before = torch.linalg.vector_norm(torch.where(silent, 1.0, grads / size), dim=-1)
    after = torch.linalg.vector_norm(torch.where(silent, 0.0, pulled / size), dim=-1)
    terms = torch.where(silent[..., 0], 0.0, (after / before - 1).square())
    return terms.sum(0).mean() if terms.numel() else terms.sum()


def recurrent_norm_penalty(step: Callable[[Tensor], Tensor], states: Tensor, grads: Tensor) -> Tensor:
    """Pascanu's regulariser for any recurrence that can be called on all its states at once.

        Omega = sum_k (||g_{k+1} dh_{k+1}/dh_k|| / ||g_{k+1}|| - 1)^2,        h_{k+1} = step(h_k)

    States and gradients are taken as constants, as in the paper: Omega is differentiated only through how each
    single step uses the parameters (the immediate derivative), not back through time. No double backward
    through the recurrence is needed; of one step it is.

    When to use it: recurrences written by hand whose gradient vanishes, or explodes. In the paper h is the
    pre-activation, h_{k+1} = W f(h_k) + .., for which this is its eq. 10 exactly; with h = f(..) the slope at
    h_{k+1} depends on W too, and is differentiated.

    Values in use: the weight in the loss as in `gradient_norm_penalty`, beside gradient clipping (Pascanu et al.).

    Cost: one forward and one double backward of a single step, with all T steps as its batch.

    Args:
        step: maps h_0..h_{T-1}, (T, B, H), to h_1..h_T with the inputs of each step, using parameters in the
            graph; no step may use another's state.
        states: h_0..h_{T-1}, (T, B, H).
        grads: dE/dh_1..dE/dh_T, (T, B, H), of all of E, through all later steps:
            ``torch.autograd.grad(loss, [h_1, .., h_T], retain_graph=True)`` stacked.

    Returns a 0-D tensor to add to the loss: ``(loss + weight * omega).backward()``.

    Empty, zero, nan: as in ``gradient_norm_penalty``.

    Example:
        >>> weight = nn.Parameter(2 * torch.eye(3))
        >>> omega = recurrent_norm_penalty(lambda h: h @ weight, torch.ones(5, 1, 3), torch.ones(5, 1, 3))
        >>> omega.backward()
        >>> omega.item(), bool(weight.grad.diagonal().min() > 0)  # too large: shrink
        (5.0, True)

    Source: Pascanu, Mikolov & Bengio (2013), eq. 9 and 10, https://arxiv.org/abs/1211.5063
    """
    if states.shape != grads.shape or states.dim() < 2:
        raise ValueError(
            f"states and grads must have one shape (steps, ..., features), got {tuple(states.shape)} and "
            f"{tuple(grads.shape)}: states h_0..h_(T-1), grads of h_1..h_T"
        )
    with torch.enable_grad():
        before = states.detach().requires_grad_()
        after = step(before)
        if after.shape != before.shape:
            raise ValueError(f"step must keep the shape {tuple(before.shape)}, got {tuple(after.shape)}")
        (pulled,) = torch.autograd.grad(after, before, grads.detach().to(after.dtype), create_graph=True)
    return gradient_norm_penalty(grads, pulled)


def rnn_norm_penalty(rnn: nn.RNN, output: Tensor, grad_output: Tensor) -> Tensor:
    """Pascanu's regulariser for ``nn.RNN``, from its output and the gradient of the loss there.

        Omega = sum_k (||g_{k+1} W_hh diag f'(a_k)|| / ||g_{k+1}|| - 1)^2,        g_k = dE/da_k

    over pre-activations a_k, as in the paper, with g_k and a_k taken as constants (the immediate derivative
    of its eq. 10): the gradient of Omega goes to W_hh alone.

    When to use it: a plain RNN that has to learn long dependencies. torch's fused kernels stay in use: what
    autograd gives for ``output`` does not hold the way through later steps, so that part is worked out here.

    Values in use: the weight in the loss as in `gradient_norm_penalty`, beside gradient clipping (Pascanu et al.).

    Cost: T products with W_hh for the gradients, one for Omega, and the backward pass of what follows the RNN
    once more, for ``grad_output``.

    Args:
        rnn: ``nn.RNN`` of one layer and one direction, tanh or relu. Of more layers make several of one.
        output: what it gave, (T, B, H), or (B, T, H) with batch_first, or (T, H).
        grad_output: dE/d output, same shape: ``torch.autograd.grad(loss, output, retain_graph=True)[0]``.

    Returns a 0-D tensor to add to the loss: the sum over steps, the mean over the batch.

    Empty, zero, nan: one step or none gives 0; zero gradients add 0; inf or nan gives nan.

    Example:
        >>> rnn, head = nn.RNN(3, 8), nn.Linear(8, 1)
        >>> output, h_n = rnn(torch.randn(20, 4, 3))
        >>> loss = head(output[-1]).square().mean()
        >>> (grad_output,) = torch.autograd.grad(loss, output, retain_graph=True)
        >>> omega = rnn_norm_penalty(rnn, output, grad_output)
        >>> (loss + 0.1 * omega).backward()

    Source: Pascanu, Mikolov & Bengio (2013), eq. 9 and 10, https://arxiv.org/abs/1211.5063
    """
    if not isinstance(rnn, nn.RNN):
        raise TypeError(
            f"rnn must be nn.RNN, got {type(rnn).__name__}: use recurrent_norm_penalty with its step"
        )
    if rnn.num_layers != 1 or rnn.bidirectional:
        raise ValueError(
            f"rnn must have one layer and one direction, as the states of lower layers are not in its output, got "
            f"num_layers={rnn.num_layers}, bidirectional={rnn.bidirectional}: use several nn.RNN of one layer"
        )
    if output.shape != grad_output.shape or output.dim() not in (2, 3) or output.shape[-1] != rnn.hidden_size:
        raise ValueError(
            f"output and grad_output must have the shape of the output of the RNN, (.., {rnn.hidden_size}), got "
            f"{tuple(output.shape)} and {tuple(grad_output.shape)}"
        )
    weight: Tensor = rnn.weight_hh_l0  # type: ignore[assignment]
    if output.dim() == 3 and rnn.batch_first:
        output, grad_output = output.transpose(0, 1), grad_output.transpose(0, 1)
    with torch.no_grad():
        h = output.detach()
        slopes = 1 - h.square() if rnn.nonlinearity == "tanh" else (h > 0).to(h.dtype)
        g = torch.zeros_like(h[:1].sum(0))
        grads = []
        for direct, slope in zip(grad_output.detach().flip(0), slopes.flip(0), strict=True):
            g = slope * (direct + g @ weight)  # with respect to the pre-activation
            grads.append(g)
        later = torch.stack(grads[::-1])[1:] if grads else g[None][:0]
    return gradient_norm_penalty(later, slopes[:-1] * F.linear(later, weight.mT))
