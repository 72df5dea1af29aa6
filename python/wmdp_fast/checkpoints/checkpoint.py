"""From a base checkpoint and a few changed tensors to a new checkpoint, and to a file of the changes alone."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.checkpoints import tensor_file
from wmdp_fast.checkpoints.model_name import delta_file
from wmdp_fast.checkpoints.shard_copies import copy_file
from wmdp_fast.checkpoints.weight_files import DELTA as DELTA
from wmdp_fast.checkpoints.weight_files import INDEX, WEIGHTS, weight_files
from wmdp_fast.exceptions import ModelError
from wmdp_fast.runtime.files import check_folder, explain_full_disk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

    from wmdp_fast.checkpoints.shard_copies import ShardCopies

RECORD = "unlearn.json"
CARD = "README.md"

ATTACKS_BEGIN, ATTACKS_END = "<!-- wmdp-fast attacks -->", "<!-- /wmdp-fast attacks -->"
"""What stands between these in a card is of attacks on the model, and theirs to write."""

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations"

# Weights in other formats: of the model as it was before, so no part of the new checkpoint.
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".msgpack", ".h5", ".index.json")
# Ours or about the base; the new checkpoint has its own.
_NOT_CARRIED = (CARD, RECORD, METRICS, DELTA)


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model on disk.

    Attributes:
        folder: Where they are.
        shards: The file of each tensor, by the tensor's name.
        index: Name of the index that lists the files, or None if there is one file.
    """

    folder: Path
    shards: dict[str, str]
    index: str | None

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Finds the tensors of a checkpoint, in the files that transformers would read. Only their headers are read.

        Raises:
            ModelError: There are no safetensors weights, or a file is missing or damaged.
            OSError: A file cannot be read.
        """
        if not folder.is_dir():
            raise ModelError(f"{folder} is no folder; pass that of a safetensors checkpoint")
        files = weight_files(folder)
        if files is None:
            raise ModelError(f"{folder} has neither {WEIGHTS} nor {INDEX}; pass the folder of a safetensors checkpoint")
        files.refuse_missing()
        # Not by the index, which transformers asks for the names of the files only: it may be older than they are.
        shards = {name: shard for shard in files.shards for name in tensor_file.read_header(folder / shard).places}
        return cls(folder, shards, files.index)

    def stored_name(self, name: str) -> str:
        """What the checkpoint calls a tensor that a model without its head calls `name`.

        Raises:
            ModelError: Nothing fits, or more than one tensor does.
        """
        if name in self.shards:
            return name
        found = [stored for stored in self.shards if stored.endswith(f".{name}")]
        if len(found) != 1:
            raise ModelError(f"{self.folder} has {len(found) or 'no'} tensors that could be {name}; expected one")
        return found[0]

    def places(self, names: Mapping[str, Any]) -> dict[str, tensor_file.Place]:
        """Where the named tensors are in their shards.

        Raises:
            ModelError: One of them is not there.
        """
        if unknown := [name for name in names if name not in self.shards]:
            raise ModelError(f"{self.folder} has no tensor {unknown[0]}; is it the checkpoint that was unlearned?")
        headers = {shard: tensor_file.read_header(self.folder / shard) for shard in {self.shards[n] for n in names}}
        return {name: headers[self.shards[name]].places[name] for name in names}

    def digest(self, names: Mapping[str, Any]) -> str:
        """SHA-256 over the named tensors as they are on disk."""
        places = self.places(names)
        return tensor_file.digest(
            {name: tensor_file.read_bytes(self.folder / self.shards[name], places[name]) for name in names}
        )


def stored_tensors(
    model: PreTrainedModel, tensors: Mapping[str, Tensor], base: Checkpoint, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Renames and, where a mixture of experts is fused in memory, splits tensors into those of the checkpoint.

    Args:
        model: The model that has them, which knows how its checkpoint was converted.
        tensors: By their names in the model.
        base: The checkpoint that it was read from.
        dtype: The type to give them; None is that which the checkpoint has each of them in.

    Returns:
        In the checkpoint's names and shapes, on the CPU.

    Raises:
        ModelError: The checkpoint has no such tensors.
    """
    named = by_stored_name(model, tensors, base)
    places = base.places(named)
    return {name: tensor_file.as_stored(name, tensor, places[name], dtype) for name, tensor in named.items()}


def stored_dtypes(model: PreTrainedModel, tensors: Mapping[str, Tensor], base: Checkpoint) -> dict[str, torch.dtype]:
    """The type that a checkpoint has each tensor of a model in, by the tensor's name in the model.

    Raises:
        ModelError: The checkpoint has no such tensor, has it in a type that is not for weights, or in several.
    """
    found = {}
    for name, tensor in tensors.items():
        named = by_stored_name(model, {name: torch.empty_like(tensor, device="meta")}, base)
        kinds = {tensor_file.dtype_of(one, place) for one, place in base.places(named).items()}
        if len(kinds) > 1:
            raise ModelError(f"{base.folder} has the parts of {name} in {len(kinds)} types; save it in one")
        found[name] = kinds.pop()
    return found


def by_stored_name(model: PreTrainedModel, tensors: Mapping[str, Tensor], base: Checkpoint) -> dict[str, Tensor]:
    """As `stored_tensors`, in the type and on the device of each tensor."""
    from transformers.core_model_loading import revert_weight_conversion

    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    reverted = {name: tensor for name, tensor in plain.items() if _is_stored(name, tensor, base)}
    if len(reverted) < len(plain):
        reverted = revert_weight_conversion(model, plain)
    return {base.stored_name(name): tensor for name, tensor in reverted.items()}


def write_checkpoint(
    base: Checkpoint, changed: Mapping[str, Tensor], folder: Path, copies: ShardCopies | None = None
) -> None:
    """Writes a whole checkpoint into an empty folder: the base with some tensors exchanged.

    Shards without a changed tensor become hard links where the file system has them, else copies; they are not opened.

    Args:
        base: The checkpoint that was changed.
        changed: Tensors as `stored_tensors` gives them. If one has another type than in the checkpoint, its shard is
            written anew, and `config.json` names a type that holds all of them.
        folder: Where to write.
        copies: Copies of shards, which may be there already.

    Raises:
        OSError: The disk is full, or cannot be written to.
    """
    by_shard: dict[str, dict[str, Tensor]] = {}
    for name, tensor in changed.items():
        by_shard.setdefault(base.shards[name], {})[name] = tensor
    for shard in sorted(set(base.shards.values())):
        source, target = (base.folder / shard).resolve(), folder / shard
        if shard not in by_shard:
            _link_or_copy(source, target)
        elif _has_types_of(source, by_shard[shard]):
            if copies is None or not copies.take(shard, target):
                copy_file(source, target)
            tensor_file.patch(target, by_shard[shard])
        else:
            tensor_file.exchange(source, target, by_shard[shard])
    for file in sorted(base.folder.iterdir()):
        weights = file.name.endswith(_OTHER_WEIGHTS) and file.name != base.index
        if file.is_file() and not weights and file.name not in _NOT_CARRIED:
            shutil.copyfile(file, folder / file.name)
    if added := added_types(base, changed):
        _say_wider_type(folder, base.index, added)


def added_types(base: Checkpoint, changed: Mapping[str, Tensor]) -> set[torch.dtype]:
    """The types of changed tensors if one of them is none that the checkpoint has these in; else nothing."""
    wanted = {tensor.dtype for tensor in changed.values()}
    stored = {tensor_file.dtype_of(name, place) for name, place in base.places(changed).items()}
    return wanted if wanted - stored else set()


def _has_types_of(shard: Path, tensors: Mapping[str, Tensor]) -> bool:
    places = tensor_file.read_header(shard).places
    return all(tensor_file.dtype_of(name, places[name]) == tensor.dtype for name, tensor in tensors.items())


def _say_wider_type(folder: Path, index: str | None, added: set[torch.dtype]) -> None:
    """Lets the configuration name a type that holds the new tensors, so that loading does not round them away."""
    path = folder / "config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        before = config.get("dtype", config.get("torch_dtype"))
        known = getattr(torch, str(before), None)
        dtype = functools.reduce(
            torch.promote_types, added, known if isinstance(known, torch.dtype) else min(added, key=str)
        )
        name = str(dtype).removeprefix("torch.")
        _replace_dtype(config, before, name)
        config.setdefault("torch_dtype" if "torch_dtype" in config else "dtype", name)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if index is not None:
        listed = json.loads((folder / index).read_text(encoding="utf-8"))
        shards = set(listed["weight_map"].values())
        places = [place for shard in shards for place in tensor_file.read_header(folder / shard).places.values()]
        listed["metadata"] = {**(listed.get("metadata") or {}), "total_size": sum(place.length for place in places)}
        (folder / index).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


def _replace_dtype(config: dict[str, Any], before: object, name: str) -> None:
    """Also in the configurations of a model's parts."""
    for key, value in config.items():
        if key in ("dtype", "torch_dtype") and value == before:
            config[key] = name
        elif isinstance(value, dict):
            _replace_dtype(value, before, name)


def apply_delta(base: str | os.PathLike[str], delta: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """Makes the unlearned checkpoint from its base and the file of changed tensors.

    Args:
        base: Folder of the checkpoint that was unlearned.
        delta: `delta.safetensors`, or the folder with it; what else was recorded beside it is copied too.
        output: Folder to make. It appears when it is complete.

    Returns:
        The folder.

    Raises:
        FileExistsError: There is something at `output`.
        FileNotFoundError: There is no delta.
        ModelError: A file is damaged, or the delta was made from another base.
        OSError: The disk is full.
    """
    source, checkpoint = delta_file(delta), Checkpoint.open(Path(base))
    changed = read_delta(source, checkpoint)
    with new_folder(Path(output)) as folder:
        write_checkpoint(checkpoint, changed, folder)
        shutil.copyfile(source, folder / DELTA)
        for name in (RECORD, CARD, METRICS):
            if (source.parent / name).is_file():
                shutil.copyfile(source.parent / name, folder / name)
        if (source.parent / EVALUATIONS).is_dir():
            shutil.copytree(source.parent / EVALUATIONS, folder / EVALUATIONS)
    return Path(output)


def read_delta(source: Path, base: Checkpoint) -> dict[str, Tensor]:
    """The tensors of a delta, in the types that it has them in: those that the run saved.

    Raises:
        ModelError: The file is damaged, or the delta was made from another base.
        OSError: It cannot be read.
    """
    expected = tensor_file.read_header(source).metadata.get("base_tensors_sha256")
    if expected is None:
        raise ModelError(f"{source} does not say what base it belongs to, so it is not a delta that wmdp-fast wrote")
    changed, _ = tensor_file.read_tensors(source, may_lack_checksum=True)
    if base.digest(changed) != expected:
        raise ModelError(f"{source} was made from another base than {base.folder}: the tensors that it replaces differ")
    places = base.places(changed)
    return {name: tensor_file.as_stored(name, one, places[name], one.dtype) for name, one in changed.items()}


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` if all goes well, and vanishes if not.

    Raises:
        FileExistsError: There is something at `target`.
        OSError: The disk is full; says so, and that nothing has changed.
    """
    refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)  # mkdtemp's is for its owner alone
        scratch.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise explain_full_disk(error, target) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def refuse_existing(target: Path) -> None:
    """Raises OSError if there is something at `target`, or cannot be; an empty folder is nothing."""
    check_folder(target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} exists already; choose another output folder, or remove it")


def sync_folder(folder: Path) -> None:
    """Makes sure that the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_stored(name: str, tensor: Tensor, base: Checkpoint) -> bool:
    try:
        stored = base.stored_name(name)
    except ModelError:
        return False
    return base.places({stored: None})[stored].shape == tuple(tensor.shape)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or one without hard links.
        copy_file(source, target)
