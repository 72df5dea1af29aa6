"""Activations that training does not change, kept on disk for later epochs, runs and processes.

Of each batch two things depend only on frozen weights and on the batch's tokens: the residual stream that enters the
first trained layer (the *trunk*), and the output of the steered layer in the original model (the *frozen* branch, the
retain loss's target). Each is a safetensors file:

    DIR/trunk-MODEL/BATCH.safetensors     DIR/frozen-MODEL/BATCH.safetensors

MODEL is a hash of everything that decides the bits, besides the batch: the weights below (their bytes, so that it does
not matter where a model came from), its configuration and code, the versions of torch, transformers and this package,
the device, the number of threads. BATCH is a hash of tokens, attention mask and, if documents are packed, positions. So
nothing ever needs to be told that it is out of date: what changes is simply not found. A file is written under another
name and renamed, and carries its own hashes and a checksum; one that does not hold what its name says is reported,
computed again and replaced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from wmdp_fast._rust import __version__
from wmdp_fast.checkpoints import tensor_file
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.runtime import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor, nn

    from wmdp_fast.models.decoder import Decoder

Kind = Literal["trunk", "frozen"]

# Changes when files of before could no longer be read, or would hold something else.
_FORMAT = "3"

_EXTENSION = ".safetensors"
_UNFINISHED = ".unfinished"
# Holds nothing: each batch is a place in it that a process can lock.
_LOCK = "lock"
_TENSOR = "activations"
# Seconds after which an unfinished file belongs to a process that was killed.
_OLD = 3600.0

# Parts of a configuration that say nothing about the layers below, or are in the hash by themselves.
_NOT_HASHED = ("_name_or_path", "architectures", "dtype", "num_hidden_layers", "torch_dtype", "transformers_version")


@dataclass
class CacheUse:
    """What a cache did for its user so far.

    Attributes:
        read: Files that saved computing something.
        written: New files.
        bytes_written: Their size.
        not_written: What was computed but had no room, by the cache's limit or on the disk.
    """

    read: int = 0
    written: int = 0
    bytes_written: int = 0
    not_written: int = 0


def total(uses: Iterable[CacheUse]) -> CacheUse:
    """What several users of a cache did."""
    found = CacheUse()
    for use in uses:
        for name, count in dataclasses.asdict(use).items():
            setattr(found, name, getattr(found, name) + count)
    return found


def summary_of(use: CacheUse, folder: Path, size: int) -> str:
    """What a cache did, in a line.

    Args:
        use: What it did.
        folder: Where it is.
        size: How many bytes it holds.
    """
    missing = f", {use.not_written} without room" if use.not_written else ""
    return (
        f"trunk cache: {use.read} activations read, {use.written} computed and written"
        f" ({use.bytes_written / 1e6:.1f} MB){missing}; {folder} holds {size / 1e6:.1f} MB"
    )


def size_of(folder: Path) -> int:
    """How many bytes a cache in a folder holds."""
    return sum(path.stat().st_size for path in folder.glob(f"*/*{_EXTENSION}"))


class TrunkCache:
    """A folder of activations. Several processes may use it at once.

    Args:
        folder: Made if it is not there.
        decoder: The model. Its weights must be the original ones whenever `entries` is called.
        limit: Most bytes that the folder may hold; what comes later is computed each time. None for no limit.
        processes: How many fill it at once: each has an even share of what the limit leaves.
        weights_of: A context in which a layer, given by its number, has its weights, or for None what belongs to no
            layer; for a model of which not all is in memory.

    Attributes:
        folder: As given.
        use: What it did so far.

    Raises:
        OSError: The folder cannot be made or read.
    """

    def __init__(
        self,
        folder: Path,
        decoder: Decoder,
        *,
        limit: int | None = None,
        processes: int = 1,
        weights_of: Callable[[int | None], AbstractContextManager[Any]] | None = None,
    ) -> None:
        self.folder, self.use = folder, CacheUse()
        self._decoder, self._limit = decoder, limit
        self._weights_of = weights_of or contextlib.nullcontext
        self._digests: dict[int | None, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"*/*{_UNFINISHED}"):
            _remove_if_old(left)
        self.size = size_of(folder)
        self._most = self.size + max((limit or 0) - self.size, 0) // processes
        self._full = False

    @property
    def is_full(self) -> bool:
        """Whether no more files are written."""
        return self._full

    def entries(self, kind: Kind, below: int) -> Entries:
        """The files of one kind of activations, those that layer `below` - 1 gives out.

        Hashes the weights of the layers up to there; those that were hashed before are not again.
        """
        described = json.dumps(self._what_decides(kind, below), sort_keys=True, default=str)
        return Entries(self, kind, hashlib.sha256(described.encode()).hexdigest())

    def weights(self, below: int) -> str:
        """A hash of the weights of the layers below `below`, and of what belongs to no layer."""
        digests = [self._digest(layer) for layer in (None, *range(below))]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()

    def has_room(self, count: int) -> bool:
        """Whether a file of so many bytes may be written; warns the first time it may not."""
        if not self._full and self._limit is not None and self.size + count > self._most:
            self.stop(
                f"the trunk cache {self.folder} has reached its limit of {self._limit / 1e9:g} GB; further batches are"
                " computed each time"
            )
        return not self._full

    def stop(self, why: str) -> None:
        """Writes no more files, and says why."""
        self._full = True
        warnings.warn(why, WmdpFastWarning, stacklevel=2)

    def summary(self) -> str:
        """What it did, in a line."""
        return summary_of(self.use, self.folder, self.size)

    def _what_decides(self, kind: Kind, below: int) -> dict[str, Any]:
        model = self._decoder.model
        device = next(parameter.device for parameter in model.parameters() if not parameter.is_meta)
        config = model.config.get_text_config()
        depth = config.num_hidden_layers
        settings = {
            key: value[:below] if isinstance(value, list) and len(value) == depth else value
            for key, value in config.to_dict().items()
            if key not in _NOT_HASHED
        }
        cuda = device.type == "cuda"
        return {
            "format": _FORMAT,
            "kind": kind,
            "versions": {"wmdp_fast": __version__, **_versions()},
            "code": [f"{part.__module__}.{part.__qualname__}" for part in (type(model), type(self._decoder.layers[0]))],
            "config": settings,
            "attention": config._attn_implementation,
            "device": torch.cuda.get_device_name(device) if cuda else environment.hardware()["cpu"],
            "threads": None if cuda else torch.get_num_threads(),
            "instructions": None if cuda else torch.backends.cpu.get_cpu_capability(),
            "matrix products": torch.get_float32_matmul_precision(),
            "weights": self.weights(below),
        }

    def _digest(self, layer: int | None) -> str:
        """SHA-256 over a layer's weights, or over what belongs to no layer."""
        if layer not in self._digests:
            with self._weights_of(layer):
                self._digests[layer] = tensor_file.digest(
                    {
                        f"{name} {tensor.dtype} {list(tensor.shape)}": tensor_file.as_bytes(tensor)
                        for name, tensor in self._tensors_of(layer).items()
                    }
                )
        return self._digests[layer]

    def _tensors_of(self, layer: int | None) -> dict[str, Tensor]:
        if layer is not None:
            return _tensors(self._decoder.layers[layer])
        inside = {id(tensor) for tensor in _tensors(self._decoder.layers).values()}
        return {name: tensor for name, tensor in _tensors(self._decoder.model).items() if id(tensor) not in inside}


class Entries:
    """The files of one kind for one model; `TrunkCache.entries` makes them.

    Args:
        cache: The cache that they are in.
        kind: What they are.
        model: Hash of all that decides their content besides the batch.
    """

    def __init__(self, cache: TrunkCache, kind: Kind, model: str) -> None:
        self._cache, self._kind, self._model = cache, kind, model
        self.folder = cache.folder / f"{kind}-{model[:16]}"

    def get(self, inputs: Mapping[str, Tensor], *, again: bool = False) -> Tensor | None:
        """The activations [B, S, d] of a batch, on its device; None if they are not there.

        Args:
            inputs: What the model is called with, each int64 [B, S].
            again: Whether they were looked for a moment ago, and what is wrong has been said.
        """
        batch = _batch_hash(inputs)
        path = self._path(batch)
        try:
            found = self._read(path, batch)
        except FileNotFoundError:
            return None
        except (ModelError, OSError) as error:
            if not again:
                warnings.warn(
                    f"a file of the trunk cache cannot be used ({error}); its batch is computed again",
                    WmdpFastWarning,
                    stacklevel=2,
                )
            return None
        self._cache.use.read += 1
        return found.to(inputs["input_ids"].device)

    def has(self, inputs: Mapping[str, Tensor]) -> bool:
        """Whether there is a file for a batch; nothing is read."""
        return self._path(_batch_hash(inputs)).exists()

    def put(self, inputs: Mapping[str, Tensor], activations: Tensor) -> None:
        """Keeps the activations [B, S, d] of a batch. If there is no room for them, it warns and keeps no more."""
        size = activations.numel() * activations.element_size()
        if not self._cache.has_room(size):
            self._cache.use.not_written += 1
            return
        batch = _batch_hash(inputs)
        path = self._path(batch)
        fresh = path.with_name(f"{path.name}.{os.getpid()}{_UNFINISHED}")
        kept = activations.detach().cpu().contiguous()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replaced = path.stat().st_size if path.exists() else 0
            # Not forced to the disk: what a crash of the machine spoils, the checksum tells.
            tensor_file.write_tensors(fresh, {_TENSOR: kept}, self._names(batch), sync=False)
            written = fresh.stat().st_size
            fresh.replace(path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            self._cache.use.not_written += 1
            self._cache.stop(f"the trunk cache keeps no more: {path} cannot be written ({error})")
            return
        self._cache.use.written += 1
        self._cache.use.bytes_written += written
        self._cache.size += written - replaced

    @contextlib.contextmanager
    def claimed(self, inputs: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, no other process is in here for the same batch: who has waited will find it there.

        The kernel lets go of what a process that is killed has claimed. A folder whose file system knows no such locks
        is none to wait for: then a batch may be computed twice, and is the same.
        """
        if self._cache.is_full:
            yield
            return
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                self.folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((self.folder / _LOCK).open("ab"))
                fcntl.lockf(file, fcntl.LOCK_EX, 1, int(_batch_hash(inputs)[:15], 16))
            yield

    def _read(self, path: Path, batch: str) -> Tensor:
        tensors, metadata = tensor_file.read_tensors(path)
        names = self._names(batch)
        if set(tensors) != {_TENSOR} or {key: metadata.get(key) for key in names} != names:
            raise ModelError(f"{path} holds something else than its name says")
        return tensors[_TENSOR]

    def _path(self, batch: str) -> Path:
        return self.folder / f"{batch[:32]}{_EXTENSION}"

    def _names(self, batch: str) -> dict[str, str]:
        return {"kind": self._kind, "model": self._model, "batch": batch}


def _batch_hash(inputs: Mapping[str, Tensor]) -> str:
    return tensor_file.digest(
        {f"{name} {list(tensor.shape)}": tensor_file.as_bytes(tensor) for name, tensor in inputs.items()}
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, also those that no checkpoint has, such as rotary frequencies."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _versions() -> dict[str, str | None]:
    found = environment.versions()
    return {name: found[name] for name in ("torch", "transformers")}


def _remove_if_old(path: Path) -> None:
    try:
        if time.time() - path.stat().st_mtime > _OLD:
            path.unlink()
    except FileNotFoundError:
        pass  # another process has finished or removed it
