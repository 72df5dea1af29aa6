"""What lies between a model's matrix products on a GPU, each part in one pass over memory: kernels in Triton.

transformers writes these parts out as many operations, each of which reads and writes all rows. The kernels round where
those operations do, so that what they give differs by the order of sums at most.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Numbers that a program of a kernel has in its registers.
_NUMBERS = 4096


def rms_norm(
    rows: torch.Tensor, weight: torch.Tensor, *, epsilon: float, offset: float, rounds_first: bool
) -> torch.Tensor:
    """Rows over their root mean square, times a weight.

    Args:
        rows: [..., d].
        weight: [d], of the same dtype.
        epsilon: Added to the mean square.
        offset: Added to the weight.
        rounds_first: Whether a normed row is rounded to the dtype before it is multiplied with the weight.

    Returns:
        [..., d].
    """
    size = weight.numel()
    flat = rows.reshape(-1, size)
    out = torch.empty_like(flat)
    block_n = triton.next_power_of_2(size)
    block_m = max(1, _NUMBERS // block_n)
    grid = (triton.cdiv(len(flat), block_m),)
    with torch.cuda.device_of(rows):
        _rms_norm[grid](
            flat, weight, out, len(flat), flat.stride(0), epsilon, offset,
            size=size, rounds_first=rounds_first, BLOCK_M=block_m, BLOCK_N=block_n, enable_fp_fusion=True,
        )  # fmt: skip
    return out.view(rows.shape)


@triton.jit(do_not_specialize=["count"])
def _rms_norm(
    rows, weight, out, count, stride, epsilon, offset,
    size: tl.constexpr, rounds_first: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_N)
    is_there = (row < count)[:, None] & (column < size)[None, :]
    number = tl.load(rows + row.to(tl.int64)[:, None] * stride + column[None, :], mask=is_there, other=0.0)
    number = number.to(tl.float32)
    normed = number * tl.rsqrt(tl.sum(number * number, 1) / size + epsilon)[:, None]
    if rounds_first:
        normed = normed.to(out.dtype.element_ty).to(tl.float32)
    factor = tl.load(weight + column, mask=column < size, other=0.0).to(tl.float32) + offset
    result = (normed * factor[None, :]).to(out.dtype.element_ty)
    tl.store(out + row.to(tl.int64)[:, None] * size + column[None, :], result, mask=is_there)


def rotate(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding: `rows * cos + cat(-second half, first half) * sin`.

    Args:
        rows: [heads, T, size].
        cos: [T, size], of the same dtype.
        sin: Likewise.

    Returns:
        [heads, T, size]; the heads of a token lie together in memory.
    """
    heads, tokens, size = rows.shape
    rows = rows if rows.stride(2) == 1 else rows.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    out = rows.new_empty(tokens, heads, size)
    half = triton.next_power_of_2(size // 2)
    with torch.cuda.device_of(rows):
        # Products are rounded one by one, not as part of a sum.
        _rotate[tokens,](
            rows, cos, sin, out, rows.stride(0), rows.stride(1),
            heads=heads, half=size // 2, BLOCK_M=triton.next_power_of_2(heads), BLOCK_N=half,
            enable_fp_fusion=False,
        )  # fmt: skip
    return out.transpose(0, 1)


@triton.jit
def _rotate(
    rows, cos, sin, out, row_head, row_token,
    heads: tl.constexpr, half: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)
    is_column = column < half
    is_there = (head < heads) & is_column[None, :]
    at = rows + token * row_token + head * row_head + column[None, :]
    first = tl.load(at, mask=is_there, other=0.0).to(tl.float32)
    second = tl.load(at + half, mask=is_there, other=0.0).to(tl.float32)
    angle = token * 2 * half + column
    first_cos = tl.load(cos + angle, mask=is_column, other=0.0).to(tl.float32)[None, :]
    second_cos = tl.load(cos + angle + half, mask=is_column, other=0.0).to(tl.float32)[None, :]
    first_sin = tl.load(sin + angle, mask=is_column, other=0.0).to(tl.float32)[None, :]
    second_sin = tl.load(sin + angle + half, mask=is_column, other=0.0).to(tl.float32)[None, :]
    dtype = out.dtype.element_ty
    new_first = (first * first_cos).to(dtype).to(tl.float32) - (second * first_sin).to(dtype).to(tl.float32)
    new_second = (second * second_cos).to(dtype).to(tl.float32) + (first * second_sin).to(dtype).to(tl.float32)
    at = out + token * heads * 2 * half + head * 2 * half + column[None, :]
    tl.store(at, new_first.to(dtype), mask=is_there)
    tl.store(at + half, new_second.to(dtype), mask=is_there)


def silu_times(opened: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """`silu(opened) * inner`, element by element, of two contiguous tensors of one shape and dtype."""
    out = torch.empty_like(opened)
    with torch.cuda.device_of(out):
        _silu_times[triton.cdiv(out.numel(), _NUMBERS),](
            opened, inner, out, out.numel(), BLOCK_N=_NUMBERS, num_warps=8, enable_fp_fusion=True
        )
    return out


@triton.jit
def _silu_times(opened, inner, out, count, BLOCK_N: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_there = at < count
    number = tl.load(opened + at, mask=is_there, other=0.0).to(tl.float32)
    number = (number / (1 + tl.exp(-number))).to(out.dtype.element_ty).to(tl.float32)
    number *= tl.load(inner + at, mask=is_there, other=0.0).to(tl.float32)
    tl.store(out + at, number.to(out.dtype.element_ty), mask=is_there)
