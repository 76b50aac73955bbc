"""Parametrizations on the recurrent weights of torch's RNN, LSTM and GRU that the fused kernels really see."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from steadygrad.init.recurrent import num_gates
from steadygrad.nn.norm._ties import check_alone

_GONE: weakref.ref[Any] = weakref.ref(set())  # of nothing: what torch takes to be an outdated weight


def hidden_weights(module: nn.Module) -> list[str]:
    """Names of the hidden-to-hidden weights of a recurrent module of torch; raises for any other."""
    num_gates(module)
    names = dict.fromkeys(name for name, _ in module.named_parameters(recurse=False))
    names.update(dict.fromkeys(getattr(module, "parametrizations", {})))
    return sorted(name for name in names if name.startswith("weight_hh"))


def parametrize_hidden_weights(module: nn.Module, make: Callable[[Tensor, int], nn.Module]) -> None:
    """Put a parametrization made from the weight and its number of gates on each hidden-to-hidden weight."""
    gates = num_gates(module)
    names = hidden_weights(module)
    check_alone(module, names)
    made = {name: make(getattr(module, name), gates) for name in names}
    for name, parametrization in made.items():
        parametrize.register_parametrization(module, name, parametrization)
    if isinstance(module, nn.RNNBase):
        _use_what_is_computed(module)


def _use_what_is_computed(module: nn.RNNBase) -> None:
    """Let a fused RNN take its weights from its attributes in every call.

    torch keeps them in a list, ``_flat_weights``, and refreshes it where it sees an attribute with another
    identity. With computed weights that works each weight out four times a call, and leaves results of
    autograd in the module, which can then no longer be copied. Here the list becomes a property of the class
    that ``register_parametrization`` made for this one module, so that it vanishes with the parametrization.
    """
    kind: Any = type(module)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with parametrize.cached():  # once a call
            return super(kind, self).forward(*args, **kwargs)

    kind.forward = forward
    kind._flat_weights = property(
        lambda self: [getattr(self, name, None) for name in self._flat_weights_names],
        lambda self, value: None,
    )
    kind._init_flat_weights = _outdated
    kind._update_flat_weights = kind.flatten_parameters = lambda self: None
    _outdated(module)


def _outdated(module: nn.RNNBase) -> None:
    """For the time after the parametrization: torch then reads the attributes anew."""
    count = len(module._flat_weights_names)
    module.__dict__.update(_flat_weights=[None] * count, _flat_weight_refs=[_GONE] * count)
