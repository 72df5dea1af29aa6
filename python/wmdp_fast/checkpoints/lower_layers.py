"""How many of their lowest layers two models seem to have in common, by a look at their files.

A look: of tensors that lie in different files a few pages are compared. What is concluded has to be proven with the
weights once they are loaded (`models/lower_layers.py`); it only says what may be worth keeping for the next model.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wmdp_fast.checkpoints import tensor_file
from wmdp_fast.checkpoints.model_name import parts_of
from wmdp_fast.checkpoints.read_ahead import files_here
from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from os import PathLike
    from pathlib import Path

    from wmdp_fast.checkpoints.tensor_file import Place

_LAYER = re.compile(r"\.(\d+)\.")
# Of what belongs to no layer.
_NO_LAYER = -1

# Pieces of a tensor that are compared, and their bytes. Training changes nearly all numbers of a tensor, if any.
_PIECES = 3
_PIECE = 4096


@dataclass(frozen=True)
class StoredWeights:
    """The tensors that a model is made of.

    Attributes:
        places: The file of each, and where it is in that, by the checkpoint's name for it.
        adapted: The lowest layer that an adapter changes, -1 if it changes what belongs to no layer; None without one.
    """

    places: dict[str, tuple[Path, Place]]
    adapted: int | None = None

    @property
    def num_layers(self) -> int:
        """How many layers there are, by the tensors' names."""
        return 1 + max(map(_layer_of, self.places), default=_NO_LAYER)


def stored_weights(
    model: str | PathLike[str], *, revision: str | None = None, peft: str | PathLike[str] | None = None
) -> StoredWeights | None:
    """Where the tensors of a model lie; None unless all of its files are on this machine and sound.

    What is wrong with them is left to the code that loads them.

    Args:
        model: A folder, a name on the hub, or `BASE+DELTA`.
        revision: Branch, tag or commit on the hub.
        peft: An adapter to put on it, likewise.
    """
    try:
        base, delta = parts_of(model)
        files = [*_weights(base, revision), *([] if delta is None else [delta])]
        places = {name: (file, place) for file in files for name, place in tensor_file.read_header(file).places.items()}
        if not places:
            return None
        if peft is None:
            return StoredWeights(places)
        names = [name for file in _weights(peft, None) for name in tensor_file.read_header(file).places]
        return StoredWeights(places, min(map(_layer_of, names), default=_NO_LAYER))
    except (ModelError, OSError):
        return None


def layers_in_common(one: StoredWeights, other: StoredWeights) -> int:
    """How many lowest layers two models seem to share, with all that belongs to no layer: at most all but one."""
    lowest = min(one.num_layers, other.num_layers) - 1
    lowest = min([lowest, *(adapted for adapted in (one.adapted, other.adapted) if adapted is not None)])
    lowest = min([lowest, *map(_layer_of, one.places.keys() ^ other.places.keys())])
    try:
        for name in sorted(one.places.keys() & other.places.keys(), key=_layer_of):
            if _layer_of(name) >= lowest:
                break
            if not _look_the_same(*one.places[name], *other.places[name]):
                lowest = _layer_of(name)
    except OSError:
        return 0
    return max(0, lowest)


def _weights(model: str | PathLike[str], revision: str | None) -> list[Path]:
    return [file for file in files_here(model, revision) if file.suffix == ".safetensors"]


def _layer_of(name: str) -> int:
    found = _LAYER.search(name)
    return _NO_LAYER if found is None else int(found[1])


def _look_the_same(file: Path, place: Place, other: Path, there: Place) -> bool:
    if (place.dtype, place.shape) != (there.dtype, there.shape):
        return False
    # A shard that nothing has changed in may be a link.
    if place.start == there.start and (file == other or file.samefile(other)):
        return True
    step = max(_PIECE, math.ceil(place.length / _PIECES))
    for at in (*range(0, place.length, step), max(0, place.length - _PIECE)):
        size = min(_PIECE, place.length - at)
        if _piece(file, place.start + at, size) != _piece(other, there.start + at, size):
            return False
    return True


def _piece(file: Path, start: int, size: int) -> bytes:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, start)
    finally:
        os.close(descriptor)
