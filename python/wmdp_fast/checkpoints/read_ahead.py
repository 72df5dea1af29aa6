"""A checkpoint read into the page cache while Python still imports torch and transformers, which takes seconds."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast._rust import ReadAhead
from wmdp_fast.checkpoints.model_name import parts_of
from wmdp_fast.checkpoints.weight_files import ADAPTER_CONFIG, CONFIG, weight_files
from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from os import PathLike

_TOKENIZER = "tokenizer.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


@contextlib.contextmanager
def reading_ahead(
    model: str | PathLike[str],
    *,
    revision: str | None = None,
    peft: str | PathLike[str] | None = None,
    last_layer: int | None = None,
) -> Iterator[None]:
    """Inside, threads read the files of a model, as `read_ahead` says; at the end they stop."""
    ahead = read_ahead(model, revision=revision, peft=peft, last_layer=last_layer)
    try:
        yield
    finally:
        if ahead is not None:
            ahead.stop()


def read_ahead(
    model: str | PathLike[str],
    *,
    revision: str | None = None,
    peft: str | PathLike[str] | None = None,
    last_layer: int | None = None,
) -> ReadAhead | None:
    """Begins to read the files of a model that is on this machine: its tokenizer, its weights and those of its adapter.

    It asks no hub, and whatever is wrong with the files is left to the code that loads them.

    Args:
        model: A folder, or a name on the hub, of which only what is in the cache is read; perhaps with a delta.
        revision: Branch, tag or commit on the hub. None means `main`.
        peft: An adapter, likewise.
        last_layer: The highest layer whose weights will be needed; None for all.

    Returns:
        What reads; it stops when this object is dropped. None if there is nothing to read.
    """
    try:
        base, delta = parts_of(model)
    except ModelError:
        return None
    of_adapter = [] if peft is None else files_here(peft, None)
    files = [*files_here(base, revision), *of_adapter, *([] if delta is None else [delta])]
    return ReadAhead(files, last_layer=last_layer) if files else None


def files_here(model: str | PathLike[str], revision: str | None) -> list[Path]:
    """Those files of a model's tokenizer and weights, or of an adapter, that are on this machine; no hub is asked."""
    folder = folder_here(model, revision)
    if folder is None:
        return []
    try:
        weights = weight_files(folder) if (folder / CONFIG).is_file() else None
    except (ModelError, OSError):
        return []
    names = (_TOKENIZER, _ADAPTER_WEIGHTS) if weights is None else (_TOKENIZER, *weights.shards)
    return [folder / name for name in names if (folder / name).is_file()]


def folder_here(model: str | PathLike[str], revision: str | None) -> Path | None:
    """The folder on this machine that holds a model or an adapter, if there is one; no hub is asked."""
    folder = Path(model).expanduser()
    return folder if folder.is_dir() else _in_cache(os.fspath(model), revision)


def _in_cache(name: str, revision: str | None) -> Path | None:
    """The folder in the hub's cache that holds a model or an adapter."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(name, file, revision=revision) for file in (CONFIG, ADAPTER_CONFIG)]
    except HFValidationError:
        return None
    return next((Path(file).parent for file in found if isinstance(file, str)), None)
