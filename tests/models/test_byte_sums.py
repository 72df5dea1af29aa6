"""Sums that tell whether a tensor was changed: those of its bytes, whatever its type, length and place in memory."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from wmdp_fast.models.byte_sums import sum_of_bytes


def plainly(content: bytes) -> int:
    whole = len(content) // 8 * 8
    words = sum(int.from_bytes(content[at : at + 8], "little") for at in range(0, whole, 8))
    total = (words + sum(content[whole:])) % 2**64
    return total - 2**64 if total >= 2**63 else total


@given(st.binary(max_size=100), st.integers(0, 9))
def test_words_are_added_up_and_then_the_bytes_that_are_left(content: bytes, skipped: int) -> None:
    tensor = torch.tensor(list(content), dtype=torch.uint8)[skipped:]
    assert sum_of_bytes(tensor) == plainly(content[skipped:])


@given(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.integers(0, 12), st.booleans())
def test_one_number_more_or_less_is_seen(dtype: torch.dtype, place: int, transposed: bool) -> None:
    tensor = torch.linspace(1, 2, 15, dtype=dtype).view(3, 5)
    tensor = tensor.t() if transposed else tensor
    before = sum_of_bytes(tensor)
    assert sum_of_bytes(tensor.clone()) == before
    tensor[place % tensor.shape[0], place % tensor.shape[1]] *= 1.5
    assert sum_of_bytes(tensor) != before


def test_nothing_has_the_sum_of_nothing() -> None:
    assert sum_of_bytes(torch.empty(0, 3)) == 0
