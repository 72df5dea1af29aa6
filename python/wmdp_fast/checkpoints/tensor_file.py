"""Safetensors files, byte by byte: writing some tensors, and exchanging a few in a large file without reading the rest.

The format: 8 bytes with the length of a JSON header; the header, with dtype, shape and place of each tensor; the bytes.
Whether a header is sound is for the safetensors library to say: places must fill the file without a gap or an overlap.
The files that this package writes for itself have a checksum over all that is in them, since a flipped bit is a sound
file too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.exceptions import ModelError, WmdpFastWarning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from io import BufferedReader
    from pathlib import Path

    from torch import Tensor

_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What a method may have to remember besides; no weights are in these.
_WHOLE = {"I32": torch.int32, "U8": torch.uint8}
_NAMES = {dtype: name for name, dtype in (_TYPES | _WHOLE).items()}

# Key of the metadata of files that this package writes.
_CHECKSUM = "content_sha256"


@dataclass(frozen=True)
class Place:
    """Where a tensor is in a file.

    Attributes:
        dtype: Its type, as the format calls it.
        shape: Its size in each dimension.
        start: The first of its bytes, from the start of the file.
        length: How many bytes it has.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        places: The tensors by name.
        metadata: Free text by key.
    """

    places: dict[str, Place]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Reads the table of a safetensors file.

    Raises:
        ModelError: The file is not a safetensors file, or its table does not fit its length.
        OSError: It cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # The library checks all of it: types, shapes, sizes, and that places fill the file from end to end.
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise ModelError(f"{path} is no safetensors file, or damaged ({error}); copy or download it again") from None
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            table: dict[str, Any] = json.loads(file.read(size), object_pairs_hook=_without_repetition)
            metadata = table.pop("__metadata__", None) or {}
            places = {}
            for name, entry in table.items():
                begin, end = entry["data_offsets"]
                places[name] = Place(entry["dtype"], tuple(entry["shape"]), 8 + size + begin, end - begin)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{path} is damaged: {error}") from None
    return Header(places, metadata)


def read_tensors(path: Path, *, may_lack_checksum: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads all tensors of a file that `write_tensors` wrote, and its metadata.

    Args:
        path: The file.
        may_lack_checksum: Whether to warn only if the file has no checksum, as those of older versions.

    Warns:
        WmdpFastWarning: There is no checksum, so damage cannot be seen.

    Raises:
        ModelError: It is not what was written, or has no checksum.
        OSError: It cannot be read.
    """
    header = read_header(path)
    with path.open("rb") as file:
        tensors = {name: _read(file, path, name, place) for name, place in header.places.items()}
    metadata = dict(header.metadata)
    expected = metadata.pop(_CHECKSUM, None)
    if expected is None:
        problem = f"{path} has no checksum, so nobody can tell whether it is whole: an older version wrote it"
        if not may_lack_checksum:
            raise ModelError(problem)
        warnings.warn(f"{problem}; it is used as it is", WmdpFastWarning, stacklevel=2)
    elif expected != _content_digest(tensors, metadata):
        raise ModelError(f"{path} is damaged: its content differs from its checksum; copy or make it again")
    return tensors, metadata


def read_bytes(path: Path, place: Place) -> bytes:
    """The bytes of one tensor."""
    with path.open("rb") as file:
        file.seek(place.start)
        return file.read(place.length)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, sync: bool = True) -> None:
    """Writes tensors to a new file, with a checksum over them and the metadata. The same content makes the same bytes.

    Args:
        path: The file. If there is one, it is replaced, never written into: another name may belong to it too.
        tensors: By name.
        metadata: Free text by key.
        sync: Whether to make sure that they are on the disk, which takes its time.

    Raises:
        OSError: It cannot be written; the disk may be full.
    """
    sealed = {**metadata, _CHECKSUM: _content_digest(tensors, metadata)}
    table: dict[str, Any] = {"__metadata__": sealed}
    at = 0
    # The widest types first, as others write it, which keeps every tensor aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    for name, tensor in ordered:
        length = tensor.numel() * tensor.element_size()
        table[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + length]}
        at += length
    header = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for _, tensor in ordered:
            file.write(as_bytes(tensor))
        if sync:
            file.flush()
            os.fsync(file.fileno())


def patch(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors over those of the same names in a file.

    Raises:
        ModelError: The file has one in another type or shape.
        OSError: It cannot be written.
    """
    places = read_header(path).places
    for name, tensor in tensors.items():
        if (_NAMES.get(tensor.dtype), tuple(tensor.shape)) != (places[name].dtype, places[name].shape):
            raise ModelError(
                f"{path} has {name} as {places[name].dtype} {places[name].shape}, not as {tensor.dtype}"
                f" {tuple(tensor.shape)}"
            )
    with path.open("r+b") as file:
        for name, tensor in tensors.items():
            file.seek(places[name].start)
            file.write(as_bytes(tensor))
        file.flush()
        os.fsync(file.fileno())


def exchange(source: Path, target: Path, tensors: Mapping[str, Tensor]) -> None:
    """Copies a file with other tensors in place of those of the same names, which may be of other types.

    Args:
        source: The file.
        target: The copy, which must not be there yet.
        tensors: By name, in the shapes that the file has them in.

    Raises:
        OSError: It cannot be written; the disk may be full.
    """
    places = read_header(source).places
    metadata = {key: value for key, value in read_header(source).metadata.items() if key != _CHECKSUM}
    table: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    kinds = {name: place.dtype for name, place in places.items()}
    kinds |= {name: _NAMES[tensor.dtype] for name, tensor in tensors.items()}
    lengths = {name: place.length for name, place in places.items()}
    lengths |= {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    # The widest elements first, which keeps every tensor aligned; of those as wide, the old order.
    width = {name: lengths[name] // max(1, math.prod(place.shape)) for name, place in places.items()}
    ordered = sorted(places, key=lambda name: (-width[name], places[name].start))
    for name in ordered:
        offsets = [at, at + lengths[name]]
        table[name] = {"dtype": kinds[name], "shape": list(places[name].shape), "data_offsets": offsets}
        at += lengths[name]
    head = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    with target.open("xb") as file:
        file.write(len(head).to_bytes(8, "little"))
        file.write(head)
        for name in ordered:
            file.write(as_bytes(tensors[name]) if name in tensors else read_bytes(source, places[name]))
        file.flush()
        os.fsync(file.fileno())


def dtype_of(name: str, place: Place) -> torch.dtype:
    """The type that a file has a tensor in.

    Raises:
        ModelError: It is not one that weights can be rounded to.
    """
    if place.dtype not in _TYPES:
        raise ModelError(
            f"{name} is stored as {place.dtype}; unlearning needs a checkpoint in float32, float16 or bfloat16"
        )
    return _TYPES[place.dtype]


def as_stored(name: str, tensor: Tensor, place: Place, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor in the type that a file has it in, or in another one.

    Raises:
        ModelError: The file has it in another shape, or in a type that weights cannot be rounded to.
    """
    dtype = dtype or dtype_of(name, place)
    if tuple(tensor.shape) != place.shape:
        raise ModelError(f"{name} has shape {tuple(tensor.shape)}, but {place.shape} in the checkpoint")
    return tensor.detach().to(device="cpu", dtype=dtype).contiguous()


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, as files have them."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def as_text(vectors: Sequence[Tensor]) -> str:
    """Vectors as text for a file's metadata: base64 of their numbers in float32, one vector after another."""
    return base64.b64encode(b"".join(bytes(as_bytes(vector.float())) for vector in vectors)).decode()


def digest(tensors: Mapping[str, bytes | memoryview]) -> str:
    """SHA-256 over names and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(f"{name}\0{len(tensors[name])}\0".encode())
        sha.update(tensors[name])
    return sha.hexdigest()


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """`digest` of tensors, which are copied from a device one at a time."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        content = as_bytes(tensors[name])
        sha.update(f"{name}\0{len(content)}\0".encode())
        sha.update(content)
    return sha.hexdigest()


def _content_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over all that a file says: its metadata, and of each tensor the name, type, shape and bytes."""
    parts: dict[str, bytes | memoryview] = {"__metadata__": json.dumps(dict(metadata), sort_keys=True).encode()}
    for name, tensor in tensors.items():
        parts[f"{name} {_NAMES[tensor.dtype]} {list(tensor.shape)}"] = as_bytes(tensor)
    return digest(parts)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. The library takes the last of two tensors of one name, others the first."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is in its header twice")
    return found


def _read(file: BufferedReader, path: Path, name: str, place: Place) -> Tensor:
    dtype = (_TYPES | _WHOLE).get(place.dtype)
    if dtype is None:
        raise ModelError(f"{path}: {name} has type {place.dtype}, which is not one that this package writes")
    # Into memory that torch has aligned, as it is for a tensor that was computed.
    tensor = torch.empty(place.shape, dtype=dtype, device="cpu")
    if tensor.numel() * tensor.element_size() != place.length:
        raise ModelError(f"{path} is damaged: {name} has {place.length} bytes, too few or too many for its shape")
    file.seek(place.start)
    if place.length and file.readinto(as_bytes(tensor)) != place.length:
        raise ModelError(f"{path} ends within {name}; copy or download it again")
    return tensor
