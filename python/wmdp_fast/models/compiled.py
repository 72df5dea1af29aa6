"""Compiling a model's layers for the time of a run.

Between the matrix products a layer normalises, rotates, activates, adds and copies; the compiler makes one pass over
memory of several. Attention itself stays as it is, so each layer becomes two compiled parts, one before it and one
behind. As all layers are alike, they are compiled once; the number of tokens is a variable of the compiled code.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def compiled_layers(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the layers of a model run as compiled code; afterwards they are as they were.

    Raises:
        ModelError: The model has no list of layers that all take the same.
    """
    layers = _layers(model)
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    config: Any = model.config
    count = getattr(config.get_text_config(), "num_hidden_layers", 0)
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and count > 0:
            return list(module)
    raise ModelError(f"{type(model).__name__} has no list of {count} layers to compile; leave compile out")
