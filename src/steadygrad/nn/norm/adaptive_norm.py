"""Adaptive normalisation: gain and choice of statistics follow what the layer does to the gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad import _check
from steadygrad.nn.norm._statistics import all_finite, batch_statistics, learn_, snapshot, unbiased

BATCH, LAYER, RMS = 0, 1, 2  # places in ``mix``
NOTHING = (math.nan, math.nan, 1.0)  # d, share of mean^2 and a of the last sound pass, before there was one
STARTS = {"batch": (1.0, 0.0, 0.0), "layer": (0.0, 1.0, 0.0), "rms": (0.0, 0.0, 1.0)}


class _Followed:
    """What the adaptive norms of one model share: the gradient at the norm that ran after, in the backward pass."""

    def __init__(self) -> None:
        self.calls = 0
        self.last: tuple[int, Tensor] | None = None  # number of the call, norm of the gradient

    def growth(self, call: int, norm: Tensor) -> Tensor | None:
        """Of the gradient, from the norm that ran next back to this one."""
        before, self.last = self.last, (call, norm)
        return None if before is None or before[0] != call + 1 else norm / before[1]


class AdaptiveNorm(nn.Module):
    """A norm whose gain and whose statistics follow the gradient of the running training, within bounds.

        y = gain (x - sum_k w_k m_k) / sqrt(sum_k w_k v_k + eps) * weight + bias       k: batch, layer, RMS (m = 0)

    In training a controller reads a, the growth of the gradient from the next adaptive norm back to this one (at the
    normalised values), and d, the distance of the batch's statistics from the running ones (in deviations), and moves

        log gain  <-  log gain - rate log a                       within [1 / max_gain, max_gain]
        w_batch   <-  w_batch - rate (log a + d)                  within [0, 1]
        w_layer / (w_layer + w_rms)  ->  share of mean^2 in the mean square of an example

    each step of at most ``rate``. In evaluation nothing moves.

    When to use it: to experiment with, or where a batch norm stands whose batches are too small. In the study
    ``adaptive_norm`` it ends better than the BatchNorm it started as in every setting, and 6 to 88 %
    worse than the best of LayerNorm, RMSNorm and none wherever anything trains; with none of the norms do plain ReLU
    nets of 50 layers train there. `adapt_norms` puts it in.

    Limits: the growth needs the norms to share a controller, as `adapt_norms` makes them; one alone moves its mix
    by d and by the mean. Under ``torch.compile`` the backward hook breaks the graph.

    Values in use: rate 0.01, max_gain 4 (ours).

    Cost: three sets of statistics in place of one, not fused, and a norm of the gradient; a training step of a small
    net takes four to six times that with BatchNorm on one CPU core. No wait for the device.

    Args:
        num_features: size of the normalised dimension, at least 1.
        start: statistics at the start, "batch", "layer" or "rms".
        channel_last: features in the last dimension, and the statistics of an example over it alone, as in
            ``nn.LayerNorm``; else in dimension 1, and those of an example over all but the batch.
        eps: above 0.
        momentum: weight of a new batch in the running statistics, 0 to 1; None for the plain average.
        affine: weight and bias.
        bias: False leaves out the bias.
        rate: largest step of the controller, 0 to 1; 0 freezes it.
        max_gain: at least 1.

    The buffers ``gain`` and ``mix`` are part of the state, as are the running statistics and what was measured last
    (``seen``). Changes take effect in the forward pass after the one that was measured.

    Empty, inf, nan: an empty batch gives an empty batch; inf or nan make what they touch nan, and teach neither the
    running statistics nor the controller anything.

    Example:
        >>> norm = AdaptiveNorm(3, start="layer", channel_last=True)
        >>> x = torch.randn(5, 3)
        >>> bool(torch.allclose(norm(x), nn.LayerNorm(3)(x), atol=1e-6))
        True

    Source: mixing statistics: Luo et al. (2019), https://arxiv.org/abs/1806.10779; the controller is ours.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    gain: Tensor
    mix: Tensor
    seen: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        start: str = "batch",
        channel_last: bool = False,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        bias: bool = True,
        rate: float = 0.01,
        max_gain: float = 4.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_features = _check.count("num_features", num_features)
        self.start = _check.one_of("start", start, tuple(STARTS))
        self.channel_last, self.eps = channel_last, _check.positive("eps", eps, finite=True)
        self.momentum = None if momentum is None else _check.fraction("momentum", momentum)
        self.rate = _check.fraction("rate", rate)
        self.max_gain = _check.number("max_gain", max_gain, 1.0)
        like = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.ones(num_features, **like)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features, **like)) if affine and bias else None
        self.register_buffer("running_mean", torch.zeros(num_features, **like))
        self.register_buffer("running_var", torch.ones(num_features, **like))
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device))
        self.register_buffer("gain", torch.ones((), **like))
        self.register_buffer("mix", torch.tensor(STARTS[start], **like))
        self.register_buffer("seen", torch.tensor(NOTHING, **like))
        self._followed = _Followed()

    def forward(self, input: Tensor) -> Tensor:
        axis = input.dim() - 1 if self.channel_last else 1
        if input.dim() < 2 or input.shape[axis] != self.num_features:
            raise ValueError(
                f"dimension {axis} of the input must be {self.num_features}, got shape {tuple(input.shape)}"
            )
        if input.numel() == 0:
            return input.clone()
        shape = [1] * input.dim()
        shape[axis] = -1
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        mean_l, var_l = batch_statistics(x, [axis] if self.channel_last else range(1, input.dim()))
        square = var_l + mean_l.square()
        mean_b, var_b, gap, sound = self._batch(x, axis, shape)
        if gap is not None and sound is not None and self.rate > 0:
            with torch.no_grad():
                self._adapt(gap, mean_l.square().mean() / square.mean(), sound)
        gain, mix = snapshot(self.gain, self.mix)
        mean = mix[BATCH] * mean_b + mix[LAYER] * mean_l
        var = mix[BATCH] * var_b + mix[LAYER] * var_l + mix[RMS] * square
        out = (x - mean) * (var + self.eps).rsqrt()
        if self.training and self.rate > 0 and out.requires_grad:
            self._watch(out)
        out = out * gain
        if self.weight is not None:
            out = out * self.weight.view(shape)
        if self.bias is not None:
            out = out + self.bias.view(shape)
        return out.to(input.dtype)

    def _batch(
        self, x: Tensor, axis: int, shape: list[int]
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Statistics of the batch, their distance d from the running ones, and whether they are finite.

        In evaluation the running ones, and no more.
        """
        mean, var = (t.to(x.dtype).view(shape) for t in snapshot(self.running_mean, self.running_var))
        if not self.training:
            return mean, var, None, None
        new_mean, new_var = batch_statistics(x, [d for d in range(x.dim()) if d != axis])
        with torch.no_grad():
            gap = ((new_mean - mean).square() / (new_var + self.eps)).mean().sqrt()
            gap = gap + ((new_var + self.eps) / (var + self.eps)).log().abs().mean() / 2
            sound = all_finite([new_mean, new_var])
            momentum = 1 / (self.num_batches_tracked + 1.0) if self.momentum is None else self.momentum
            count = x.numel() // self.num_features
            learn_(self.running_mean, new_mean.flatten(), momentum, sound)
            if count > 1:
                learn_(self.running_var, unbiased(new_var.flatten(), count), momentum, sound)
            self.num_batches_tracked.add_(sound)
        return new_mean, new_var, gap, sound

    def _watch(self, normalised: Tensor) -> None:
        """Read the gradient at the normalised values, where no gain counts."""
        self._followed.calls += 1
        call = self._followed.calls

        def note(grad: Tensor) -> None:
            norm = torch.linalg.vector_norm(
                grad.detach(), dtype=torch.promote_types(grad.dtype, torch.float32)
            )
            growth = self._followed.growth(call, norm)
            if growth is not None:
                good = growth.isfinite() & (growth > 0)
                self.seen[2] = torch.where(good, growth.to(self.seen), self.seen[2])

        normalised.register_hook(note)

    def _adapt(self, gap: Tensor, share: Tensor, sound: Tensor) -> None:
        """One bounded step of the controller by what the last sound pass showed, if this batch is sound as well."""
        gap_before, share_before, growth = self.seen.to(gap).unbind()
        learn = all_finite([gap_before, share_before]) & sound

        def bounded(step: Tensor) -> Tensor:
            return (self.rate * step).clamp(-self.rate, self.rate)

        gain = (self.gain.log() - bounded(growth.log())).exp().clamp(1 / self.max_gain, self.max_gain)
        batch = (self.mix[BATCH] - bounded(growth.log() + gap_before)).clamp(0, 1)
        rest = self.mix[LAYER] + self.mix[RMS]
        layer = torch.where(rest > 0, self.mix[LAYER] / rest, share_before)
        layer = (layer + bounded(share_before - layer)).clamp(0, 1)
        mix = torch.stack([batch, (1 - batch) * layer, (1 - batch) * (1 - layer)])
        self.gain.copy_(torch.where(learn, gain.to(self.gain), self.gain))
        self.mix.copy_(torch.where(learn, mix.to(self.mix), self.mix))
        found = torch.stack([gap, share, torch.ones_like(gap)]).to(self.seen)
        self.seen.copy_(torch.where(sound, found, self.seen))

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, the statistics and the controller as at the start."""
        for tensor, value in ((self.weight, 1.0), (self.bias, 0.0)):
            if tensor is not None:
                nn.init.constant_(tensor, value)
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()
        self.gain.fill_(1)
        self.mix.copy_(self.mix.new_tensor(STARTS[self.start]))
        self.seen.copy_(self.seen.new_tensor(NOTHING))

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, start={self.start!r}, channel_last={self.channel_last}, eps={self.eps}, "
            f"momentum={self.momentum}, rate={self.rate}, max_gain={self.max_gain}"
        )


def adapt_norms(model: nn.Module, rate: float = 0.01, max_gain: float = 4.0) -> dict[str, AdaptiveNorm]:
    """Put an `AdaptiveNorm` in the place of every batch, layer and RMS norm of a model, the function unchanged.

    Weights, biases and running statistics are the very same tensors, so that an optimizer that holds them holds them
    still. What the controller does begins with the first step after.

    When to use it: before or in the middle of a training with `AdaptiveNorm`.

    Values in use: see `AdaptiveNorm`.

    Cost: none.

    Args:
        model: changed in place. Batch norms without running statistics, layer norms over several dimensions,
            other norms and subclasses are left as they are.
        rate: largest step of the controller, 0 to 1.
        max_gain: bound of the gain, at least 1.

    Returns:
        path -> the new module; a norm that the model holds at two paths is one module at both.

    Raises:
        ValueError: nothing to replace, or the model itself is a norm. Nothing is changed then.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.RMSNorm(4))
        >>> sorted(adapt_norms(model))
        ['1', '4']

    Source: as `AdaptiveNorm`.
    """
    _check.fraction("rate", rate)
    _check.number("max_gain", max_gain, 1.0)
    found = {p: m for p, m in model.named_modules(remove_duplicate=False) if _convertible(m)}
    if not found or "" in found:
        raise ValueError(
            "model has no BatchNorm with running statistics, and no LayerNorm or RMSNorm over one dimension, inside it"
        )
    shared = _Followed()
    new: dict[nn.Module, AdaptiveNorm] = {}
    for path, norm in found.items():
        if norm not in new:
            new[norm] = _adaptive(norm, rate, max_gain)
            new[norm]._followed = shared
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new[norm])
    return {path: new[norm] for path, norm in found.items()}


def _convertible(norm: nn.Module) -> bool:
    if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return norm.running_mean is not None
    return type(norm) in (nn.LayerNorm, nn.RMSNorm) and len(norm.normalized_shape) == 1  # type: ignore[arg-type]


def _adaptive(norm: Any, rate: float, max_gain: float) -> AdaptiveNorm:
    batch = isinstance(norm, nn.modules.batchnorm._BatchNorm)
    start = "batch" if batch else "layer" if isinstance(norm, nn.LayerNorm) else "rms"
    bias = getattr(norm, "bias", None)
    held = next(
        (t for t in (norm.weight, norm.running_mean if batch else None) if t is not None), torch.empty(0)
    )
    made = AdaptiveNorm(
        norm.num_features if batch else norm.normalized_shape[0],
        start=start,
        channel_last=not batch,
        eps=torch.finfo(held.dtype).eps if norm.eps is None else norm.eps,
        momentum=norm.momentum if batch else 0.1,
        affine=norm.weight is not None,
        bias=bias is not None,
        rate=rate,
        max_gain=max_gain,
        device=held.device,
        dtype=held.dtype,
    )
    if norm.weight is not None:
        made.weight = norm.weight
    if bias is not None:
        made.bias = bias
    if batch:
        made.running_mean, made.running_var = norm.running_mean, norm.running_var
        made.num_batches_tracked = norm.num_batches_tracked
    return made.train(norm.training)
