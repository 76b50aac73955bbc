"""The schemes of ``initialise``, one function each: what it does to the layers that were found."""

from __future__ import annotations

import math
from collections.abc import Callable

from steadygrad.init._job import Job
from steadygrad.init._recipes import (
    critical_normal,
    critical_orthogonal,
    he,
    is_square,
    lecun,
    recurrent_identity,
    recurrent_orthogonal,
    scale_branches,
    suited,
    xavier,
)
from steadygrad.init.critical import Critical
from steadygrad.init.depth import plain_drift
from steadygrad.init.follow import Layer
from steadygrad.init.lsuv import unit_variance_scales

OneLayer = Callable[[Job, Layer], None]


def auto(job: Job) -> None:
    """What suits each layer.

    Xavier uniform before tanh, sigmoid and their kin and for attention; He before the ReLU family, with the
    gain of what really follows (GELU 1.53, SiLU 1.68, ...); LeCun before SELU, for output heads and where
    nothing nonlinear follows; orthogonal recurrent weights gate by gate, the identity for a ReLU RNN,
    forget-gate biases at 1. The end of each of N residual branches is multiplied by 1/sqrt(N), unless the
    branch has a learned scale. Embeddings stay as they are, but one tied to the output gets a standard
    deviation of 1/sqrt(d).

    Plain layers (no norm, no skip) of one activation that are too many for that, because a small difference
    would grow 10 times or the gradient change 1000 times on the way, are put at the critical point instead:
    18 GELU layers, 15 SiLU layers.

    When to use it: first, on any new model.

    Values in use: none to set.

    Cost: nothing beyond the one run that shows what follows each weight.

    Source: each part has its own scheme below; 1/sqrt(N) is Radford et al. (2019), section 2.3, and the length
    at which the critical point takes over was worked out here (``init.depth.plain_drift``).
    """
    deep = _too_deep(job)
    for layer in job.layers():
        (critical_normal if layer.weight in deep else suited)(job, layer)
    scale_branches(job)


def _plain(job: Job) -> dict[str, list[Layer]]:
    """The layers without norm or skip that something nonlinear follows, but for ReLU, by what follows."""
    plain: dict[str, list[Layer]] = {}
    within = {w for branch in job.followed.branches for w in branch.weights}
    for layer in job.layers():
        beside = layer.weight in within or layer.normed or layer.recurrent or layer.gated or layer.attention
        if (
            layer.activation not in ("identity", "relu")
            and layer.function is not None
            and not (beside or layer.fused)
        ):
            plain.setdefault(layer.activation, []).append(layer)
    return plain


def _lack(name: str, point: Critical | None) -> str:
    has = "has no critical point" if point is None else "needs biases for its critical point"
    return f"{name} {has}: add norms or skips"


def _note_missing_biases(job: Job) -> None:
    """Layers at a critical gain that keeps the signal only with the biases they do not have."""
    for name, layers in _plain(job).items():
        point = job.critical(layers[0])
        count = sum(not layer.bias for layer in layers)
        if count and point is not None and point.sigma_b > 0:
            job.notes.append(f"{count} plain {name} layers have no bias, and {_lack(name, point)}")


def _too_deep(job: Job) -> set[str]:
    """Weights of plain layers that need the critical point."""
    deep: set[str] = set()
    for name, layers in _plain(job).items():
        function, count = layers[0].function, len(layers)
        assert function is not None
        try:
            drift, gradient = plain_drift(function, job.gain(layers[0]), count)
        except ValueError:
            continue  # not finite at some variance on the way: nothing can be foretold
        mild = drift < -1e-3 and abs(gradient) < 0.04 * count  # variance 1 attracts, as for SELU
        if mild or (drift < math.log(10) and abs(gradient) < math.log(1000)):
            continue
        point = job.critical(layers[0])
        if point is None or (point.sigma_b > 0 and not all(layer.bias for layer in layers)):
            job.notes.append(f"{count} plain {name} layers are too deep, and {_lack(name, point)}")
            continue
        job.notes.append(
            f"{count} plain {name} layers: at the critical point, biases N(0, {point.sigma_b:.3g}^2)"
        )
        deep |= {layer.weight for layer in layers}
    return deep


def xavier_uniform(job: Job, gain: float | None = None) -> None:
    """Glorot's uniform weights, with the gain of what follows.

    U(+-gain sqrt(6 / (fan_in + fan_out)))

    When to use it: before tanh and sigmoid, and in attention. ``gain=1.0`` gives the paper's formula whatever
    follows; before ReLU that halves the variance at each layer.

    Values in use: gain 1 (the paper; the original Transformer).

    Cost: none.

    Source: Glorot & Bengio (2010), eq. 16, http://proceedings.mlr.press/v9/glorot10a.html
    """
    _each(job, lambda j, layer: xavier(j, layer, uniform=True, gain=gain))


def xavier_normal(job: Job, gain: float | None = None) -> None:
    """Glorot's normal weights, with the gain of what follows.

    N(0, gain^2 2 / (fan_in + fan_out))

    When to use it: as ``xavier_uniform``; the original Transformer and DeepNorm use either.

    Values in use: gain 1 (the paper).

    Cost: none.

    Source: Glorot & Bengio (2010), eq. 12, http://proceedings.mlr.press/v9/glorot10a.html
    """
    _each(job, lambda j, layer: xavier(j, layer, uniform=False, gain=gain))


def he_uniform(job: Job, gain: float | None = None) -> None:
    """He's weights, drawn uniformly, with the gain of what follows.

    U(+-gain sqrt(3 / fan_in))

    When to use it: as ``he_normal``.

    Values in use: gain sqrt(2) before ReLU (the paper).

    Cost: none.

    Source: He et al. (2015), eq. 10, https://arxiv.org/abs/1502.01852
    """
    _each(job, lambda j, layer: he(j, layer, uniform=True, gain=gain))


def he_normal(job: Job, gain: float | None = None) -> None:
    """He's weights, with the gain of what follows: sqrt(2) before ReLU.

    N(0, gain^2 / fan_in)

    When to use it: before the ReLU family. GELU, SiLU and Mish hold for some 15 plain layers only
    (``critical`` for more).

    Values in use: gain sqrt(2) before ReLU (the paper; torchvision's ResNets).

    Cost: none.

    Source: He et al. (2015), eq. 10, https://arxiv.org/abs/1502.01852
    """
    _each(job, lambda j, layer: he(j, layer, gain=gain))


def lecun_normal(job: Job) -> None:
    """LeCun's weights: the gain is 1 whatever follows.

    N(0, 1 / fan_in)

    When to use it: before SELU, whose net then normalises itself; for linear layers and output heads.

    Values in use: none to set.

    Cost: none.

    Source: LeCun et al. (1998), section 4.6; Klambauer et al. (2017), https://arxiv.org/abs/1706.02515
    """
    _each(job, lecun)


def critical(job: Job) -> None:
    """Gaussian weights and biases at the critical point of what follows.

    W ~ N(0, sigma_w^2 / fan_in),  b ~ N(0, sigma_b^2)

    When to use it: plain nets of tens to hundreds of layers. It is the scheme that holds GELU, SiLU and Mish
    nets up at such depth: their biases get the variance that keeps the signal from dying out. Needs biases; the
    report names layers that lack them.

    Values in use: worked out from the activation; tanh at sigma_b^2 = 0.05 has sigma_w^2 = 1.76 (Schoenholz).

    Cost: none after the first use of an activation, whose critical point is looked up from then on.

    Source: Schoenholz et al. (2017), section 3, https://arxiv.org/abs/1611.01232
    """
    _each(job, critical_normal)
    _note_missing_biases(job)


def orthogonal(job: Job, gain: float | None = None) -> None:
    """Orthogonal weights with the critical gain of what follows, biases N(0, sigma_b^2).

    W = sigma_w Q

    When to use it: as ``critical``; with tanh it trains still deeper nets, because no singular value strays.

    Values in use: the critical gain of what follows; ``gain=1.0`` gives plain orthonormal weights (Saxe).

    Cost: a QR decomposition a layer, O(n^3).

    Source: Saxe et al. (2014), https://arxiv.org/abs/1312.6120; Pennington et al. (2017),
    https://arxiv.org/abs/1711.04735
    """
    _each(job, lambda j, layer: critical_orthogonal(j, layer, gain))
    if gain is None:
        _note_missing_biases(job)


def delta_orthogonal(job: Job, gain: float | None = None) -> None:
    """Convolutions as one orthogonal matrix at their centre tap, with the critical gain; other layers orthogonal.

    When to use it: plain convolutional nets of hundreds of layers.

    Values in use: the critical gain of what follows (Xiao: tanh at sigma_b^2 = 2e-5, 10,000 layers).

    Cost: a QR decomposition a layer.

    Source: Xiao et al. (2018), algorithm 2, https://arxiv.org/abs/1806.05393
    """
    _each(job, lambda j, layer: critical_orthogonal(j, layer, gain, delta=layer.kind.startswith("conv")))
    if gain is None:
        _note_missing_biases(job)


def orthogonal_recurrent(job: Job, gain: float = 1.0) -> None:
    """Recurrent weights orthogonal gate by gate; the rest as in ``auto``.

    When to use it: RNN, LSTM and GRU, and hand-written recurrences with a square weight.

    Values in use: gain 1, which keeps the norm of the state (Henaff).

    Cost: a QR decomposition a gate.

    Source: Henaff, Szlam & LeCun (2016), https://arxiv.org/abs/1602.06662
    """
    _recurrent(job, lambda layer: recurrent_orthogonal(job, layer, gain))


def identity_recurrent(job: Job, scale: float = 1.0, input_std: float = 0.001) -> None:
    """IRNN: recurrent weights the identity gate by gate, input weights small; the rest as in ``auto``.

    W_hh = scale I,   W_ih ~ N(0, input_std^2)

    When to use it: ReLU RNNs over long sequences.

    Values in use: scale 1 (0.01 for speech), input_std 0.001 (Le).

    Cost: none.

    Source: Le, Jaitly & Hinton (2015), https://arxiv.org/abs/1504.00941
    """
    _recurrent(job, lambda layer: recurrent_identity(job, layer, scale))
    for layer in job.layers():
        if layer.kind == "recurrent_input":
            job.normal(layer, input_std, "normal", note="input weights of an IRNN")


def lsuv(job: Job, tol: float = 0.01, max_iter: int = 10) -> None:
    """Orthonormal weights, then each scaled so that its output on the example has unit variance.

    When to use it: activations that no formula covers, with a real batch of some hundred values per layer. It
    looks at the forward pass only: 200 tanh layers keep unit variance and multiply the gradient by 1e7.
    Attention inputs and recurrent weights stay orthonormal; a table tied to the output, and those beside it, stay
    at 1/sqrt(d) as in ``auto``, or the first logits would be sqrt(d) times too large.

    Values in use: tol 0.1, max_iter 10 (Mishkin & Matas); tol is 0.01 here.

    Cost: a QR decomposition a layer and one forward pass.

    Source: Mishkin & Matas (2016), algorithm 1, https://arxiv.org/abs/1511.06422
    """
    _each(job, lambda j, layer: critical_orthogonal(j, layer, 1.0, with_bias=False))
    left = {x.weight for x in job.layers() if x.fused or x.recurrent or x.kind == "embedding"}
    weights = [x.weight for x in job.layers() if x.weight in job.rows and x.weight not in left]
    factors = unit_variance_scales(job.model, job.example_input, weights, tol, max_iter)
    for weight, factor in factors.items():
        job.scale(job.followed[weight], factor, f"lsuv: x {factor:.4g}")


def _each(job: Job, one: OneLayer) -> None:
    for layer in job.layers():
        if layer.kind == "embedding":
            suited(job, layer)
        else:
            one(job, layer)


def _recurrent(job: Job, one: Callable[[Layer], None]) -> None:
    if not any(layer.recurrent for layer in job.layers()):
        raise ValueError(
            "this scheme needs recurrent weights, and none of the model's comes back to its own input"
        )
    for layer in job.layers():
        one(layer) if layer.recurrent and is_square(layer) else suited(job, layer)
    scale_branches(job)
