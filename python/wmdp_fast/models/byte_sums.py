"""A number that tells whether a tensor was changed, without a copy of it."""

from __future__ import annotations

import torch


def sum_of_bytes(tensor: torch.Tensor) -> int:
    """The sum of a tensor's bytes, eight at a time as an int64 number, modulo 2**64; of what is left over, by byte.

    Equal bytes have equal sums. As fast as memory is read, where one byte at a time would take fifty times as long.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.numel() == 0:
        return 0
    of_bytes = flat.view(torch.uint8)
    if of_bytes.storage_offset() % 8:
        of_bytes = of_bytes.clone()
    whole = of_bytes.numel() // 8 * 8
    words = of_bytes[:whole].view(torch.int64).sum()
    return int(words + of_bytes[whole:].sum(dtype=torch.int64))
