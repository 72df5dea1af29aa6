"""A model of a suite before it is loaded: what it is called, what tells it from others, how it is opened."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wmdp_fast.checkpoints.checkpoint import delta_file
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

    def identity(self) -> list[Any]:
        """The commit on the hub; names, sizes and times of a folder's files; or a hash of the weights in memory.

        Raises:
            DataUnavailableError, ModelError: There is no such model.
        """
        from wmdp_fast.models.load import folder_identity

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

        base, delta = parts_of(self.model) if isinstance(self.model, (str, os.PathLike)) else (self.model, None)
        opened = model_source(base, self.load, self.score).open(lambda _: None, PhaseClock())
        if not isinstance(opened, LocalModel):
            raise ModelError(f"{self.name} is served: attacks need a model that is run here")
        return opened if delta is None else self._with_delta(opened, delta)

    def _with_delta(self, opened: LocalModel, delta: Path) -> LocalModel:
        """A model with the tensors of a delta in place of its own."""
        from wmdp_fast.checkpoints.checkpoint import Checkpoint, read_delta
        from wmdp_fast.checkpoints.delta import put_on

        loaded = opened.loaded
        if loaded.path is None or self.load.peft is not None:
            raise ModelError(f"{self.name}: a delta is for the checkpoint that it was made from, without an adapter")
        checkpoint, model = Checkpoint.open(loaded.path), cast("PreTrainedModel", loaded.model)
        put_on(model, checkpoint, read_delta(delta, checkpoint))
        return replace(opened, loaded=replace(loaded, name=self.name, dtype=model.dtype))


def parts_of(model: str | PathLike[str]) -> tuple[str, Path | None]:
    """The base and the file of the delta in `BASE+DELTA`; of any other name the name, and None.

    Raises:
        ModelError: There is no such delta.
    """
    text = os.fspath(model)
    base, plus, delta = text.rpartition("+")
    if not plus or Path(text).exists():
        return text, None
    try:
        return base, delta_file(delta)
    except FileNotFoundError as error:
        raise ModelError(str(error)) from None
