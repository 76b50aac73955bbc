"""A snapshot as the contents of a file, and back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from steadygrad.guard import container
from steadygrad.guard.container import DamagedSnapshot
from steadygrad.guard.encode import DTYPES, Decoder, Encoder, Undecodable
from steadygrad.guard.image import Image, Restored
from steadygrad.guard.memory import available_bytes
from steadygrad.guard.restore import put_back
from steadygrad.guard.rng import set_rng_state
from steadygrad.guard.snapshot import Frozen
from steadygrad.guard.state import TrainingState
from steadygrad.guard.tensors import is_simple, plainly
from steadygrad.guard.tree import MISSING, Mapping_, PuttingBack, Taking, TensorRef

_KEYS = {"format", "version", "torch", "byteorder", "step", "image", "places", "rng", "left_out"}


def contents(frozen: Frozen) -> tuple[list[tuple[str, Tensor]], dict[str, Any]]:
    """The tensors to write, and what else the manifest says."""
    taking = Taking(first=len(frozen.tensors))
    with plainly():
        rng = taking.value("rng", frozen.rng)
    blobs: list[tuple[str, Tensor]] = []
    places: list[Any] = []
    left_out = list(frozen.left_out)
    for name, tensor in zip([*frozen.names, *taking.names], [*frozen.tensors, *taking.live], strict=True):
        known = str(tensor.dtype).removeprefix("torch.") in DTYPES
        if known and is_simple(tensor):
            places.append(len(blobs))
            blobs.append((name, tensor))
        elif known and tensor.layout is torch.sparse_coo:
            places.append([len(blobs), len(blobs) + 1, list(tensor.shape), tensor.is_coalesced()])
            blobs += [(f"{name} (indices)", tensor._indices()), (f"{name} (values)", tensor._values())]
        else:
            places.append(None)
            left_out.append(f"{name} has the layout {tensor.layout} and dtype {tensor.dtype}, not for a file")
    encoder = Encoder(lambda place: places[place] is not None)
    extra = {
        "format": "steadygrad-snapshot",
        "version": 1,
        "torch": torch.__version__,
        "byteorder": sys.byteorder,
        "step": frozen.step,
        "image": encoder.image(frozen.image),
        "places": places,
        "rng": encoder.value("rng", rng),
    }
    return blobs, {**extra, "left_out": left_out + encoder.left_out}


@dataclass(frozen=True, slots=True)
class SavedSnapshot:
    """A state read from disk."""

    step: int
    torch_version: str
    left_out: tuple[str, ...]  # what the file could not hold
    image: Image
    places: list[Tensor]
    rng: dict[str, Any]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name; those made of several parts are left out."""
        return {t.name: self.places[t.ref.places[0]] for t in self.image.tensors if t.ref.ordinary}

    def restore_into(self, state: TrainingState, *, rng: bool = True) -> Restored:
        """Put everything back into a run of the same script, matched by names of modules and parameters.

        Args:
            state: a live run, in this process or another one.
            rng: the random number generators as well.

        Returns:
            What could not be put back.

        Raises:
            RestoreError: the model does not fit; nothing was changed.
        """
        restored = put_back(state, self.image, self.places)
        if not rng:
            return restored
        try:
            set_rng_state(self.rng)
        except Exception as error:  # noqa: BLE001 - a foreign file may say anything; the state itself is in place
            problem = f"the random number generators were not put back: {type(error).__name__}: {error}"
            return Restored(restored.missing, restored.unknown, (*restored.problems, problem))
        return restored


def read_snapshot(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> SavedSnapshot:
    """Read one file. Nothing in it is executed, and no hash is taken on trust.

    Args:
        path: of a file that :func:`write_snapshot` wrote; anybody may have changed it.
        max_bytes: largest size of all tensors; the memory that is available if None.

    Raises:
        DamagedSnapshot: cut off, changed, too large, or not a snapshot.
        OSError: it cannot be opened.
    """
    limit = available_bytes() if max_bytes is None else max_bytes
    with _sense(), container.opened(Path(path)) as reader:
        total = sum(blob.nbytes for blob in reader.blobs)
        if total > limit:
            raise DamagedSnapshot(f"it holds {total:,} bytes of tensors, {limit:,} are allowed")
        return _decode(reader)


def packed(frozen: Frozen) -> dict[str, Any]:
    """A snapshot as plain data and tensors of its own, for a checkpoint of the user's.

    Example:
        >>> from steadygrad.guard.snapshot import Snapshot
        >>> model, snapshot = torch.nn.Linear(2, 1), Snapshot()
        >>> snapshot.take(TrainingState([model]), step=7)
        >>> unpacked(packed(snapshot.freeze())).step
        7
    """
    blobs, extra = contents(frozen)
    with plainly():
        return {"manifest": extra, "tensors": [tensor.clone() for _, tensor in blobs]}


def unpacked(kept: dict[str, Any]) -> SavedSnapshot:
    """What :func:`packed` gave, back. Nothing in it is executed.

    Raises:
        DamagedSnapshot: it is something else.
    """
    with _sense():
        return _decode(_InMemory(kept["manifest"], [tensor.cpu() for tensor in kept["tensors"]]))


class _Contents(Protocol):
    """What a snapshot is decoded from: its manifest, what is known of its tensors, and the tensors."""

    @property
    def manifest(self) -> dict[str, Any]: ...
    @property
    def blobs(self) -> Sequence[container.Blob | Tensor]: ...
    def tensors(self) -> Iterable[tuple[str, Tensor]]: ...


@dataclass(frozen=True)
class _InMemory:
    manifest: dict[str, Any]
    blobs: list[Tensor]

    def tensors(self) -> list[tuple[str, Tensor]]:
        return [("", tensor) for tensor in self.blobs]


@contextmanager
def _sense() -> Iterator[None]:
    """Whatever a foreign manifest leads to is damage."""
    try:
        yield
    except DamagedSnapshot:
        raise
    except (
        Undecodable,
        RecursionError,
        KeyError,
        TypeError,
        ValueError,
        OverflowError,
        RuntimeError,
    ) as error:
        raise DamagedSnapshot(f"its manifest makes no sense: {error}") from None


def _decode(reader: _Contents) -> SavedSnapshot:
    manifest = reader.manifest
    if set(manifest) != _KEYS or manifest["format"] != "steadygrad-snapshot" or manifest["version"] != 1:
        raise DamagedSnapshot("its manifest is not that of a steadygrad snapshot of version 1")
    if manifest["byteorder"] != sys.byteorder:
        raise DamagedSnapshot(f"it was written on a {manifest['byteorder']}-endian machine")
    step, left_out = manifest["step"], manifest["left_out"]
    if type(step) is not int or type(left_out) is not list:
        raise DamagedSnapshot("its step is no number")
    shapes = [_shape(place, reader.blobs) for place in manifest["places"]]
    decoder = Decoder(lambda ref: _check(ref, shapes))
    image = decoder.image(manifest["image"])
    rng = decoder.value(manifest["rng"])
    if not isinstance(rng, Mapping_):
        raise DamagedSnapshot("it has no state of the random number generators")
    blobs = [tensor for _, tensor in reader.tensors()]
    places = [_tensor(place, blobs) for place in manifest["places"]]
    rng = PuttingBack(places).value(MISSING, rng)
    return SavedSnapshot(step, str(manifest["torch"]), tuple(map(str, left_out)), image, places, rng)


def _shape(place: Any, blobs: Sequence[container.Blob | Tensor]) -> tuple[int, ...] | None:
    """The shape of the tensor of a place, None if the file does not hold it."""
    if place is None:
        return None
    if type(place) is list and len(place) == 4:
        indices, values, shape, _ = place
        _shape(indices, blobs), _shape(values, blobs)
        return tuple(shape)
    if type(place) is not int or not 0 <= place < len(blobs):
        raise DamagedSnapshot(f"it speaks of tensor {place!r} of {len(blobs)}")
    return tuple(blobs[place].shape)


def _check(ref: TensorRef, shapes: list[tuple[int, ...] | None]) -> None:
    held = [shapes[place] if place < len(shapes) else None for place in ref.places]
    if not held or None in held or (ref.ordinary and len(held) != 1):
        raise Undecodable("it speaks of a tensor that it does not hold")
    shape = held[0]
    if not ref.ordinary or shape is None:
        return
    fits = len(shape) == len(ref.shape) and all(
        have in (1, want) for have, want in zip(shape, ref.shape, strict=True)
    )
    if not fits:
        raise Undecodable(f"a tensor of shape {ref.shape} is kept as {shape}")


def _tensor(place: Any, blobs: list[Tensor]) -> Tensor:
    if place is None:
        return torch.empty(0)  # nothing refers to it
    if type(place) is int:
        return blobs[place]
    indices, values, shape, coalesced = place
    with plainly():
        return torch.sparse_coo_tensor(
            blobs[indices], blobs[values], shape, check_invariants=True, is_coalesced=bool(coalesced)
        )
