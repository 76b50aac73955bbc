"""The recipes, one for each kind of net."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from steadygrad.clip import ZClip, chain, clip_by_global_norm_
from steadygrad.init import initialise
from steadygrad.nn.attention import qk_norm as add_qk_norm
from steadygrad.nn.attention.qk_norm import QKNormHandle
from steadygrad.recipes import layers, rows
from steadygrad.recipes.edits import Edits
from steadygrad.recipes.recipe import ClipRule, Recipe, decayed_groups
from steadygrad.schedule import warmup_cosine

UNCHANGED = (
    "no layer was made residual: they are not in an nn.Sequential, or must stay as they are. Put nn.Residual around "
    "the blocks of the model yourself; weights, optimizer, clipping and schedule are made all the same"
)

Change = Callable[[Edits], None]


def deep_mlp(
    model: nn.Module,
    example_input: Any,
    *,
    total_steps: int,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    max_norm: float = 1.0,
    dropout: float | None = 0.1,
    warmup_steps: int | None = None,
    scheme: str = "auto",
    change_model: bool = True,
) -> Recipe:
    """A deep fully connected net: residual blocks with LayerNorm and dropout, AdamW, clipping, warm-up and cosine.

        W_l, a, ...   ->   x + D(W_l a(N(x))), ..., N, a        in every Sequential

    When to use it: ten layers and more, or a training that stands still or blows up. In a net of three layers only
    AdamW and the schedule matter.

    Values in use: lr 1e-3, weight_decay 0.01 (torch's AdamW), max_norm 1, dropout 0.1, warm-up over 5 % of the run.

    Cost: a norm for each layer, a pass over the gradients for the clipping.

    Args:
        model: any module, before training: weights that are not frozen are initialised anew. Rows of equally wide
            linear layers with their activations are found in each ``nn.Sequential``. What is frozen, tied, hooked,
            parametrised, part of a residual block, the output layer or a hand-written ``forward`` stays as it is.
        example_input: as for ``init.initialise``: a tensor, a tuple of arguments, or a dict.
        total_steps: steps of the whole run, at least 2.
        lr: largest learning rate, > 0.
        weight_decay: on weights of two dimensions and more, >= 0.
        max_norm: largest joint gradient norm, > 0.
        dropout: of each block, 0 to 1; None keeps what the model has.
        warmup_steps: 0 to total_steps - 1; None takes 5 % of the run.
        scheme: of ``init.initialise``.
        change_model: False leaves the structure alone; the weights are still initialised.

    Returns a `Recipe`. The model is changed in place. If anything fails it is given back as it was. A step with a nan
    or inf in a gradient is left out by ``Recipe.step``.

    Example:
        >>> hidden = [m for _ in range(20) for m in (nn.Linear(16, 16), nn.ReLU())]
        >>> net = nn.Sequential(nn.Linear(4, 16), *hidden, nn.Linear(16, 1))
        >>> recipe = deep_mlp(net, torch.zeros(1, 4), total_steps=1000)
        >>> print(recipe)
        model: the model: 20 layers made pre-activation residual blocks
        init auto
        optimizer AdamW
        clip clip_by_global_norm_(max_norm=1.0)
        schedule over 1000 steps

    Source: residual blocks: He et al. (2016), https://arxiv.org/abs/1603.05027; the norm first: Xiong et al. (2020),
    https://arxiv.org/abs/2002.04745; AdamW: Loshchilov & Hutter (2019), https://arxiv.org/abs/1711.05101; the
    combination: ``studies/combinations``
    """

    def change(todo: Edits) -> None:
        rows.add_residuals(todo, example_input, rows.linear_width, rows.layer_norm_for, dropout)

    return _made(
        model, example_input, change if change_model else None, scheme, total_steps, warmup_steps,
        optimizer=partial(_adamw, lr=lr, weight_decay=weight_decay),
        clip=_bound(max_norm),
        unchanged=UNCHANGED,
    )  # fmt: skip


def conv_net(
    model: nn.Module,
    example_input: Any,
    *,
    total_steps: int,
    lr: float = 0.05,
    weight_decay: float = 5e-4,
    max_norm: float = 5.0,
    dropout: float | None = 0.1,
    warmup_steps: int | None = None,
    scheme: str = "auto",
    change_model: bool = True,
) -> Recipe:
    """A convolutional net: residual blocks with BatchNorm and dropout, SGD with Nesterov momentum, clipping, cosine.

        W_l, a, ...   ->   x + D(W_l a(BN(x))), ..., BN, a        in every Sequential

    When to use it: image nets of some ten layers and more. With batches under 8 put `nn.GroupNorm` into the
    model, which is kept.

    Values in use: lr 0.1, momentum 0.9, weight_decay 1e-4 (He 2016); the same with Nesterov, weight_decay 5e-4 and
    dropout 0.3 between the convolutions of a wide block (Zagoruyko & Komodakis 2016).

    Cost: a batch norm for each convolution, a pass over the gradients.

    Args:
        model: any module, before training. Rows of convolutions that keep the shape, with their activations, are found
            in each ``nn.Sequential``; what stays as it is: as for `deep_mlp`.
        example_input: as for ``init.initialise``: a tensor, a tuple of arguments, or a dict.
        total_steps: steps of the whole run, at least 2.
        lr: largest learning rate, > 0.
        weight_decay: on weights of two dimensions and more, >= 0.
        max_norm: largest joint gradient norm, > 0.
        dropout: of each block, 0 to 1; None keeps what the model has.
        warmup_steps: 0 to total_steps - 1; None takes 5 % of the run.
        scheme: of ``init.initialise``.
        change_model: False leaves the structure alone; the weights are still initialised.

    Returns a `Recipe`; changes and failures as for `deep_mlp`. A step with a nan or inf in a gradient is left out.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        ...                     nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
        >>> conv_net(net, torch.zeros(2, 1, 8, 8), total_steps=100).changes
        ('the model: 2 layers made pre-activation residual blocks',)

    Source: He et al. (2016), figure 4 (e), https://arxiv.org/abs/1603.05027; dropout inside residual blocks: Zagoruyko
    & Komodakis (2016), section 2.4, https://arxiv.org/abs/1605.07146
    """

    def change(todo: Edits) -> None:
        rows.add_residuals(todo, example_input, rows.conv_width, rows.batch_norm_for, dropout)

    def sgd(net: nn.Module) -> Optimizer:
        return torch.optim.SGD(decayed_groups(net, weight_decay), lr=lr, momentum=0.9, nesterov=True)

    return _made(
        model, example_input, change if change_model else None, scheme, total_steps, warmup_steps,
        optimizer=sgd,
        clip=_bound(max_norm),
        unchanged=UNCHANGED,
    )  # fmt: skip


def recurrent(
    model: nn.Module,
    example_input: Any,
    *,
    total_steps: int,
    lr: float = 2e-3,
    weight_decay: float = 0.01,
    max_norm: float = 1.0,
    dropout: float | None = 0.1,
    warmup_steps: int | None = None,
    scheme: str = "auto",
    change_model: bool = True,
) -> Recipe:
    """An RNN, LSTM or GRU: LayerNorm and a skip for each layer, orthogonal recurrent weights, AdamW, clipping.

        h_l = h_(l-1) + D(cell_l(N(h_(l-1))))        for every recurrent module of two layers and more

    When to use it: stacked recurrent nets, and long sequences. A single layer keeps its structure and gets the
    weights (orthogonal, forget gate open), the clipping and the schedule.

    Values in use: max_norm 1 (Pascanu: 0.5 to 10 times the usual norm), lr 1e-3 to 3e-3, dropout 0.1 to 0.3.

    Cost: a norm for each layer, a pass over the gradients; on a GPU what cuDNN gains from fusing layers.

    Args:
        model: any module with `nn.RNN`, `nn.LSTM` or `nn.GRU` in it, before training; one that is frozen, tied or
            hooked stays as it is.
        example_input: as for ``init.initialise``: a tensor, a tuple of arguments, or a dict.
        total_steps: steps of the whole run, at least 2.
        lr: largest learning rate, > 0.
        weight_decay: on weights of two dimensions and more, >= 0.
        max_norm: largest joint gradient norm, > 0.
        dropout: of each layer, 0 to 1; None keeps what the module has.
        warmup_steps: 0 to total_steps - 1; None takes 5 % of the run.
        scheme: of ``init.initialise``.
        change_model: False leaves the structure alone; the weights are still initialised.

    Returns a `Recipe`; changes and failures as for `deep_mlp`. If the model is itself an `nn.LSTM`, ``recipe.model`` is
    what takes its place. A step with a nan or inf in a gradient is left out.

    Example:
        >>> recipe = recurrent(nn.LSTM(3, 8, num_layers=4), torch.zeros(5, 1, 3), total_steps=100)
        >>> recipe.changes
        ('the model: 4 layers with norm and residual connection each',)

    Source: clipping: Pascanu, Mikolov & Bengio (2013), https://arxiv.org/abs/1211.5063; residual layers: Wu et al.
    (2016), section 3.1, https://arxiv.org/abs/1609.08144; orthogonal weights: Saxe et al. (2014),
    https://arxiv.org/abs/1312.6120
    """

    def change(todo: Edits) -> None:
        layers.add_recurrent_residuals(todo, dropout)

    return _made(
        model, example_input, change if change_model else None, scheme, total_steps, warmup_steps,
        optimizer=partial(_adamw, lr=lr, weight_decay=weight_decay),
        clip=_bound(max_norm),
        unchanged="" if _has_recurrent(model) else "the model has no nn.RNN, nn.LSTM or nn.GRU that could be changed",
    )  # fmt: skip


def transformer(
    model: nn.Module,
    example_input: Any,
    *,
    total_steps: int,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    max_norm: float = 1.0,
    warmup_steps: int | None = None,
    scheme: str = "auto",
    qk_norm: bool = False,
    change_model: bool = True,
) -> Recipe:
    """A Transformer: norms first, Xavier weights with small branch ends, AdamW, clipping by z-score and norm, warm-up.

        x <- x + f(N(x)),        AdamW (0.9, 0.95),        clip = ZClip, then the joint norm

    When to use it: any Transformer that spikes, or that needs a long warm-up to train at all.

    Values in use: betas (0.9, 0.95), weight_decay 0.1, max_norm 1, cosine to a tenth (GPT-3, Llama); lr 6e-4 at 125M
    parameters, 3e-4 at 7B, 1e-3 and more for small ones; warm-up over 5 % of the run here. ``qk_norm=True`` for high
    learning rates (ViT-22B).

    Cost: a pass over the gradients; `nn.attention.qk_norm` says its own.

    Args:
        model: any module, before training. torch's own Transformer layers put their norms first; frozen ones and
            a hand-written Transformer keep their placement.
        example_input: as for ``init.initialise``: a tensor, a tuple of arguments, or a dict.
        total_steps: steps of the whole run, at least 2.
        lr: largest learning rate, > 0.
        weight_decay: on weights of two dimensions and more, >= 0.
        max_norm: largest joint gradient norm, > 0.
        warmup_steps: 0 to total_steps - 1; None takes 5 % of the run.
        scheme: of ``init.initialise``.
        qk_norm: normalise queries and keys in every attention that the example meets.
        change_model: False leaves the structure alone; the weights are still initialised.

    Returns a `Recipe`; changes and failures as for `deep_mlp`. A step with a nan or inf in a gradient is left out, and
    the memory of ZClip never sees it.

    Example:
        >>> net = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 4, enable_nested_tensor=False)
        >>> transformer(net, torch.zeros(5, 1, 16), total_steps=100).changes
        ('4 Transformer layers put their norms first', 'the model: a norm at the end of the stack')

    Source: Xiong et al. (2020), https://arxiv.org/abs/2002.04745; Brown et al. (2020), appendix B,
    https://arxiv.org/abs/2005.14165; ZClip: Kumar et al. (2025), https://arxiv.org/abs/2504.02507; QK-norm: Dehghani et
    al. (2023), https://arxiv.org/abs/2302.05442
    """

    return _made(
        model, example_input, layers.norm_first if change_model else None, scheme, total_steps, warmup_steps,
        optimizer=partial(_adamw, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.95)),
        clip=chain(ZClip(), _bound(max_norm)),
        last=partial(add_qk_norm, example_input=example_input) if qk_norm else None,
        min_factor=0.1,
    )  # fmt: skip


def _has_recurrent(model: nn.Module) -> bool:
    return isinstance(model, nn.Module) and any(
        isinstance(m, (nn.RNNBase, nn.RNNCellBase)) for m in model.modules()
    )


def _adamw(model: nn.Module, lr: float, weight_decay: float, **options: Any) -> Optimizer:
    return torch.optim.AdamW(decayed_groups(model, weight_decay), lr=lr, **options)


def _bound(max_norm: float) -> ClipRule:
    rule = partial(clip_by_global_norm_, max_norm=max_norm)
    rule([])  # a bound that cannot be is told before anything is changed
    return rule


def _made(
    model: nn.Module,
    example_input: Any,
    change: Change | None,
    scheme: str,
    total_steps: int,
    warmup_steps: int | None,
    *,
    optimizer: Callable[[nn.Module], Optimizer],
    clip: ClipRule,
    min_factor: float = 0.0,
    last: Callable[[nn.Module], QKNormHandle] | None = None,
    unchanged: str = "",
) -> Recipe:
    """Change the structure, initialise, and build the rest; on any failure the model is as it was."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules()):
        raise ValueError(
            "the model is wrapped in DistributedDataParallel, which would not know of new parameters: make the "
            "recipe first, and wrap recipe.model"
        )
    if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 2:
        raise ValueError(f"total_steps must be at least 2, the steps of the whole run, got {total_steps!r}")
    warm = math.ceil(total_steps / 20) if warmup_steps is None else warmup_steps
    factor = partial(warmup_cosine, warmup_steps=warm, total_steps=total_steps, min_factor=min_factor)
    factor(0)  # this and the next line tell of bad settings before anything is changed
    optimizer(nn.Linear(1, 1))
    todo = Edits(model)
    tensors = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    try:
        if change is not None:
            change(todo)
            if not todo.changes:
                todo.changes.append("left as it is: nothing that this recipe knows how to change")
                if unchanged:
                    warnings.warn(f"{unchanged}; change_model=False silences this", stacklevel=3)
        report = initialise(todo.model, example_input, scheme)
        if last is not None:
            todo.changes.append(str(last(todo.model)))
        chosen = optimizer(todo.model)
    except BaseException:
        todo.undo()
        for tensor, old in tensors:
            tensor.data.copy_(old)
        raise
    scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, factor)
    return Recipe(todo.model, chosen, clip, scheduler, total_steps, tuple(todo.changes), report)
