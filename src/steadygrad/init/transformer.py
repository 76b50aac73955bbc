"""The constants of T-Fixup and DeepNorm."""

from __future__ import annotations

from typing import NamedTuple


class DeepNorm(NamedTuple):
    """Constants of one stack: alpha multiplies the skip, beta the first values of v, out and feed-forward weights."""

    alpha: float
    beta: float


class DeepNorms(NamedTuple):
    """Constants of both stacks; None for one that is not there."""

    encoder: DeepNorm | None
    decoder: DeepNorm | None


def deepnorm_constants(num_encoder: int, num_decoder: int) -> DeepNorms:
    """alpha and beta of ``x <- LayerNorm(alpha x + G(x))`` for Transformers of N encoder and M decoder layers.

        encoder only:  alpha = (2 N)^(1/4),              beta = (8 N)^(-1/4)
        decoder only:  alpha = (2 M)^(1/4),              beta = (8 M)^(-1/4)
        both, encoder: alpha = 0.81 (N^4 M)^(1/16),      beta = 0.87 (N^4 M)^(-1/16)
              decoder: alpha = (3 M)^(1/4),              beta = (12 M)^(-1/4)

    The alpha belongs into the model's forward; ``initialise(..., scheme="deepnorm")`` sets the weights only.

    Args:
        num_encoder: N >= 0.
        num_decoder: M >= 0; one of the two must be positive.

    When to use it: post-norm Transformers of tens to a thousand layers.

    Values in use: none to set.

    Cost: none.

    Example:
        >>> [round(c, 3) for c in deepnorm_constants(18, 0).encoder], deepnorm_constants(18, 0).decoder
        ([2.449, 0.289], None)

    Source: Wang et al. (2022), figure 2, https://arxiv.org/abs/2203.00555
    """
    if num_encoder < 0 or num_decoder < 0 or not num_encoder + num_decoder:
        raise ValueError(
            f"layer counts must be >= 0 and not both 0, got {num_encoder} encoder, {num_decoder} decoder"
        )
    if not (num_encoder and num_decoder):
        layers = num_encoder + num_decoder
        one = DeepNorm((2 * layers) ** 0.25, (8 * layers) ** -0.25)
        return DeepNorms(one, None) if num_encoder else DeepNorms(None, one)
    mixed = num_encoder**4 * num_decoder
    return DeepNorms(
        DeepNorm(0.81 * mixed ** (1 / 16), 0.87 * mixed ** (-1 / 16)),
        DeepNorm((3 * num_decoder) ** 0.25, (12 * num_decoder) ** -0.25),
    )


def t_fixup_scale(num_layers: int, decoder: bool) -> float:
    """The factor of the value, output and feed-forward weights of a Transformer without LayerNorm and warm-up.

        encoder: 0.67 N^(-1/4)          decoder: (9 N)^(-1/4), which is the embeddings' too

    on top of Xavier weights and embeddings of standard deviation d^(-1/2).

    Args:
        num_layers: N, layers of the stack, >= 1.
        decoder: the stack attends to an encoder (three blocks a layer). A decoder-only stack has two: False.

    When to use it: Transformers without LayerNorm and without warm-up.

    Values in use: none to set.

    Cost: none.

    Example:
        >>> round(t_fixup_scale(6, decoder=False), 3), round(t_fixup_scale(6, decoder=True), 3)
        (0.428, 0.369)

    Source: Huang et al. (2020), the list "T-Fixup initialization",
    http://proceedings.mlr.press/v119/huang20f.html
    """
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    return (9 * num_layers) ** -0.25 if decoder else 0.67 * num_layers**-0.25
