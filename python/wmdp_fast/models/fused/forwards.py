"""Other forward functions for a model's modules, for a while."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn


@contextmanager
def replaced_forwards(replacements: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Gives modules other forward functions for a while; whatever hooks they have still run.

    Set on the modules themselves, not on their classes. One that had a function of its own gets it back.
    """
    before = {module: vars(module).get("forward") for module in replacements}
    for module, forward in replacements.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, own in before.items():
            if own is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = own
