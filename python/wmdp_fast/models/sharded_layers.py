"""A whole model whose decoder layers several processes hold together: each a part of every weight (torch's FSDP2).

A layer's weights are gathered as it runs and let go of afterwards, forwards and backwards, so that all processes must
run the layers alike often. What is not a layer (embedding, last norm, head) each process has as a whole: logits are
made some rows at a time, which may be more often in one process than in another.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed

from wmdp_fast.checkpoints.weight_files import weight_files
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models import locate
from wmdp_fast.models.adapter_on_parts import refuse_adapter, with_adapter_on
from wmdp_fast.models.attention.requirements import take_eager_where_needed
from wmdp_fast.models.fits import download
from wmdp_fast.models.load import parse_device, parse_dtype, wrap_model
from wmdp_fast.models.read_together import ReadTogether
from wmdp_fast.models.reading import failures_as
from wmdp_fast.models.skeleton import build_skeleton

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.models.skeleton import Skeleton
    from wmdp_fast.models.tokenizer_only import TokenizerOnly

# Type checkers do not see all of its names.
distributed: Any = torch.distributed


@dataclass(frozen=True)
class ShardedModel:
    """This process's part of a model.

    Attributes:
        skeleton: The model, all of whose parts are filled.
        folder: Where its files are.
        commit: The hub's commit, or None for a folder of the user's.
        notes: What is to be known of how it was loaded.
    """

    skeleton: Skeleton
    folder: Path
    commit: str | None
    notes: tuple[str, ...]

    @property
    def model(self) -> PreTrainedModel:
        """The model. Nothing of it needs a gradient."""
        return self.skeleton.model


def load_sharded(
    name_or_path: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    rows: int | None = None,
) -> ShardedModel:
    """Reads a checkpoint with the other processes of torch's process group, all of which must call it.

    Of each layer every process reads a share of the tensors and gives it to the others, so that the checkpoint is read
    once. At most one layer is there as a whole.

    Args:
        name_or_path: A folder, or a name on the hub.
        revision: Branch, tag or commit on the hub.
        dtype: `auto` is the checkpoint's.
        device: This process's: `cpu` or `cuda:N`.
        trust_remote_code: Whether code that comes with the model may be read; a model that needs it is refused.
        rows: As `build_skeleton`.

    Warns:
        WmdpFastWarning: Tensors are not used, or the default attention leaves out what the configuration asks for.

    Raises:
        DataUnavailableError: The model is missing or out of reach.
        ModelError: It cannot be loaded or read layer by layer, or another process has ended.
    """
    torch_dtype, torch_device = parse_dtype(dtype), parse_device(device)
    files = locate.locate_model(name_or_path, revision=revision)
    download(files, name_or_path)
    weights = weight_files(files.folder)
    if weights is None:
        raise ModelError(f"{files.folder} has no safetensors weights")
    source: dict[str, Any] = {"revision": files.commit or revision, "trust_remote_code": trust_remote_code}
    skeleton = build_skeleton(files.address(name_or_path), source, weights, torch_dtype, torch_device, rows=rows)
    skeleton.model.requires_grad_(requires_grad=False)
    with failures_as(ModelError, f"the layers of {name_or_path} cannot be shared out"):
        _fill(skeleton)
    notes = (*skeleton.notes, *take_eager_where_needed(skeleton.model))
    for note in notes:
        warnings.warn(f"{name_or_path}: {note}", WmdpFastWarning, stacklevel=2)
    return ShardedModel(skeleton, files.folder, files.commit, notes)


def load_sharded_with_adapter(
    name_or_path: str,
    adapter: str,
    *,
    opened: TokenizerOnly,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
) -> LoadedModel:
    """The same with a LoRA adapter on it, whose factors each process has as a whole, ready for scoring.

    Args:
        name_or_path: As `load_sharded`.
        adapter: Folder, or name on the hub.
        opened: What `load_tokenizer_only` has read of the same model.
        revision: As `load_sharded`.
        dtype: As `load_sharded`.
        device: As `load_sharded`.

    Warns:
        WmdpFastWarning: As `load_sharded` and `with_adapter`.

    Raises:
        DataUnavailableError: As `load_sharded`, or of the adapter.
        ModelError: As `load_sharded`; or the adapter is refused, or cannot be put on.
    """
    begin = time.perf_counter()
    refuse_adapter(adapter, shared=True)
    part = load_sharded(
        name_or_path,
        revision=revision,
        dtype=dtype,
        device=device,
        trust_remote_code=opened.source["trust_remote_code"],
        rows=len(opened.tokenizer),
    )
    model, notes = with_adapter_on(part.skeleton, adapter, opened.tokenizer)
    for note in notes:
        warnings.warn(f"{name_or_path}: {note}", WmdpFastWarning, stacklevel=2)
    return replace(
        wrap_model(model, opened.tokenizer, name=name_or_path),
        path=part.folder,
        revision=revision,
        sha=part.commit,
        peft=adapter,
        seconds=time.perf_counter() - begin,
        warnings=(*part.notes, *notes),
        parallel="fsdp",
    )


def _fill(skeleton: Skeleton) -> None:
    """Reads all parts of a model, and keeps of each layer what is this process's."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    rank, size = distributed.get_rank(), distributed.get_world_size()
    together = ReadTogether(rank, size, skeleton.device)
    mesh = init_device_mesh(skeleton.device.type, (size,))
    for layer, part in zip(skeleton.decoder.layers, skeleton.layers, strict=True):
        skeleton.fill(part, together.read(part.sources)[0])
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    for part in (skeleton.embedding, skeleton.head):
        if skeleton.filled(part) is None:  # a tied head has been filled with the embedding
            skeleton.fill(part, together.read(part.sources)[0])
    base = skeleton.decoder.model
    shared_out = {parameter for layer in skeleton.decoder.layers for parameter in layer.parameters()}
    # Its hooks begin and end a pass over the layers; it has no weights of its own to gather.
    fully_shard(base, mesh=mesh, ignored_params=set(base.parameters()) - shared_out)
