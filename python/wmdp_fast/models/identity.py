"""What tells models that are loaded from files apart, without reading their weights."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from wmdp_fast.checkpoints.weight_files import weight_files
from wmdp_fast.models import locate

if TYPE_CHECKING:
    from pathlib import Path

# What transformers makes a tokenizer and its chat templates of, beside what `folder_identity` looks at.
_OF_TOKENIZERS = ("*.json", "*.jinja", "*/*.jinja", "*.model", "*.txt", "*.py")


def files_identity(name: str, folder: Path, commit: str | None, *, peft: str | None, delta: Path | None) -> str:
    """What tells a model from any other: the commit on the hub, or of a folder what `folder_identity` says.

    Args:
        name: What the model is called, the delta included.
        folder: Holds its files.
        commit: The hub's commit, or None for a folder of the user's.
        peft: Folder or name on the hub of the adapter that is put on it.
        delta: File of the changed tensors that are put on it.

    Raises:
        DataUnavailableError, ModelError: There is no such adapter; the message says what to do.
        OSError: A file cannot be read.
    """
    identity = f"{name}@{commit}" if commit else folder_identity(folder)
    if peft is not None:
        files = locate.locate_adapter(peft)
        identity += f" + {files.commit or folder_identity(files.folder)}"
    if delta is not None:
        found = delta.stat()
        identity += f" + {found.st_size} {found.st_mtime_ns}"
    return identity


def folder_identity(folder: Path) -> str:
    """A hash over names, sizes and times of a folder's weights, configuration and code."""
    weights = weight_files(folder)
    shards = [folder / shard for shard in weights.shards] if weights else folder.glob("*.safetensors")
    return _stamp([*shards, *folder.glob("*.json"), *folder.glob("*.py")])


def tokenizer_identity(folder: Path) -> str:
    """A hash over names, sizes and times of the files that a folder's tokenizer and chat templates are made of."""
    return _stamp([file for pattern in _OF_TOKENIZERS for file in folder.glob(pattern)])


def _stamp(files: list[Path]) -> str:
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(set(files))]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
