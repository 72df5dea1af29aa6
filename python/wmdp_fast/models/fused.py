"""What is faster in one piece."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from wmdp_fast.models.gates import fused_gates
from wmdp_fast.models.norms import fused_norms
from wmdp_fast.models.onednn import onednn_products
from wmdp_fast.models.rotary import fused_rotary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@contextmanager
def fused_parts(model: nn.Module) -> Iterator[None]:
    """Inside, what is faster in one piece is computed so, without compiling it first; for use without gradients.

    On a CPU that is products and norms in float32, rotary angles also in bfloat16; on a GPU, where it takes Triton,
    norms, rotary angles and what feed-forward blocks do between their products. All else stays as it is.
    """
    with onednn_products(model), fused_norms(model), fused_rotary(model), fused_gates(model):
        yield
