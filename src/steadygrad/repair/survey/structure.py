"""What the models are made of: layers, residual branches, activations and attention, by the first training pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from steadygrad.init._calls import PRODUCTS
from steadygrad.init._trace import Graph, Node
from steadygrad.init.follow import Followed, Layer, understand
from steadygrad.init.gain import gated_gain, init_gain
from steadygrad.plasticity._chain import links_in
from steadygrad.probe.names import flat_params
from steadygrad.repair.effects._weights import LoadedModules
from steadygrad.repair.effects.effect import Models
from steadygrad.repair.survey.activations import find_activations
from steadygrad.repair.survey.recording import Recording
from steadygrad.repair.survey.surveyor import Surveyor


class Structure(Surveyor):
    """Looks on at the first pass forward that a backward pass follows.

    Found are

    - ``layers``: one dict per weight in order of execution: ``weight``, ``module``, ``kind``, ``shape``, ``width``
      (units that it puts out), ``gain`` (for what follows it), ``activation``, ``uses`` in one pass, its
      roles in ``attention``, and flags: ``plain`` (a Linear or convolution of torch with that weight), ``head``,
      ``first``, ``normed``, ``recurrent``, ``bias``, ``trained``, ``tied``;
    - ``branches``: one dict per residual sum: ``ends`` (modules of its last weights), ``normed``, ``depth``;
    - ``activations``: see :func:`steadygrad.repair.survey.activations.find_activations`;
    - ``links``: pairs of a hidden layer and the only layer that reads its units, by their modules;
    - ``loaded``: whether weights of a trained model came from a checkpoint;
    - ``unscaled_attention``: modules that compare queries with keys and scale neither them nor the product.
    """

    key = "structure"

    def __init__(self, value: Any = None) -> None:
        self._recording = Recording()
        self._models = Models()
        self._found: Mapping[str, Any] | None = None
        self._loaded = LoadedModules()

    def install(self) -> None:
        self._recording.install()
        self._loaded.install()

    def models(self, models: Models) -> None:
        if self._found is None:
            self._models = models
            self._recording.begin(models)

    def backward(self, roots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        if self._found is not None:
            return
        self._found = {}
        recorded = self._recording.end()
        if recorded is None:
            return
        graph, sites = recorded
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # what is replayed on numbers may draw some
            followed = understand(graph)
        modules = self._models.modules
        recurrent = {layer.weight for layer in followed if layer.recurrent}
        trained = {id(p) for optimizer in self._models.optimizers for p in flat_params(optimizer)}
        self._found = {
            "layers": [_layer(layer, modules, trained) for layer in followed],
            "branches": _branches(followed),
            "activations": find_activations(graph.nodes, sites, modules, recurrent),
            "unscaled_attention": _unscaled(graph.nodes),
            "links": _links(graph, modules, self._models.roots),
            "loaded": any(self._loaded.in_(root) for root in self._models.roots),
        }
        self._models = Models()

    def found(self) -> Mapping[str, Any]:
        return self._found or {}

    def remove(self) -> None:
        self._recording.remove()
        self._loaded.remove()


def _links(graph: Graph, modules: Mapping[str, nn.Module], roots: Sequence[nn.Module]) -> list[list[str]]:
    """Pairs within one model: what a generator puts out is read by a discriminator, and is no hidden layer."""
    inside = [{id(module) for module in root.modules()} for root in roots]
    return [
        [link.name, link.reader_name]
        for link in links_in(graph, modules)[0]
        if any(id(link.layer) in one and id(link.reader) in one for one in inside)
    ]


def _layer(layer: Layer, modules: Mapping[str, nn.Module], trained: set[int]) -> dict[str, Any]:
    owner = modules.get(layer.module)
    plain = (
        isinstance(owner, (nn.Linear, _ConvNd))
        and owner._parameters.get("weight") is not None
        and layer.weight == f"{layer.module}.weight".removeprefix(".")
    )
    return {
        "weight": layer.weight,
        "module": layer.module,
        "kind": layer.kind,
        "shape": list(layer.shape),
        "width": layer.fan_out if layer.kind == "linear" else layer.shape[0],
        "gain": _gain(layer),
        "activation": layer.activation,
        "plain": plain,
        "head": layer.head,
        "first": layer.first,
        "normed": layer.normed,
        "recurrent": layer.recurrent,
        "attention": list(layer.attention),
        "bias": bool(layer.bias),
        "trained": owner is not None and any(id(p) in trained for p in owner.parameters()),
        "tied": bool(layer.tied),
        "uses": layer.uses,
    }


def _gain(layer: Layer) -> float:
    if layer.function is None:
        return 1.0
    try:
        return (gated_gain if layer.gated else init_gain)(layer.function)
    except (
        ValueError,
        TypeError,
    ):  # a function without a gain: not finite somewhere, or no longer elementwise
        return 1.0


def _branches(followed: Followed) -> list[dict[str, Any]]:
    owners = {layer.weight: layer.module for layer in followed}
    return [
        {
            "ends": [owners[weight] for weight in branch.ends if weight in owners],
            "normed": branch.normed,
            "depth": branch.depth,
        }
        for branch in followed.branches
    ]


def _unscaled(nodes: Sequence[Node]) -> list[str]:
    """Modules in which a softmax takes the plain product of two computed values."""
    found: dict[str, None] = {}
    for node in nodes:
        if node.name not in ("softmax", "log_softmax") or len(node.parents) != 1:
            continue
        product, scaled = _back(node.parents[0])
        if product is None or scaled or any(_back(parent)[1] for parent in product.parents):
            continue
        found[node.module] = None
    return list(found)


def _back(node: Node) -> tuple[Node | None, bool]:
    """Up to the product or weight that this came from, and whether it was multiplied by a number on the way."""
    scaled = False
    while not node.weights and node.parents:
        if len(node.parents) > 1 and node.name in ("matmul", "__matmul__", "bmm", "einsum", "baddbmm"):
            return node, scaled
        scaled |= node.name in PRODUCTS and len(node.parents) == 1
        node = node.parents[0]
    return None, scaled
