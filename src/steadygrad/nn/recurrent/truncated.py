"""Truncated backpropagation through time: a long sequence in chunks, with the state carried over and the graph cut."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from steadygrad._check import count


def detach(state: Any) -> Any:
    """The same state without its graph, however it is nested.

    Tensors (cut from the graph, same memory) in tuples, named tuples, lists, dicts and dataclasses; None,
    numbers, strings and booleans stay as they are.

    When to use it: between two chunks of a sequence, for states as (h, c) of an LSTM, one for each layer, or a cache.

    Values in use: none to set.

    Cost: no copy.

    Args:
        state: what is nested; not changed.

    Returns the same structure. Raises TypeError on anything that might hide a tensor.

    Empty, zero, nan: an empty tensor or container comes out as it is; so do inf and nan.

    Example:
        >>> import torch
        >>> h, c = torch.ones(2, requires_grad=True) * 2, torch.zeros(2)
        >>> [t.requires_grad for t in detach({"lstm": (h, c)})["lstm"]]
        [False, False]

    Source: Williams & Peng (1990), for truncation, https://doi.org/10.1162/neco.1990.2.4.490
    """
    return _mapped(state, lambda t: t.detach(), "state")


@dataclasses.dataclass
class Chunk:
    """One stretch of a sequence. The loop puts the state after it into ``state``."""

    inputs: Any  # as given, each tensor cut to these steps
    state: Any  # before the chunk; the loop overwrites it with the state after it
    start: int  # first step
    stop: int  # one past the last


def tbptt(
    inputs: Any,
    k1: int,
    state: Any = None,
    *,
    k2: int | None = None,
    replay: Callable[[Any, Any], Any] | None = None,
    dim: int = 0,
) -> Iterator[Chunk]:
    """Walk along a long sequence in chunks, with gradients that reach back at most ``k2`` steps.

        every k1 steps: backpropagate through them and the k2 - k1 steps before        (k2 = k1 if left out)

    The state that the loop leaves in ``chunk.state`` is detached and handed to the next chunk. With k2 > k1 the
    steps before the chunk are run anew by ``replay``, from the state that was kept at their start, with the
    weights as they are now (the optimizer has changed them in place since, so that the old graph cannot be
    used).

    When to use it: sequences longer than memory or patience allow, and streams. It also bounds how far a gradient
    can explode: over k2 steps. What lies further back is not learned.

    Values in use: k1 = k2: 35 to 70 for words of Penn Treebank, 100 to 200 for characters.

    Cost: memory of k2 steps. With k2 > k1, (k2 - k1) / k1 times more forward and backward passes.

    Args:
        inputs: tensors nested as for ``detach``, of one length along ``dim``; cut as views.
        k1: steps in a chunk, at least 1; the last chunk may be shorter.
        state: before the first step, nested as for ``detach``; None for what the model starts with.
        k2: steps that a gradient reaches back, a multiple of k1.
        replay: ``replay(inputs, state) -> state``, the model's state after some steps; needed with k2 > k1.
        dim: dimension of time, 0, or 1 with batch_first.

    Yields a ``Chunk`` for each stretch. A chunk whose state the loop leaves alone passes it on, detached.

    Empty, zero, nan: no steps yield nothing; a nan in the state is handed on, for the loop to see.

    Example:
        >>> import torch
        >>> rnn, x = torch.nn.LSTM(3, 4), torch.randn(100, 2, 3)
        >>> optimizer = torch.optim.SGD(rnn.parameters(), lr=0.1)
        >>> for chunk in tbptt(x, k1=30):
        ...     output, chunk.state = rnn(chunk.inputs, chunk.state)
        ...     output.square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> chunk.start, chunk.stop
        (90, 100)

    Source: Williams & Peng (1990), BPTT(h; h') with h = k2 and h' = k1,
    https://doi.org/10.1162/neco.1990.2.4.490
    """
    count("k1", k1)
    k2 = k1 if k2 is None else count("k2", k2)
    if k2 < k1 or k2 % k1:
        raise ValueError(f"k2 must be a multiple of k1, got k1={k1}, k2={k2}")
    if k2 > k1 and replay is None:
        raise ValueError(
            f"k2 > k1 runs steps anew: give replay(inputs, state) -> state, got k1={k1}, k2={k2}"
        )
    steps = _num_steps(inputs, dim)
    return _walk(inputs, k1, detach(state), k2, replay, dim, steps)


def _walk(
    inputs: Any,
    k1: int,
    state: Any,
    k2: int,
    replay: Callable[[Any, Any], Any] | None,
    dim: int,
    steps: int,
) -> Iterator[Chunk]:
    kept = deque([state], maxlen=k2 // k1)  # before each of the last k2 / k1 chunks
    for start in range(0, steps, k1):
        stop, reach = min(start + k1, steps), start - (len(kept) - 1) * k1
        before = kept[0]
        if reach < start:
            assert replay is not None
            before = replay(_cut(inputs, dim, reach, start), before)
        chunk = Chunk(_cut(inputs, dim, start, stop), before, start, stop)
        yield chunk
        kept.append(detach(chunk.state))


def _cut(inputs: Any, dim: int, start: int, stop: int) -> Any:
    return _mapped(inputs, lambda t: t.narrow(dim, start, stop - start), "inputs")


def _num_steps(inputs: Any, dim: int) -> int:
    lengths: set[int] = set()

    def see(t: Tensor) -> Tensor:
        if not -t.dim() <= dim < t.dim():
            raise ValueError(f"dim {dim} is not in a tensor of inputs of shape {tuple(t.shape)}")
        lengths.add(t.shape[dim])
        return t

    _mapped(inputs, see, "inputs")
    if len(lengths) != 1:
        raise ValueError(
            f"the tensors of inputs must have one length along dim {dim}, got {sorted(lengths) or 'no tensor'}"
        )
    return lengths.pop()


def _mapped(value: Any, f: Callable[[Tensor], Tensor], name: str) -> Any:
    """``f`` on every tensor."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, PackedSequence):
        raise TypeError(
            f"{name} holds a PackedSequence, whose steps lie interleaved: unpack it with pad_packed_sequence"
        )
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(v, f, name) for v in value))
    if type(value) in (tuple, list):
        return type(value)(_mapped(v, f, name) for v in value)
    if isinstance(value, dict):
        return type(value)((k, _mapped(v, f, name)) for k, v in value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {d.name: _mapped(getattr(value, d.name), f, name) for d in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{name} holds a {type(value).__name__}, which may hide tensors: use tensors in tuples, lists, dicts or "
        f"dataclasses"
    )
