"""Compiling what lies between a model's matrix products, for the time of a run.

Normalizing and activating take several passes over memory, of which the compiler makes one. Only modules that do
nothing else than that and linear layers are compiled, so that attention over a trie, whose batches all differ, stays
out of it. They are alike in all layers and compiled once; the number of tokens is a variable of the compiled code.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from wmdp_fast.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

# transformers names these modules alike in all models; torch's own LayerNorm is one pass already.
_KINDS = ("MLP", "RMSNorm")


@contextmanager
def compiled_parts(model: torch.nn.Module, backend: str = "inductor") -> Iterator[None]:
    """Inside, a model's feed-forward blocks and norms run as compiled code; afterwards they are as they were.

    Args:
        model: A model of transformers.
        backend: What `torch.compile` makes code with; inductor needs a C++ compiler.

    Raises:
        ModelError: The model has none, or they are compiled already.
    """
    parts = [module for module in model.modules() if type(module).__name__.endswith(_KINDS)]
    if not parts:
        raise ModelError(f"{type(model).__name__} has no {' or '.join(_KINDS)} to compile: leave compile out")
    if any(part._compiled_call_impl is not None for part in parts):
        raise ModelError(f"{type(model).__name__} is compiled already: leave compile out")
    try:
        for part in parts:
            part.compile(dynamic=True, backend=backend)
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None
