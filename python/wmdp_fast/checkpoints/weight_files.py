"""Which files of a folder hold a model's weights: transformers' own rule, said once, for all that reads or writes them.

A folder may hold more than one set of weights: a whole `model.safetensors` beside the index and shards of an older
upload, for instance. Which of them is the model is decided here, in the order of transformers'
`_get_resolved_checkpoint_files` (5.24): the file that `config.json` names as `transformers_weights`, else
`model.safetensors`, else `model.safetensors.index.json` with its shards. What transformers would read without being
asked, or where its versions disagree, is refused.

Names in an index come from whoever made the folder. They are those of files that are read and, in a copy, written; so
only bare names that end in `.safetensors` are taken.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Written by this package beside a model's weights, so never one of their files.
DELTA = "delta.safetensors"

_SUFFIX = ".safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"

# Newer versions of transformers read these before anything else (`is_sharded_checkpoint`), older ones not at all.
_DISTRIBUTED = re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors")


@dataclass(frozen=True)
class WeightFiles:
    """The files with a model's weights.

    Attributes:
        folder: Where they are.
        shards: Their names, sorted. Of a tensor that is in two of them, transformers takes the later one's.
        index: Name of the index that lists them, or None if there is one file, found by its name.
    """

    folder: Path
    shards: tuple[str, ...]
    index: str | None

    def refuse_missing(self) -> None:
        """Raises ModelError if one of the files is not there."""
        if missing := [shard for shard in self.shards if not (self.folder / shard).is_file()]:
            raise ModelError(f"{self.folder} lacks {', '.join(missing)}; copy or download the rest of the checkpoint")


def weight_files(folder: Path) -> WeightFiles | None:
    """The files that hold the weights of the model in a folder, or None if there are no safetensors weights.

    Reads no more than `config.json` and the index; the shards that it lists need not be there yet.

    Raises:
        ModelError: It holds a model together with an adapter or a distributed checkpoint, or an index or `config.json`
            that is damaged or names files it must not name.
        OSError: A file cannot be read.
    """
    if distributed := sorted(path.name for path in folder.iterdir() if _DISTRIBUTED.fullmatch(path.name)):
        raise ModelError(
            f"{folder} holds a distributed checkpoint ({distributed[0]}), which not all versions of transformers read:"
            " load it with transformers and save it with `save_pretrained`"
        )
    refuse_adapter_beside_model(folder)
    for name in candidates(folder):
        if not (folder / name).is_file():
            continue
        return WeightFiles(folder, shards_of(folder / name), name) if name.endswith(".json") else _single(folder, name)
    return None


def candidates(folder: Path) -> tuple[str, ...]:
    """Names of the file with the weights or of their index, the first that exists is taken.

    Raises:
        ModelError: `config.json` names a file that it must not name.
    """
    explicit = read_json(folder / CONFIG).get("transformers_weights") if (folder / CONFIG).is_file() else None
    if explicit is None:
        return (WEIGHTS, INDEX)
    if not isinstance(explicit, str) or not is_weight_name(explicit.removesuffix(".index.json")):
        raise ModelError(
            f"{folder / CONFIG}: `transformers_weights` must be the bare name of a {_SUFFIX} file or of its index, not"
            f" {shown(explicit)}"
        )
    return (explicit,)


def shards_of(index: Path) -> tuple[str, ...]:
    """The names of the files that an index lists, sorted.

    Raises:
        ModelError: It is damaged, or names something else than files beside it that end in `.safetensors`.
        OSError: It cannot be read.
    """
    content = read_json(index)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{index} is damaged: its `weight_map` must say in which file each tensor is")
    for tensor, name in places.items():
        if not is_weight_name(name):
            raise ModelError(
                f"{index} says that {shown(tensor)} is in {shown(name)}: only files in the same folder whose names end"
                f" in {_SUFFIX} are read; do not use this folder unless you trust who made it"
            )
    if not isinstance(content.get("metadata"), dict):
        raise ModelError(f'{index} is damaged: transformers needs its `metadata`, which may be empty: "metadata": {{}}')
    return tuple(sorted(set(places.values())))


def is_weight_name(name: object) -> bool:
    """Whether it is the bare name of a safetensors file that may be a model's."""
    return (
        isinstance(name, str)
        and name.endswith(_SUFFIX)
        and name not in (_SUFFIX, DELTA)
        and not re.search(r"[/\\:\0]", name)
        and name.isprintable()
    )


def refuse_adapter_beside_model(folder: Path) -> None:
    """Raises ModelError if a model's folder has an adapter's configuration in it.

    transformers would put the adapter on the model without being asked, and only where peft is installed.
    """
    if (folder / CONFIG).is_file() and (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{folder} holds a model and a PEFT adapter ({ADAPTER_CONFIG}), so what is in it depends on whether peft is"
            f" installed: remove {ADAPTER_CONFIG}, or move the adapter's files to a folder of their own and pass that"
            " with peft (--peft)"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A file with a JSON object.

    Raises:
        ModelError: It holds something else; names the file.
        OSError: It cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ModelError(f"{path} is damaged: its JSON is nested too deeply") from None
    except ValueError as error:
        raise ModelError(f"{path} is damaged, as it is not JSON in UTF-8: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged: it must hold a JSON object, not {shown(content)}")
    return content


def shown(value: object) -> str:
    """A value from a file as a message may quote it: escaped, and no longer than a line."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _single(folder: Path, name: str) -> WeightFiles:
    return WeightFiles(folder, (name,), None)
