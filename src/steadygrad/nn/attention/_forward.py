"""Put a stabiliser in force on the modules of a model, without touching their classes, and take it off again.

Each module that may run attention of its own gets a `Forward` in place of its ``forward``. After the first call
only those that did run attention keep it, and the torch modules whose fast path would go around it.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.nn.attention._edit import Edit
from steadygrad.nn.attention._follow import AttentionMode, Frame

KEEP = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
_running = threading.local()


class Forward:
    """Runs a module's own forward while its stabilisers are in force."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = module
        self.name = name
        self.own = module.__dict__.get("forward")  # a forward that someone else put on this very module
        self.edits: list[Edit] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _eager()(self, args, kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.own or type(self.module).forward.__get__(self.module))

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        frame = Frame(self.name, self.module, self.edits)
        forward = self.own or type(self.module).forward.__get__(self.module)
        with _mode() as mode:
            mode.frames.append(frame)
            try:
                out = forward(*args, **kwargs)
            finally:
                mode.frames.pop()
        if self.name == "":
            self._tell_nothing_found()
        if not frame.num_sites and not isinstance(self.module, KEEP):
            self.leave()
        return out

    def _tell_nothing_found(self) -> None:
        for edit in self.edits:
            if edit.must_find and not edit.sites and not edit.told:
                edit.must_find = False
                warnings.warn(f"{edit.title} changes nothing: {NOTHING_FOUND}", stacklevel=2)

    def leave(self) -> None:
        if self.module.__dict__.get("forward") is self:
            del self.module.__dict__["forward"]
            if self.own is not None:
                self.module.__dict__["forward"] = self.own


NOTHING_FOUND = (
    "no attention ran in this forward pass. Found are F.scaled_dot_product_attention, "
    "F.multi_head_attention_forward, and a product of two tensors that reaches a softmax over its last "
    "dimension by way of scaling, masks and biases; not flex_attention, kernels of other packages, or a softmax "
    "written with exp"
)


@contextlib.contextmanager
def _mode() -> Iterator[AttentionMode]:
    """The mode in force in this thread; the outermost module starts it."""
    mode = getattr(_running, "mode", None)
    if mode is not None:
        yield mode
        return
    # compiled modules inside run as they are written: a mode around compiled code is not seen by it
    with torch.compiler.set_stance("force_eager"), AttentionMode() as mode:
        _running.mode = mode
        try:
            yield mode
        finally:
            _running.mode = None


_run: Callable[..., Any] | None = None


def _eager() -> Callable[..., Any]:
    """`Forward.run`, which torch.compile leaves alone (a graph break). Made late: it imports the compiler."""
    global _run
    if _run is None:
        _run = torch.compiler.disable(Forward.run)
    return _run


class Handle:
    """A stabiliser in force on a model.

    ``sites`` names the attention it has met so far. ``remove()`` takes it off: the model computes what it did
    before, bit for bit, and holds nothing of it. Copied together with its model (``copy.deepcopy((model,
    handle))``, or pickled so) it belongs to the copy.
    """

    def __init__(self, model: nn.Module, edit: Edit) -> None:
        self.model = model
        self.edit = edit

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.edit.sites)

    def remove(self) -> None:
        uninstall(self.model, self.edit)

    def __repr__(self) -> str:
        return f"{self.edit.title}: {list(self.sites) if self.sites else 'not run yet'}"


def install(model: nn.Module, edit: Edit, once: bool = True) -> None:
    """Put an edit in force on every module of a model that may run attention."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    if once:
        for forward in _forwards(model):
            if any(type(e) is type(edit) for e in forward.edits):
                raise ValueError(
                    f"{edit.title} is in force on this model already (module {forward.name!r}): "
                    "call remove() on its handle first"
                )
    _eager()
    for name, module in model.named_modules():
        if name and not _may_attend(module):
            continue
        forward = module.__dict__.get("forward")
        if not isinstance(forward, Forward):
            forward = Forward(module, name)
            module.__dict__["forward"] = forward
        forward.edits.append(edit)


def uninstall(model: nn.Module, edit: Edit) -> None:
    for forward in _forwards(getattr(model, "_orig_mod", model)):
        if edit in forward.edits:
            forward.edits.remove(edit)
            if not forward.edits:
                forward.leave()


def _forwards(model: nn.Module) -> list[Forward]:
    found = [m.__dict__.get("forward") for m in model.modules()]
    return [f for f in found if isinstance(f, Forward)]


def _may_attend(module: nn.Module) -> bool:
    """The user's own modules, and those torch modules that hold attention."""
    return isinstance(module, KEEP) or not type(module).__module__.startswith("torch.")


def try_out(model: nn.Module, edit: Edit, example_input: Any, grad: bool = False) -> None:
    """One forward pass that leaves the model and the random numbers as they were, to find the attention in it."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    devices = {t.device.index for t in model.parameters() if t.device.type == "cuda"}
    edit.must_find = False  # an error here, not a warning
    indices = sorted(d for d in devices if d is not None)
    try:
        with (
            torch.random.fork_rng(devices=indices),
            torch.set_grad_enabled(grad),
            warnings.catch_warnings(),
        ):
            # of checkpointed blocks, which want a gradient
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")
            call(model, example_input)
        if not edit.sites:
            raise ValueError(f"{edit.title} found nothing to act on: {NOTHING_FOUND}")
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def check_example(example_input: Any) -> None:
    if example_input is not None and not isinstance(example_input, (Tensor, tuple, list, dict)):
        raise TypeError(
            "example_input must be a tensor, a tuple of arguments or a dict of keyword arguments, "
            f"got {type(example_input).__name__}; settings are given by name"
        )


def call(model: nn.Module, example_input: Any) -> Any:
    if isinstance(example_input, dict):
        return model(**example_input)
    if isinstance(example_input, (tuple, list)):
        return model(*example_input)
    return model(example_input)
