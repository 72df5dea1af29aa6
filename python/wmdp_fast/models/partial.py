"""The first layers of a language model: for work whose loss is taken at a layer, and that needs nothing above it."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models import hub
from wmdp_fast.models.load import parse_device, parse_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Decoder:
    """A model without its head, and its layers.

    Attributes:
        model: Called with `input_ids` and `attention_mask`.
        layers: Its decoder layers, maybe only the first ones.
        prefix: Their name in it, such as `layers`.
        hidden_size: Width of the residual stream.
    """

    model: PreTrainedModel
    layers: nn.ModuleList
    prefix: str
    hidden_size: int


@dataclass(frozen=True)
class FirstLayers:
    """The first layers of a checkpoint.

    Attributes:
        decoder: The model, cut off.
        folder: Where its files are.
        commit: The hub's commit, or None for a folder of the user's.
        num_layers: How many layers the whole model has.
    """

    decoder: Decoder
    folder: Path
    commit: str | None
    num_layers: int


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
        ModelError: It cannot be loaded, has fewer layers, or is built in a way that cannot be cut.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel

    torch_dtype, torch_device = parse_dtype(dtype), parse_device(device)
    files = hub.locate_model(name_or_path, revision=revision)
    source: dict[str, Any] = {"revision": files.commit or revision, "trust_remote_code": trust_remote_code}
    where = str(files.folder) if files.commit is None else name_or_path
    try:
        config = AutoConfig.from_pretrained(where, **source)
        available = config.num_hidden_layers
        if count > available:
            raise ModelError(
                f"{name_or_path} has {available} layers, 0 to {available - 1}; layer {count - 1} does not exist"
            )
        with _quiet_about_unread_weights():
            model = AutoModel.from_pretrained(
                where, config=_cut(config, count), dtype=torch_dtype or "auto", use_safetensors=True, **source
            )
        model = model.to(torch_device)
    except AttributeError as error:
        raise ModelError(
            f"{name_or_path} is a {type(config).__name__}, which is more than a language model; load it and pass its"
            " language model"
        ) from error
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{count} layers of {where} do not fit into memory on {torch_device}") from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{where} cannot be loaded: {error}") from error
    return FirstLayers(decoder_of(model), files.folder, files.commit, available)


def decoder_of(model: PreTrainedModel) -> Decoder:
    """Finds the layers of a language model that is in memory.

    Raises:
        ModelError: It has no list of as many layers as its configuration says.
    """
    base: Any = model.base_model
    config = base.config.get_text_config()
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return Decoder(base, module, name, config.hidden_size)
    raise ModelError(
        f"{type(base).__name__} has no list of {config.num_hidden_layers} decoder layers, so it cannot be unlearnt"
    )


def _cut(config: PretrainedConfig, count: int) -> PretrainedConfig:
    """The configuration of the first layers; what it lists per layer is cut too."""
    cut = copy.deepcopy(config)
    before = config.num_hidden_layers
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == before:
            setattr(cut, name, value[:count])
    cut.num_hidden_layers = count
    return cut


@contextmanager
def _quiet_about_unread_weights() -> Iterator[None]:
    """Transformers would warn of every tensor of the file that is not part of the cut model."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
