"""What the layers below one compute with: where that is equal, so is what they give out, to the bit."""

from __future__ import annotations

import functools
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch

from wmdp_fast.checkpoints import tensor_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

    from wmdp_fast.models.decoder import Decoder

# Where a model is from, and by what it was saved.
_NOT_COMPARED = ("_name_or_path", "name_or_path", "architectures", "transformers_version")


class LowerLayers:
    """Tells of one model after the other whether they are the same below a layer, by the bytes of their weights.

    Args:
        below: The number of that layer, at least 1.
    """

    def __init__(self, below: int) -> None:
        self.below = below
        self._digests: dict[str, tuple[ref[Tensor], int, int, str]] = {}

    def digest(self, decoder: Decoder) -> str | None:
        """A hash of all that decides what enters the layer: weights, buffers, configuration, code, other forwards.

        Whatever belongs to no layer counts too. Weights that were hashed before, and have been in memory since without
        a change, are not hashed again.

        Returns:
            None if there are hooks in it, or modules of an adapter, of which not all can be told.
        """
        modules = {name: module for name, module in decoder.model.named_modules() if not self._is_above(decoder, name)}
        if any(_is_watched(module) or type(module).__module__.startswith("peft") for module in modules.values()):
            return None
        config: Any = decoder.model.config
        settings = {key: value for key, value in config.to_dict().items() if key not in _NOT_COMPARED}
        described = {
            "config": settings,
            "attention": config._attn_implementation,
            "threads": torch.get_num_threads(),
            "modules": [(name, _about(module)) for name, module in modules.items()],
            "tensors": self._of_tensors(dict(_tensors_in(modules))),
        }
        text = json.dumps(described, sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def _is_above(self, decoder: Decoder, name: str) -> bool:
        inside = name.removeprefix(f"{decoder.prefix}.")
        number = inside.partition(".")[0]
        return inside != name and number.isdigit() and int(number) >= self.below

    def _of_tensors(self, tensors: Mapping[str, Tensor]) -> list[tuple[str, str, list[int], str]]:
        found: dict[str, tuple[ref[Tensor], int, int, str]] = {}
        # hashlib lets go of the interpreter, so two cores are twice as fast.
        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as threads:
            for name, entry in zip(tensors, threads.map(self._digest_of, tensors, tensors.values()), strict=True):
                found[name] = entry
        self._digests = found
        return [(name, str(one.dtype), list(one.shape), found[name][3]) for name, one in tensors.items()]

    def _digest_of(self, name: str, tensor: Tensor) -> tuple[ref[Tensor], int, int, str]:
        version, address = tensor._version, tensor.data_ptr()
        known = self._digests.get(name)
        if known is not None and known[0]() is tensor and known[1:3] == (version, address):
            return known
        return ref(tensor), version, address, hashlib.sha256(tensor_file.as_bytes(tensor)).hexdigest()


def _tensors_in(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, also those that no checkpoint has, such as rotary frequencies."""
    for name, module in modules.items():
        for own in (module._parameters, module._buffers):
            yield from ((f"{name}.{key}", tensor) for key, tensor in own.items() if tensor is not None)


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _about(module: nn.Module) -> tuple[str, str, list[tuple[str, Any]]]:
    """A module's class, what is called in place of its forward function, and its settings."""
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    other = vars(module).get("forward")
    if isinstance(other, functools.partial):
        other = other.func
    called = "" if other is None else f"{other.__module__}.{getattr(other, '__qualname__', type(other).__name__)}"
    settings = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str)}
    return kind, called, sorted(item for item in settings.items() if item[0] not in _NOT_COMPARED)
