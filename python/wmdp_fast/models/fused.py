"""What is faster in one piece."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from wmdp_fast.models.norms import fused_norms
from wmdp_fast.models.onednn import onednn_products
from wmdp_fast.models.rotary import fused_rotary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@contextmanager
def fused_parts(model: nn.Module) -> Iterator[None]:
    """Inside, what is faster in one piece is computed so, without compiling it first; for use without gradients.

    It is for a CPU: products and norms in float32, rotary angles also in bfloat16. All else stays as it is.
    """
    with onednn_products(model), fused_norms(model), fused_rotary(model):
        yield
