"""Losses that rebuild what was taken away from the input: they have no views, and cannot collapse to a constant."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad._check import fraction, number
from steadygrad.probe.embeddings import embeddings_dtype, show


def random_mask(
    shape: tuple[int, int],
    share: float = 0.75,
    *,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Which of L positions of each of N samples to hide: the same number of each sample.

    When to use it: for patches, tokens or pixels; hide whole patches, for single pixels can be told from their
    neighbours.

    Values in use: 0.75 of the patches of a picture (MAE), 0.15 of the tokens of a text (BERT).

    Cost: a sort of N L numbers.

    Args:
        shape: (N, L), each at least 1.
        share: of the positions to hide, above 0 and below 1; rounded, but at least one is hidden and one is left.
        device: of the mask.
        generator: the random stream; torch's own of the device if None, as for dropout.

    Returns:
        A bool tensor (N, L), True where hidden.

    Raises:
        ValueError: a share or shape out of its range; fewer than 2 positions.

    Example:
        >>> random_mask((3, 8), 0.75).sum(1).tolist()
        [6, 6, 6]

    Source: He et al. (2022), section 3, https://arxiv.org/abs/2111.06377
    """
    share = fraction("share", share, zero=False, one=False)
    samples, positions = shape
    if samples < 1 or positions < 2:
        raise ValueError(f"shape must be (N, L) with N at least 1 and L at least 2, got {tuple(shape)}")
    hidden = min(max(round(share * positions), 1), positions - 1)
    order = torch.rand(samples, positions, device=device, generator=generator).argsort(1)
    return torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :hidden], True)


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error where the input was hidden, and nowhere else.

        sum_{hidden} (prediction - target)^2 / number hidden

    When to use it: with `random_mask`. Scored on what the net has seen as well, copying it is most of the task.

    Values in use: targets at mean 0 and variance 1, over the data or over each patch.

    Cost: one read of each.

    Args:
        prediction: (N, L) or (N, L, ...), any float dtype, computed in float32 at least.
        target: of the same shape.
        mask: (N, L) bool, True where hidden.

    Returns:
        A 0-D tensor, at least 0; 0 if nothing is hidden. nan if a hidden entry is nan or inf; what was not hidden
        plays no part, whatever it is.

    Raises:
        ValueError: shapes that do not fit, or a mask that is not bool.

    Example:
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> masked_mse(torch.zeros(1, 3), x, torch.tensor([[False, True, False]])).item()
        4.0

    Source: He et al. (2022), section 3, https://arxiv.org/abs/2111.06377
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must have one shape, got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    if mask.dtype != torch.bool or mask.shape != target.shape[:2]:
        raise ValueError(
            f"mask must be bool of shape {tuple(target.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}"
        )
    dtype = embeddings_dtype(prediction)
    wrong = (prediction.to(dtype) - target.to(dtype)).square()
    where = mask.reshape(*mask.shape, *[1] * (wrong.dim() - 2)).expand_as(wrong)
    return torch.where(where, wrong, 0.0).sum() / where.sum().clamp(min=1)


class MaskedReconstruction(nn.Module):
    """Hide a part of the input, and rebuild it from the rest: the loss of a batch.

        x -> hidden positions at 0 -> encoder -> decoder -> `masked_mse` against x

    When to use it: inputs whose parts explain each other, and no good augmentation; it needs no pairs, no large
    batches and no teacher. The encoder sees the whole input with zeros in it, so that any encoder will do; MAE's,
    which leaves out the hidden patches, is faster for a Transformer.

    Values in use: share 0.75 for pictures, 0.15 for text; a decoder much smaller than the encoder.

    Cost: encoder and decoder once.

    Args:
        encoder: the net to pre-train; takes an input of the shape of x.
        decoder: from its output to the shape of x.
        share: of the positions to hide, above 0 and below 1.
        generator: the random stream of the masks; torch's own if None, as for dropout.

    In evaluation mode positions are hidden as well. A nan that is hidden does no harm before the loss, which is nan.

    Raises:
        ValueError: a share out of its range; at the call an input that is not (N, L, ...), a decoder whose output has
            another shape.

    Example:
        >>> module = MaskedReconstruction(nn.Linear(64, 8), nn.Linear(8, 64), share=0.5)
        >>> module(torch.randn(16, 64)).shape
        torch.Size([])

    Source: He et al. (2022), section 3, https://arxiv.org/abs/2111.06377
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        share: float = 0.75,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.share = fraction("share", share, zero=False, one=False)
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """The loss of x, (N, L) or (N, L, ...): positions are those of the second axis."""
        if x.dim() < 2:
            raise ValueError(f"x must be (N, L, ...), got {tuple(x.shape)}")
        mask = random_mask((x.shape[0], x.shape[1]), self.share, device=x.device, generator=self.generator)
        code = self.encoder(x.masked_fill(mask.reshape(*mask.shape, *[1] * (x.dim() - 2)), 0.0))
        show(code)
        return masked_mse(self.decoder(code), x, mask)


class DenoisingAutoencoder(nn.Module):
    """Add noise to the input, and rebuild what it was: the loss of a batch.

        mean ( decoder(encoder(x + noise * n)) - x )^2        n ~ N(0, 1)

    When to use it: the simplest pre-training, for tables and signals. A code as wide as the input needs noise, or it
    learns to copy.

    Values in use: noise 0.1 to 0.5 for inputs of variance 1.

    Cost: encoder and decoder once.

    Args:
        encoder: the net to pre-train.
        decoder: from its output to the shape of x.
        noise: standard deviation, >= 0; 0 is a plain autoencoder.
        generator: the random stream; torch's own if None, as for dropout.

    In evaluation mode the noise is added as well. A nan in the input or the output makes the loss nan.

    Raises:
        ValueError: noise below 0 or not finite; at the call a decoder whose output has another shape than x.

    Example:
        >>> module = DenoisingAutoencoder(nn.Linear(64, 8), nn.Linear(8, 64))
        >>> module(torch.randn(16, 64)).shape
        torch.Size([])

    Source: Vincent et al. (2008), section 2.3, https://doi.org/10.1145/1390156.1390294, with Gaussian noise as in
        Vincent et al. (2010)
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        noise: float = 0.3,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.noise = number("noise", noise, 0.0)
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """The loss of x, (N, ...)."""
        added = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=self.generator)
        code = self.encoder(x + self.noise * added)
        show(code)
        rebuilt = self.decoder(code)
        if rebuilt.shape != x.shape:
            raise ValueError(f"the decoder must give {tuple(x.shape)}, got {tuple(rebuilt.shape)}")
        dtype = embeddings_dtype(x)
        return F.mse_loss(rebuilt.to(dtype), x.to(dtype))
