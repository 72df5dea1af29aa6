"""The name `BASE+DELTA`: a checkpoint with the tensors that an unlearning run has changed, made when it is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast.checkpoints.weight_files import DELTA
from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from os import PathLike


def parts_of(model: str | PathLike[str]) -> tuple[str, Path | None]:
    """The base and the file of the delta in `BASE+DELTA`; of any other name the name, and None.

    Args:
        model: A folder or a name on the hub, perhaps with a plus and a delta behind it: the file `delta.safetensors`
            of an unlearning run, or the folder with it. What exists under the whole name is a folder.

    Raises:
        ModelError: There is no such delta.
    """
    text = os.fspath(model)
    base, plus, delta = text.rpartition("+")
    if not plus or Path(text).expanduser().exists():
        return text, None
    try:
        return base, delta_file(Path(delta).expanduser())
    except FileNotFoundError as error:
        raise ModelError(str(error)) from None


def delta_file(delta: str | PathLike[str]) -> Path:
    """The file of a delta, which may be named by its folder.

    Raises:
        FileNotFoundError: It is not there.
    """
    source = Path(delta)
    source = source / DELTA if source.is_dir() else source
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist; `wmdp-fast unlearn` writes {DELTA} into its output folder")
    return source
