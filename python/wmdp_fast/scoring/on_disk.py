"""A model in files that is not loaded yet: where they are, and what tells it from others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints.model_name import parts_of

if TYPE_CHECKING:
    from wmdp_fast.models.locate import Files
    from wmdp_fast.scoring.backend import LoadOptions


class OnDisk:
    """A model that is loaded from files, which are looked for once.

    Args:
        where: Folder or name on the hub, as it was given.
        load: How it is loaded.
    """

    def __init__(self, where: str, load: LoadOptions) -> None:
        self.where = where
        self._load = load
        self._of_files: dict[str, Any] | None = None

    def locate(self) -> Files:
        """Finds it with its weights, and keeps what its files are now; raises as `locate_model`."""
        from wmdp_fast.models import locate

        files = locate.locate_model(parts_of(self.where)[0], revision=self._load.revision)
        self._of_files = self._facts(files)
        return files

    def identity(self) -> dict[str, Any]:
        """`ModelSource` says what it is."""
        from wmdp_fast.models import locate

        if self._of_files is None:
            base, _ = parts_of(self.where)
            self._of_files = self._facts(locate.locate_config(base, revision=self._load.revision))
        return {
            **self._of_files,
            "dtype": self._load.dtype,
            "device": _device_type(self._load.device),
            "allow missing": self._load.allow_missing,
        }

    def _facts(self, files: Files) -> dict[str, Any]:
        from wmdp_fast.models.identity import files_identity, tokenizer_identity

        peft, tokenizer = self._load.peft, self._load.tokenizer
        given = os.fspath(tokenizer) if isinstance(tokenizer, (str, os.PathLike)) else None
        folder = Path(given).expanduser() if given is not None else files.folder if files.commit is None else None
        return {
            "model files": files_identity(
                self.where,
                files.folder,
                files.commit,
                peft=None if peft is None else os.fspath(peft),
                delta=parts_of(self.where)[1],
            ),
            "tokenizer": given,
            # Of another one on the hub its name has to do; the model's own there is of the model's commit.
            "tokenizer files": tokenizer_identity(folder) if folder is not None and folder.is_dir() else None,
        }


def _device_type(device: str) -> str:
    if device != "auto":
        return str(device).partition(":")[0]  # `torch.device` is taken too, as torch takes it
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
