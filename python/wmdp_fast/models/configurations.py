"""All configurations that a model goes by, and what they must say for it to run at all.

A configuration may tell a model to return tuples (`return_dict` is false). The parts of a model then return them to
each other too, where transformers wants objects with names: it can neither run such a model nor be told to at a call.
Nothing that a model computes depends on it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


def configurations_of(model: nn.Module) -> list[Any]:
    """A model's configurations, those of its parts and those inside them, each once."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    waiting.append(getattr(model, "config", None))
    while waiting:
        config = waiting.pop()
        if config is not None and id(config) not in found and hasattr(config, "_attn_implementation"):
            found[id(config)] = config
            waiting += [getattr(config, name, None) for name in getattr(config, "sub_configs", None) or ()]
    return list(found.values())


def return_objects(model: nn.Module) -> list[Any]:
    """Has a model return objects, whatever its configurations say; returns those that said otherwise."""
    others = [config for config in configurations_of(model) if config.return_dict is False]
    for config in others:
        config.return_dict = True
    return others


@contextmanager
def objects_returned(model: nn.Module) -> Iterator[None]:
    """Inside, a model returns objects; afterwards its configurations say what they did."""
    others = return_objects(model)
    try:
        yield
    finally:
        for config in others:
            config.return_dict = False
