"""Record one run of a model as a graph of torch calls: what the data went through, and which weights it met."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from steadygrad._preserve import split_example, untouched
from steadygrad.init._calls import CONTRACTIONS, DATA_FIRST, ELEMENTWISE

# What autograd calls the functions that can be told from its name alone.
_BY_BACKWARD: dict[str, Callable[..., Any]] = {
    f"{function.__name__.capitalize()}Backward0": function
    for function in (
        torch.relu,
        torch.tanh,
        torch.sigmoid,
        nn.functional.gelu,
        nn.functional.silu,
        nn.functional.mish,
    )
}
_ADOPTED = 500  # autograd nodes looked at to find where an unseen value came from


@dataclass(eq=False)
class Node:
    """One result on the way of the data."""

    index: int  # order of execution
    name: str  # of the torch function, "input", "norm", or "opaque:<module type>"
    parents: tuple[Node, ...] = ()  # the data it was made from, in the order of the arguments
    weights: tuple[Use, ...] = ()  # contracted with the data here
    affine: tuple[str, ...] = ()  # further parameters in the call: bias, scale
    bias: tuple[str, ...] = ()  # of those, the vectors given to a call with weights
    module: str = ""  # path of the innermost module whose forward was running
    floating: bool = True
    shape: tuple[int, ...] = ()
    call: Call | None = None  # how to replay it, for elementwise calls on data and scalars
    tensor: Tensor | None = None  # the result itself, kept only while the run lasts
    children: list[Node] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Use:
    """One weight in one call."""

    params: tuple[str, ...]  # the parameters the weight is made of; one, unless it is computed
    shape: tuple[int, ...]  # as the call saw it
    position: int  # among the tensor arguments
    args: tuple[Any, ...]  # positional arguments of the call that are not tensors, in place; None for tensors
    kwargs: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Call:
    """An elementwise call whose tensors are nodes or scalars."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Graph:
    """All nodes of a run, in the order of execution."""

    nodes: list[Node]
    param_names: dict[str, tuple[str, ...]]  # canonical name -> further names of the same tensor


@dataclass(frozen=True)
class _Origin:
    """Where a tensor made from parameters alone comes from."""

    params: tuple[str, ...]


class Recorder(TorchFunctionMode):
    """Sees every torch call of a run and keeps the graph of those that touch data or weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.running: list[tuple[str, int]] = [
            ("", 0)
        ]  # modules whose forward is running, and the node count at entry
        self._seen: dict[
            int, tuple[Tensor, Node | _Origin]
        ] = {}  # by id; holding the tensor keeps its id from being reused
        self._made_by: dict[Any, Node] = {}  # by autograd node
        self.param_names: dict[str, tuple[str, ...]] = {}
        self._matrix_names: set[str] = set()
        by_id: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if id(parameter) in by_id:
                self.param_names[by_id[id(parameter)]] += (name,)
                continue
            by_id[id(parameter)] = name
            if parameter.dim() >= 2:
                self._matrix_names.add(name)
            self.param_names[name] = ()
            self._seen[id(parameter)] = (parameter, _Origin((name,)))

    def node_of(self, tensor: Any) -> Node | None:
        entry = self._seen.get(id(tensor))
        return entry[1] if entry is not None and entry[0] is tensor and isinstance(entry[1], Node) else None

    def origin_of(self, tensor: Tensor) -> tuple[str, ...]:
        """The parameters that a tensor is made of; empty for data and constants."""
        entry = self._origin(tensor)
        return entry.params if isinstance(entry, _Origin) else ()

    def add(self, tensor: Tensor | None, name: str, parents: tuple[Node, ...] = (), **more: Any) -> Node:
        if tensor is not None:
            more |= {"floating": tensor.is_floating_point(), "shape": tuple(tensor.shape), "tensor": tensor}
        node = Node(len(self.nodes), name, parents, module=self.running[-1][0], **more)
        for parent in dict.fromkeys(parents):
            parent.children.append(node)
        self.nodes.append(node)
        if tensor is not None:
            self._seen[id(tensor)] = (tensor, node)
            if tensor.grad_fn is not None:
                self._made_by[tensor.grad_fn] = node
        return node

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.record(func, args, kwargs, out)
        return out

    def record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        name = getattr(func, "__name__", type(func).__name__)
        if name == "__setitem__":
            out = args[0]
        outputs = [t for t in tensors_in(out)]
        if not outputs:
            return
        inputs = list(tensors_in((args, kwargs)))
        origins = [self._origin(t) for t in inputs]
        if name in DATA_FIRST and origins and isinstance(origins[0], _Origin):
            origins[0] = self.add(inputs[0], "input", affine=origins[0].params)
        parents = tuple(o for o in origins if isinstance(o, Node))
        made_of = [
            (i, t, o.params)
            for i, (t, o) in enumerate(zip(inputs, origins, strict=True))
            if isinstance(o, _Origin)
        ]
        weights: tuple[Use, ...] = ()
        if name in CONTRACTIONS and (parents or name in DATA_FIRST):
            plain = tuple(a if _is_setting(a) else None for a in args)
            rest = {k: v for k, v in kwargs.items() if _is_setting(v)}
            weights = tuple(
                Use(self._matrices(p), tuple(t.shape), i, plain, rest) for i, t, p in made_of if t.dim() >= 2
            )
        if name == "multi_head_attention_forward":
            weights = _attention_order(weights)
        if not parents and not weights:
            if made_of:
                origin = _Origin(tuple(dict.fromkeys(p for _, _, params in made_of for p in params)))
                for tensor in outputs:
                    self._seen[id(tensor)] = (tensor, origin)
            return
        used = {p for use in weights for p in use.params}
        affine = tuple(dict.fromkeys(p for _, _, params in made_of for p in params if p not in used))
        bias = tuple(p[0] for _, t, p in made_of if weights and t.dim() == 1 and len(p) == 1)
        more = {"weights": weights, "affine": affine, "bias": bias}
        if len(outputs) == 1:
            self.add(outputs[0], name, parents, call=self._call(func, name, args, kwargs), **more)
            return
        whole = self.add(None, name, parents, **more)
        for tensor in outputs:
            self.add(tensor, "part", (whole,))

    def _matrices(self, params: tuple[str, ...]) -> tuple[str, ...]:
        """Of the parameters that a weight is made of, those that hold it; a scalar factor does not."""
        return tuple(p for p in params if p in self._matrix_names) or params

    def _origin(self, tensor: Tensor) -> Node | _Origin | None:
        entry = self._seen.get(id(tensor))
        if entry is not None and entry[0] is tensor:
            return entry[1]
        return self._adopted(tensor) if tensor.grad_fn is not None else None

    def _adopted(self, tensor: Tensor) -> Node | None:
        """A node for a value whose making was not seen (vmap, C++ code): autograd knows what it came from."""
        parents: dict[Node, None] = {}
        chain: list[Any] = []
        stack, seen = [tensor.grad_fn], {tensor.grad_fn}
        while stack and len(seen) < _ADOPTED:
            maker = stack.pop()
            if maker in self._made_by:
                parents[self._made_by[maker]] = None
                continue
            chain.append(maker)
            for before, _ in maker.next_functions if maker is not None else ():
                if before is not None and before not in seen:
                    seen.add(before)
                    stack.append(before)
        if not parents:
            return None
        first, *others = parents
        name = chain[0].name() if chain else "alias"
        if others or len(chain) != 1:
            return self.add(tensor, f"opaque:{name}" if chain else name, tuple(parents))
        function = _BY_BACKWARD.get(name)
        call = Call(function, (first,), {}) if function else None
        return self.add(tensor, function.__name__ if function else f"opaque:{name}", (first,), call=call)

    def _call(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """The call with its tensors replaced by nodes and numbers; None if it is not elementwise in the data."""
        if name not in ELEMENTWISE:
            return None
        if name == "prelu" and isinstance(
            args[1], Tensor
        ):  # one slope per channel: their mean stands for all
            return Call(
                torch.nn.functional.leaky_relu,
                (self.node_of(args[0]), args[1].detach().double().mean().item()),
                {},
            )
        replaced: list[Any] = []
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                node = self.node_of(value)
                if node is None and value.numel() != 1:
                    return None
                value = node if node is not None else value.detach().double().cpu().reshape(())
            replaced.append(value)
        return Call(func, tuple(replaced[: len(args)]), dict(zip(kwargs, replaced[len(args) :], strict=True)))


def _attention_order(weights: tuple[Use, ...]) -> tuple[Use, ...]:
    """Input projections first, the output projection last: with separate ones torch's call names the output first."""
    matrices = tuple(use for use in weights if len(use.shape) == 2)  # bias_k and bias_v have three dimensions
    return matrices if len(matrices) == 2 else (*matrices[1:], *matrices[:1])


def _is_setting(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(isinstance(v, int) for v in value)
    return isinstance(value, (int, float, str))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and mappings, and in objects that hold them as attributes, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from tensors_in(inner)
    elif hasattr(value, "__dataclass_fields__"):
        for key in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, key))


def trace(
    model: nn.Module,
    example_input: Any,
    recorder: Recorder | None = None,
    backward: Callable[..., None] | None = None,
) -> Graph:
    """Run the model once on a copy of the example and return the graph; the model is left bit for bit as it was.

    ``backward(recorder, output)`` is called inside, while tensors are still there.
    Raises ValueError naming the error if the model does not run on the example.
    """
    args, kwargs = split_example(example_input)
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    recorder = recorder or Recorder(model)
    with untouched(model), torch.inference_mode(False), torch.enable_grad():
        for tensor in tensors_in((args, kwargs)):
            recorder.add(tensor, "input")
        hooks = _module_hooks(model, recorder)
        try:
            with recorder:
                output = model(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  whatever the user's model raises is told with its cause
            raise ValueError(
                f"the model does not run on example_input: {type(error).__name__}: {error}. Pass a tensor, a tuple of "
                "positional arguments or a dict of keyword arguments that model(...) accepts in its present mode"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        if backward is not None:
            backward(recorder, output)
    for node in recorder.nodes:
        node.tensor = None
    return Graph(recorder.nodes, recorder.param_names)


class _Bridge(nn.Module):
    """Stands for a scripted module, which takes no hooks, while the run is recorded."""

    def __init__(self, scripted: nn.Module) -> None:
        super().__init__()
        self.__dict__["scripted"] = scripted  # not a submodule: it keeps its place in the tree

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["scripted"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["scripted"](*args, **kwargs)


def _module_hooks(model: nn.Module, recorder: Recorder) -> list[Any]:
    """Keep the path of the running module; fold a norm module into one node; bridge calls that torch modes cannot see.

    Hooks on each module, not for the whole process: those make torch.compile warn and fail when a forward raises.
    """
    handles: list[Any] = []
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, child in module.named_children():
            if isinstance(child, torch.jit.ScriptModule):
                bridge = module._modules[name] = _Bridge(child)  # undone with the rest of the module's state
                handles += _hook(bridge, f"{path}.{name}".lstrip("."), recorder)
        handles += _hook(module, path, recorder)
    return handles


def _hook(module: nn.Module, path: str, recorder: Recorder) -> list[Any]:
    def enter(_module: nn.Module, _args: Any) -> None:
        recorder.running.append((path, len(recorder.nodes)))

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        _on_leave(recorder, module, path, (args, kwargs), out, recorder.running.pop()[1])

    return [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, with_kwargs=True, always_call=True),
    ]


def _on_leave(recorder: Recorder, module: nn.Module, path: str, given: Any, out: Any, start: int) -> None:
    outputs = list(tensors_in(out))
    inputs = tuple(n for t in tensors_in(given) if (n := recorder.node_of(t)) is not None)
    if not outputs or not inputs:
        return
    if isinstance(module, _Bridge):
        module = module.__dict__["scripted"]
    kind = type(module).__name__
    parameters = {n: p for n, p in module.named_parameters(prefix=path) if n in recorder.param_names}
    if "norm" in kind.lower() and len(outputs) == 1:
        if not any(node.weights for node in recorder.nodes[start:]):
            for node in recorder.nodes[start:]:  # its squares and means are no activations
                for parent in node.parents:
                    if parent.index < start and node in parent.children:
                        parent.children.remove(node)
            recorder.add(outputs[0], "norm", inputs[:1], affine=tuple(parameters))
        return
    for tensor in outputs:
        if recorder.node_of(tensor) is None and tensor.is_floating_point():
            weights = tuple(
                Use((n,), tuple(p.shape), 1, (), {}) for n, p in parameters.items() if p.dim() >= 2
            )
            call = Call(module, inputs, {}) if not parameters and len(inputs) == 1 else None
            recorder.add(tensor, f"opaque:{kind}", inputs, weights=weights, call=call)
