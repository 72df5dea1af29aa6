"""A model of a suite before it is loaded: what it is called, what tells it from others, how it is opened."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints.model_name import parts_of
from wmdp_fast.checkpoints.tensor_file import digest_of
from wmdp_fast.exceptions import ModelError
from wmdp_fast.models import locate
from wmdp_fast.runtime.clock import PhaseClock
from wmdp_fast.scoring.model_source import model_source

if TYPE_CHECKING:
    from os import PathLike

    from transformers import PreTrainedModel

    from wmdp_fast.scoring.backend import LoadOptions, ScoreOptions
    from wmdp_fast.scoring.local import LocalModel


@dataclass(frozen=True, kw_only=True)
class AttackedModel:
    """A model that will be attacked.

    Attributes:
        model: A folder, a name on the hub, or a model in memory; or `BASE+DELTA`, a folder or name and the file of
            changed tensors that `unlearn` wrote, or its folder.
        load: How it is loaded.
        score: How it is scored.
    """

    model: str | PathLike[str] | PreTrainedModel
    load: LoadOptions
    score: ScoreOptions

    @property
    def name(self) -> str:
        """Folder or name on the hub, as it was given; of a model in memory what it calls itself."""
        if isinstance(self.model, (str, os.PathLike)):
            return os.fspath(self.model)
        return getattr(self.model, "name_or_path", "") or type(self.model).__name__

    def on(self, device: str) -> AttackedModel:
        """The same on a device."""
        return replace(self, load=replace(self.load, device=device))

    def identity(self) -> list[Any]:
        """The commit on the hub; names, sizes and times of a folder's files; or a hash of the weights in memory.

        Raises:
            DataUnavailableError, ModelError: There is no such model.
        """
        from wmdp_fast.models.identity import folder_identity

        if not isinstance(self.model, (str, os.PathLike)):
            return [digest_of(dict(self.model.named_parameters()))]
        base, delta = parts_of(self.model)
        files = locate.locate_model(base, revision=self.load.revision)
        found: list[Any] = [files.commit or folder_identity(files.folder)]
        if delta is not None:
            found.append([delta.stat().st_size, delta.stat().st_mtime_ns])
        if self.load.peft is not None:
            adapter = locate.locate_adapter(os.fspath(self.load.peft))
            found.append(adapter.commit or folder_identity(adapter.folder))
        return found

    def open(self) -> LocalModel:
        """Loads it.

        Raises:
            DataUnavailableError, ModelError, TokenizerError, ValueError: As `load_model` and `wrap_model`.
        """
        from wmdp_fast.scoring.local import LocalModel

        opened = model_source(self.model, self.load, self.score).open(lambda _: None, PhaseClock())
        if not isinstance(opened, LocalModel):
            raise ModelError(f"{self.name} is served: attacks need a model that is run here")
        return opened
