"""The first layers of a language model: for work whose loss is taken at a layer, and that needs nothing above it.

Those of them that such work does not change may stay on the disk, to be read when they are run.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.checkpoints.weight_files import CONFIG, shown, weight_files
from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.models import locate
from wmdp_fast.models.attention.requirements import take_eager_where_needed
from wmdp_fast.models.decoder import Decoder, decoder_of
from wmdp_fast.models.fits import download
from wmdp_fast.models.load import parse_device, parse_dtype
from wmdp_fast.models.reading import check_config, failures_as, read_pretrained, without_progress
from wmdp_fast.models.skeleton import build_skeleton
from wmdp_fast.models.streamed import SLACK, StreamedModel, memory_in_use, stream
from wmdp_fast.models.threads import loading
from wmdp_fast.runtime.memory import forget_files, in_gigabytes

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig


@dataclass(frozen=True)
class FirstLayers:
    """The first layers of a checkpoint.

    Attributes:
        decoder: The model, cut off.
        folder: Where its files are.
        commit: The hub's commit, or None for a folder of the user's.
        num_layers: How many layers the whole model has.
        notes: What is to be known of how they were loaded.
        streamed: The model with all layers, of which these alone are in memory and the others are read when they are
            run; None for what there is without them.
    """

    decoder: Decoder
    folder: Path
    commit: str | None
    num_layers: int
    notes: tuple[str, ...] = ()
    streamed: StreamedModel | None = None


def load_first_layers(
    name_or_path: str,
    count: int,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> FirstLayers:
    """Reads the embedding and the first layers of a checkpoint. Of the shards only these tensors are read.

    Args:
        name_or_path: A folder, or a name on the hub.
        count: How many layers.
        revision: Branch, tag or commit on the hub.
        dtype: `auto` is the checkpoint's.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        trust_remote_code: Whether to run code that comes with the model.

    Raises:
        DataUnavailableError: The model is missing or out of reach.
        ModelError: It cannot be loaded, lacks weights, has fewer layers, or is built in a way that cannot be cut.
    """
    from transformers import AutoModel

    torch_dtype, torch_device = parse_dtype(dtype), parse_device(device)
    files, where, source, config, available = _configuration(name_or_path, count, revision, trust_remote_code)
    with failures_as(ModelError, f"{where} cannot be loaded"):
        cut = _cut(config, count)
    with without_progress():
        # What is above the first layers has no place, so that nothing is said of tensors that are not read.
        try:
            model, _, _ = read_pretrained(
                AutoModel, where, part=True, config=cut, dtype=torch_dtype or "auto", **source
            )
        except ModelError as error:
            if count == available:
                raise
            raise ModelError(
                f"{error}. Only the first {count} of {available} layers were to be read: if the whole model loads,"
                " others of its weights depend on the number of layers, and it cannot be cut off; a method over logits"
                " takes all of it"
            ) from error
    try:
        moved: Any = model
        model = moved.to(torch_device)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{count} layers of {where} do not fit into memory on {torch_device}") from error
    notes = take_eager_where_needed(model)
    for note in notes:
        warnings.warn(f"{name_or_path}: {note}", WmdpFastWarning, stacklevel=2)
    return FirstLayers(decoder_of(model), files.folder, files.commit, available, tuple(notes))


def load_layers_from(
    name_or_path: str,
    kept: range,
    memory: int,
    *,
    headless: bool,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> FirstLayers:
    """Reads some layers of a checkpoint; the others, and all that is around them, are read when they are run.

    Args:
        name_or_path: A folder, or a name on the hub.
        kept: The numbers of the layers that are read, from 1 on.
        memory: Bytes that the process may take; on a GPU, that its tensors may.
        headless: Whether the checkpoint may be one without a head, as nothing above the layers is going to be run.
        revision: Branch, tag or commit on the hub.
        dtype: `auto` is the checkpoint's.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        trust_remote_code: Whether code that comes with the model may be read; a model that needs it is refused.

    Returns:
        The decoder has all layers of the model; only those that are read have numbers.

    Raises:
        DataUnavailableError: The model is missing or out of reach.
        ModelError: As `load_first_layers`; or its layers cannot be read one by one, or need more memory, as is said.
    """
    torch_dtype, torch_device = parse_dtype(dtype), parse_device(device)
    files, where, source, _, available = _configuration(name_or_path, kept.stop, revision, trust_remote_code)
    download(files, name_or_path)
    weights = weight_files(files.folder)
    if weights is None:
        raise ModelError(f"{files.folder} has no safetensors weights")
    skeleton = build_skeleton(where, source, weights, torch_dtype, torch_device, headless=headless)
    parts, lower = skeleton.layers[kept.start : kept.stop], skeleton.layers[: kept.start]
    needs = sum(part.nbytes for part in parts) + max(
        max(part.arriving_bytes for part in parts),
        skeleton.embedding.arriving_bytes + max(part.arriving_bytes for part in lower),
    )
    if torch_device.type == "cpu":
        # Of imports. What is tried below, and a first batch, bring back what a run needs.
        forget_files()
    in_use = memory_in_use(torch_device)
    if (in_use + needs) / (1 - SLACK) > memory:
        raise ModelError(
            f"memory {in_gigabytes(memory)} is too little to stream {where}: {in_gigabytes(in_use)} are taken already,"
            f" and layers {kept.start} to {kept.stop - 1}, which stay in memory, with the embedding and one layer below"
            f" them need {in_gigabytes(needs)} more, before anything is computed"
        )
    streamed = stream(skeleton, memory)
    trial = streamed.below(kept.start) if headless else streamed
    with trial.one_of_each().decoder_on_demand():
        notes = take_eager_where_needed(skeleton.decoder.model)
    for note in notes:
        warnings.warn(f"{name_or_path}: {note}", WmdpFastWarning, stacklevel=2)
    for part in parts:
        skeleton.fill(part)
    streamed = replace(streamed, resident=frozenset(kept))
    return FirstLayers(skeleton.decoder, files.folder, files.commit, available, tuple(notes), streamed)


def first_layers_without_weights(
    name_or_path: str, count: int | None, *, revision: str | None = None, trust_remote_code: bool = False
) -> FirstLayers | None:
    """The first layers of a checkpoint as its configuration describes them: names and shapes, no numbers.

    Arguments and errors are those of `load_first_layers`; `count` may be None, for all.

    Returns:
        None where the architecture cannot be built without numbers.
    """
    from transformers import AutoModel

    files, _, _, config, available = _configuration(name_or_path, count or 1, revision, trust_remote_code)
    wanted = config if count is None else _cut(config, count)
    try:
        with loading(), torch.device("meta"):
            untyped: Any = AutoModel
            model = untyped.from_config(wanted, trust_remote_code=trust_remote_code)
        decoder = decoder_of(model)
    except Exception:
        return None
    return FirstLayers(decoder, files.folder, files.commit, available)


def _configuration(
    name_or_path: str, count: int, revision: str | None, trust_remote_code: bool
) -> tuple[locate.Files, str, dict[str, Any], PretrainedConfig, int]:
    """Where a checkpoint is, what to tell transformers of it, its configuration, and how many layers it has."""
    files = locate.locate_model(name_or_path, revision=revision)
    source: dict[str, Any] = {"revision": files.commit or revision, "trust_remote_code": trust_remote_code}
    where = str(files.folder) if files.commit is None else name_or_path
    config = check_config(files.folder, where, source)
    available = getattr(config, "num_hidden_layers", None)
    if available is None:
        raise ModelError(
            f"{name_or_path} is a {type(config).__name__}, which is more than a language model; load it and pass its"
            " language model"
        )
    if not isinstance(available, int):
        raise ModelError(f"{files.folder / CONFIG}: num_hidden_layers is {shown(available)}, which is no number")
    if count > available:
        raise ModelError(
            f"{name_or_path} has {available} layers, 0 to {available - 1}; layer {count - 1} does not exist; set the"
            " layers for this model, e.g. by layer_id (--layer-id); `wmdp-fast layers` suggests one"
        )
    return files, where, source, config, available


def _cut(config: PretrainedConfig, count: int) -> PretrainedConfig:
    """The configuration of the first layers; what it lists per layer is cut too."""
    cut = copy.deepcopy(config)
    before = config.num_hidden_layers
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == before:
            setattr(cut, name, value[:count])
    cut.num_hidden_layers = count
    return cut
