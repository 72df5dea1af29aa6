"""What is faster in one piece."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from wmdp_fast.models.fused.gates import fused_gates
from wmdp_fast.models.fused.linear import onednn_products
from wmdp_fast.models.fused.norms import fused_norms
from wmdp_fast.models.fused.rotary import fused_rotary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@contextmanager
def fused_parts(model: nn.Module, tried: dict[Any, Any] | None = None) -> Iterator[None]:
    """Inside, what is faster in one piece is computed so, without compiling it first; for use without gradients.

    On a CPU that is products and norms in float32, rotary angles also in bfloat16; on a GPU, where it takes Triton,
    norms, rotary angles and what feed-forward blocks do between their products. All else stays as it is.

    Args:
        model: The model.
        tried: Parts are tried before they are replaced. What came of it in earlier calls with the same model, so that
            they are not tried again; filled here.
    """
    with ExitStack() as stack:
        for fused in (onednn_products, fused_norms, fused_rotary, fused_gates):
            stack.enter_context(fused(model, tried))
        yield
