"""Whether a model fits into memory, before any of it is read; where it does not, how much there is to stream it in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast import _rust
from wmdp_fast.checkpoints.weight_files import CONFIG, WeightFiles, read_json, weight_files
from wmdp_fast.models.load import DTYPES, parse_device, parse_dtype
from wmdp_fast.runtime.memory import amount_of_memory, resident_bytes

if TYPE_CHECKING:
    from wmdp_fast.models.locate import Files

# What of the free memory weights may take, the rest being for what is computed with them.
_SHARE = 0.9

# What a process takes that has imported torch and transformers.
_LIBRARIES = 800e6


def memory_to_stream_in(
    files: Files,
    *,
    memory: str | int,
    stream: bool,
    dtype: str,
    device: str,
    needs: int | None = None,
    sharers: int = 1,
) -> int | None:
    """Bytes that a process may take which streams a model; None if the model is to be loaded as a whole.

    Args:
        files: The model's files.
        memory: An amount, as `amount_of_memory` reads it, within which a model that does not fit is streamed; or
            `auto`: what is free.
        stream: Whether to stream whether or not it fits.
        dtype: The type to compute in, or `auto`.
        device: Where to.
        needs: Bytes that it would take otherwise; None for those of all weights.
        sharers: How many processes do so on this machine at once: on a CPU each may take an even share.

    Raises:
        ModelError: The device is not there, or the files are damaged.
        ValueError: `memory`, `dtype` or `device` is none of those.
    """
    where = parse_device(device)
    has, free = _memory(where)
    sharers = sharers if where.type == "cpu" else 1
    limit = None if memory == "auto" else amount_of_memory(memory) // sharers
    if limit is None and free is not None:
        limit = has + int(_SHARE * free) // sharers
    if limit is None:
        # Nobody knows how much is free, so only who asks for it gets it: with as much as the model would take.
        return has + (needs or bytes_of_weights(files, dtype) or 0) if stream else None
    if stream:
        return limit
    needs = needs or bytes_of_weights(files, dtype)
    before = has if where.type == "cuda" else max(has, _LIBRARIES)
    return limit if needs is not None and before + needs > limit else None


def download(files: Files, name: str) -> None:
    """Brings the weights of a model on the hub to this machine."""
    from huggingface_hub import hf_hub_download

    weights = weight_files(files.folder)
    if files.commit is not None and weights is not None:
        for shard in weights.shards:
            hf_hub_download(name, shard, revision=files.commit)


def _memory(device: torch.device) -> tuple[int, int | None]:
    """Bytes that this process has, and those that it can take besides."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device)), int(torch.cuda.mem_get_info(device)[0])
    return resident_bytes(), _rust.available_memory()


def bytes_of_weights(files: Files, dtype: str) -> int | None:
    """Memory for a model's weights, or None if its files are not here yet."""
    weights = weight_files(files.folder)
    stored = None if weights is None else _stored_bytes(weights)
    asked = parse_dtype(dtype)
    config = read_json(files.folder / CONFIG)
    parts: list[Any] = [config, config.get("text_config")]
    names = [part.get("dtype") or part.get("torch_dtype") for part in parts if isinstance(part, dict)]
    own = next((DTYPES[name] for name in names if name in DTYPES), None)
    if stored is None or asked is None or own is None:
        return stored
    return stored * asked.itemsize // own.itemsize


def _stored_bytes(weights: WeightFiles) -> int | None:
    if weights.index is not None:
        metadata: Any = read_json(weights.folder / weights.index).get("metadata")
        size = metadata.get("total_size") if isinstance(metadata, dict) else None
        if isinstance(size, int) and size > 0:
            return size
    shards = [Path(weights.folder / shard) for shard in weights.shards]
    return sum(shard.stat().st_size for shard in shards) if all(shard.is_file() for shard in shards) else None
