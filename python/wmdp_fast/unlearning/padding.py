"""Whether the documents of a run need padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmdp_fast.models.attention.packable import why_not

if TYPE_CHECKING:
    from torch import nn

    from wmdp_fast.unlearning.batch_reader import BatchReader
    from wmdp_fast.unlearning.method import Method


def why_padded(method: Method, model: nn.Module, batches: BatchReader, longest: int) -> str | None:
    """Why the documents of a run must be padded; None if they need not be, as tried on its first batch.

    Args:
        method: What runs them.
        model: The model without its head.
        batches: Theirs.
        longest: Tokens of the longest document.
    """
    if reason := why_not(model, longest, arguments=("position_ids",)):
        return reason
    padded, packed = (batches.forget(0, 0, packed=packed) for packed in (False, True))
    return method.why_padded(padded, packed)
