"""RMS, dead units and saturation of module outputs, on sampled steps."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steadygrad.probe.compiled import Compiled
from steadygrad.probe.host import post
from steadygrad.probe.local import readable
from steadygrad.probe.names import class_name, named_roots, walk
from steadygrad.probe.outputs import (
    Activation,
    activation_behind,
    first_floating,
    recurrent_activation,
    softmax_axis,
    unit_axis,
)
from steadygrad.probe.totals import Totals
from steadygrad.records import ActivationStats

FIRST_STEPS = frozenset({0, 1, 2, 5, 10, 20})  # most trainings that die do so early
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
WHOLE = (nn.RNNBase, nn.MultiheadAttention)  # compute by themselves, whatever children they have


def sampled(step: int, every: int) -> bool:
    """Whether a step is one of those at which a closer look is taken: the first ones, and every so many."""
    return step in FIRST_STEPS or step % every == 0


class _Hook:
    """A forward hook that becomes inert in every copy of its module, and in a file needs no steadygrad to load."""

    def __init__(self, sampler: ActivationSampler, path: str) -> None:
        self.sampler, self.path = sampler, path

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():  # traced away: no graph break, nothing left in the graph
            return
        self.sampler._saw(self.path, module, args, kwargs, output)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")  # takes anything, returns None


class _GiveWay:
    """Before a layer with a fast path is evaluated without autograd, our hooks leave it. With any hook there it would
    compute otherwise and round otherwise: the user's evaluation would change."""

    def __init__(self, sampler: ActivationSampler, path: str) -> None:
        self.sampler, self.path = sampler, path

    def __call__(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling() and not torch.is_grad_enabled() and not module.training:
            self.sampler._leave(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")


class ActivationSampler:
    """Watches what modules put out, in the training forwards of sampled steps.

    Seen are modules without children and recurrent and attention modules, each by a forward hook that is there only
    between :meth:`arm` and :meth:`disarm`. Forwards without autograd (evaluation) are not seen. A module that is
    called several times (micro-batches, a layer used twice, a recomputed checkpoint) gets one entry over all calls:

        rms       = sqrt(sum of squares over all calls / number of values)
        dead      = units that were 0 in every row of every call / units      after a ReLU, from 16 rows on
        saturated = values at a flat end / values                             after tanh, sigmoid, softmax
        input_rms = as rms, of the first tensor argument, where that has no history: raw batches

    Flat ends: ``|tanh| > 0.99``, a sigmoid outside [0.01, 0.99], a softmax whose largest probability is over 0.999
    (then a fraction of rows). Of an output of more than 131,072 values evenly spread rows of about so many are counted.
    The activation is known by the name that autograd gave it, so ``F.relu(fc(x))`` is
    seen too, at the input of the next module: it is reported under ``fc``, which made the values, and under the
    next module if that is not known. Units lie on axis 1 behind convolutions and their norms, else on the last.
    When a module is called again with another number of units, ``dead`` starts anew.

    A value that is nan or inf makes ``rms`` nan or inf. Outputs are never touched; no random number is drawn.
    A module whose output cannot be read is dropped, with a text in ``notes``. Compiled modules are left alone, with
    a text in ``notes``; so are scripted ones.

    Args:
        roots: module trees. Names are those of the parameters.
        every: after the first steps, one step in this many is sampled; at least 1.
        compiled: knows what is compiled; made anew if None.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> sampler = ActivationSampler([model])
        >>> sampler.arm()
        >>> _ = model(torch.ones(16, 2))
        >>> [(a.module, a.module_type, round(a.input_rms, 6)) for a in sampler.take()]
        [('0', 'Linear', 1.0), ('1', 'ReLU', nan)]
        >>> sampler.disarm()
    """

    def __init__(
        self, roots: Sequence[nn.Module], every: int = 50, *, compiled: Compiled | None = None
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.roots = tuple(roots)
        self.every = every
        self.notes: list[str] = []
        self._named: list[tuple[str, nn.Module]] | None = None
        self._handles: dict[str, RemovableHandle] = {}
        self._dropped: set[str] = set()
        self._compiled = compiled or Compiled()
        self._seen: dict[str, Totals] = {}  # in the order of the first call
        # Numbers of autograd nodes (never the nodes: those keep the graph) and the module that made them.
        self._made: dict[tuple[int, int], str] = {}
        self._measured: set[tuple[int, int]] = set()

    def due(self, step: int) -> bool:
        """Whether this step is to be sampled: 0, 1, 2, 5, 10, 20 and every ``every``-th."""
        return sampled(step, self.every)

    def arm(self) -> None:
        """Install the hooks. Those already there are renewed."""
        self.disarm()
        if self._named is None:
            self._named = named_roots(self.roots)
        self._compiled.look()
        hooked: set[int] = set()
        for prefix, root in self._named:
            for path, module in walk(root, into=lambda m: not self._compiled.why(m) and not _computes(m)):
                name = (prefix + path).removesuffix(".")
                if why := self._compiled.why(module):
                    self._note(f"activations of {name or 'the model'} are not sampled: it is {why}")
                elif issubclass(type(module), nn.TransformerEncoderLayer):
                    self._handles[name] = module.register_forward_pre_hook(_GiveWay(self, name))
                elif _computes(module) and id(module) not in hooked and name not in self._dropped:
                    hooked.add(id(module))
                    self._handles[name] = module.register_forward_hook(_Hook(self, name), with_kwargs=True)

    def disarm(self) -> None:
        """Remove every hook. What was seen stays until :meth:`take`."""
        self._leave("")
        self._made.clear()
        self._measured.clear()

    def take(self) -> tuple[ActivationStats, ...]:
        """What was seen since the last time, modules in the order of their first call. Clears it."""
        self._made.clear()
        self._measured.clear()
        seen, self._seen = {path: totals for path, totals in self._seen.items() if totals.count}, {}
        return _read_totals(seen) if seen else ()

    # ------------------------------------------------------------------ called by the hooks
    def _saw(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not torch.is_grad_enabled() or torch.jit.is_tracing() or getattr(module, "_is_replica", False):
            return
        try:
            with torch.no_grad():
                self._read(path, module, (args, kwargs), output)
        except Exception as error:  # noqa: BLE001 - any output of a foreign module; its forward must go on
            self._dropped.add(path)
            self._seen.pop(path, None)
            self._leave(path)
            text = str(error).partition("\n")[0]
            self._note(f"activations of {path or 'the model'} cannot be read: {type(error).__name__}: {text}")

    def _leave(self, top: str) -> None:
        """Remove our hooks from a module and from everything below it."""
        for name in [n for n in self._handles if not top or n == top or n.startswith(f"{top}.")]:
            self._handles.pop(name).remove()

    def _read(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        given, made = first_floating(inputs), first_floating(output)
        totals = self._seen.get(path)
        if totals is None:
            totals = self._seen[path] = Totals(class_name(module))
        through = given is made and not getattr(module, "inplace", False)  # Identity, Dropout in evaluation
        if given is not None and given.grad_fn is not None:
            if given is not made or through:  # else it is overwritten, and has our own history now
                self._read_activation(given, totals)
        elif (
            given is not None
            and not isinstance(given, nn.Parameter)
            and (values := _values(given)) is not None
        ):
            totals.add_input(values)
        if made is None or (values := _values(made)) is None:
            return
        totals.add_output(values)
        if (kind := recurrent_activation(module)) is not None:
            totals.add_activation(kind, values, values.dim() - 1)
        elif made.grad_fn is not None and not through:
            self._made[_number(made.grad_fn)] = path
            self._read_activation(made, totals)

    def _read_activation(self, tensor: Tensor, totals: Totals) -> None:
        """Count dead units or flat values, once, under the module that made the activation or its input."""
        found = activation_behind(tensor)
        if found is None:
            return
        kind, node, shape = found
        values = _values(tensor)
        if _number(node) in self._measured or values is None or not shape:
            return
        self._measured.add(_number(node))
        source = self._made.get(_number(node))
        if source is None and (before := node.next_functions[0][0]) is not None:
            source = self._made.get(_number(before))
        axis = softmax_axis(node, len(shape)) if kind is Activation.SOFTMAX else unit_axis(node, len(shape))
        target = totals if source is None else self._seen.get(source, totals)
        target.add_activation(kind, values.reshape(shape), axis)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


@torch.no_grad()
def _read_totals(seen: Mapping[str, Totals]) -> tuple[ActivationStats, ...]:
    """The record of each module, by its path. One copy to the host."""
    sums: dict[torch.device, list[tuple[str, str, Tensor]]] = {}
    for path, totals in seen.items():
        for kind, tensor in totals.on_device().items():
            sums.setdefault(tensor.device, []).append((path, kind, tensor))
    numbers: dict[str, dict[str, float]] = {path: {} for path in seen}
    for entries in sums.values():
        values = post([tensor for _, _, tensor in entries]).numbers()  # host sync
        for (path, kind, _), value in zip(entries, values, strict=True):
            numbers[path][kind] = value
    return tuple(totals.stats(path, numbers[path]) for path, totals in seen.items())


def _computes(module: nn.Module) -> bool:
    """Whether a module's own output is looked at: it is at the end of the tree, or works as one piece."""
    if issubclass(type(module), WHOLE):
        return True
    return not issubclass(type(module), CONTAINERS) and not (module._modules.keys() - {"parametrizations"})


def _values(tensor: Tensor) -> Tensor | None:
    values = readable(tensor)
    if values is None or values.numel() == 0:
        return None
    if values.is_cuda and torch.cuda.is_current_stream_capturing():
        return None  # memory of a CUDA graph: not ours to keep
    return values.float() if values.dtype.itemsize == 1 else values


def _number(node: Any) -> tuple[int, int]:
    """What tells an autograd node from others while its graph lives; holding the node would keep the graph."""
    return threading.get_ident(), node._sequence_nr()
