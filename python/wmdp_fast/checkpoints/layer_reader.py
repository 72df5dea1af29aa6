"""Tensors of a checkpoint read one by one, when they are wanted, into memory of their own.

The usual way maps the files into memory, and whatever was touched then counts as the process's own. Here bytes are
copied into anonymous memory that goes back to the system with the last tensor that lies in it.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from wmdp_fast.checkpoints.tensor_file import read_header
from wmdp_fast.checkpoints.weight_files import read_json
from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from wmdp_fast.checkpoints.weight_files import WeightFiles

# As the format calls them.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. Indexed with `...`, as transformers does with what it loads, it is read.

    Attributes:
        name: Its name in the file.
        path: The file.
        dtype: Its type.
        shape: Its size in each dimension.
        start: The first of its bytes in the file.
        nbytes: How many bytes it has.
    """

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int

    def __getitem__(self, _everything: object) -> torch.Tensor:
        if self.nbytes == 0:
            return torch.empty(self.shape, dtype=self.dtype, device="cpu")
        memory, offset = self._memory()
        file = os.open(self.path, os.O_RDONLY)
        try:
            with memoryview(memory) as view, view[offset:] as place:
                read_into(place, file, self, 0)
        finally:
            os.close(file)
        return self._in(memory, offset)

    def first_rows(self, count: int) -> StoredTensor:
        """The same with so many of its rows alone, which lie one behind the other."""
        return replace(self, shape=(count, *self.shape[1:]), nbytes=self.nbytes // self.shape[0] * count)

    def without_numbers(self, device: torch.device) -> torch.Tensor:
        """Memory for it on a device, into which nothing is read."""
        if device.type != "cpu" or self.nbytes == 0:
            return torch.empty(self.shape, dtype=self.dtype, device=device)
        return self._in(*self._memory())

    def _memory(self) -> tuple[mmap.mmap, int]:
        """Memory for it, and where in that it begins."""
        # Where in a page a number lies may decide how a product is rounded, so it lies where the mapped file has it.
        offset = self.start % mmap.PAGESIZE
        return mmap.mmap(-1, offset + self.nbytes), offset

    def _in(self, memory: mmap.mmap, offset: int) -> torch.Tensor:
        # The tensor keeps the memory, and frees it.
        return torch.frombuffer(memory, dtype=self.dtype, offset=offset).view(self.shape)


def read_into(place: memoryview, file: int, stored: StoredTensor, start: int) -> None:
    """Reads as many bytes of a tensor as there is place for, from one of them on.

    Raises:
        ModelError: The file ends too early.
    """
    at = 0
    while at < len(place):
        with place[at:] as rest:
            read = os.preadv(file, [rest], stored.start + start + at)
        if read == 0:
            raise ModelError(f"{stored.path} ends within {stored.name}; copy or download it again")
        at += read


def stored_tensors(files: WeightFiles) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint by name, of which nothing is read yet.

    Raises:
        ModelError: A file is missing or damaged, or has a tensor of a type that is not known here.
        OSError: A file cannot be read.
    """
    files.refuse_missing()
    found: dict[str, StoredTensor] = {}
    for shard in files.shards:
        path = files.folder / shard
        for name, place in read_header(path).places.items():
            dtype = _DTYPES.get(place.dtype)
            if dtype is None:
                raise ModelError(f"{path}: {name} is stored as {place.dtype}, which is not streamed")
            if math.prod(place.shape) * dtype.itemsize != place.length:
                raise ModelError(f"{path} is damaged: {name} has {place.length} bytes, too few or many for its shape")
            found[name] = StoredTensor(name, path, dtype, place.shape, place.start, place.length)
    return found


def unnamed_dtype(files: WeightFiles, stored: Mapping[str, StoredTensor]) -> torch.dtype:
    """The type that transformers gives a model whose configuration names none (`_get_dtype`, 5.24).

    That is what the index says, else the type of the first floating-point tensor of the first file, in the order in
    which safetensors names them, which is not that of their places.

    Args:
        files: The checkpoint.
        stored: Its tensors.
    """
    if files.index is not None and files.index.endswith(".json"):
        about = read_json(files.folder / files.index).get("metadata")
        named = getattr(torch, str(about.get("dtype")), None) if isinstance(about, dict) else None
        if isinstance(named, torch.dtype):
            return named
    with safe_open(files.folder / files.shards[0], framework="np") as file:
        kinds = [stored[name].dtype for name in file.keys()]  # noqa: SIM118 (it is no mapping)
    return next((kind for kind in kinds if kind.is_floating_point), kinds[0])
