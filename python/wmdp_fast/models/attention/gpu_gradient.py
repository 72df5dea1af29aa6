"""The gradient of `gpu_forward`, as FlashAttention has it: weights are computed again from the log-sum-exps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from wmdp_fast.models.attention.gpu_forward import (
    attend_with_lse,
    dense_rows,
    on_device,
    precision_of,
    scores_of,
    visibility_mask,
)

if TYPE_CHECKING:
    from wmdp_fast.models.attention.layout import Layout


class AttentionWithGradient(torch.autograd.Function):
    """Attention as torch differentiates it; the arguments are those of `gpu.attend_on_gpu`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
        layout: Layout,
        options: dict[str, Any],
    ) -> torch.Tensor:
        """Outputs [T, heads, value size]."""
        out, lse = attend_with_lse(query, [(key, value)], layout, sinks=sinks, **options)
        ctx.save_for_backward(query, key, value, sinks, out, lse)
        ctx.layout, ctx.options = layout, options
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients by query, key, value and sinks."""
        query, key, value, sinks, out, lse = ctx.saved_tensors
        # What a token's weights have in common: the sum over its keys of weight times its gradient.
        delta = (gradient.float() * out.float()).sum(dim=-1).t().contiguous()
        dqkv = _gradients(query, key, value, gradient, lse, delta, ctx.layout, **ctx.options)
        dsinks = None
        if sinks is not None and ctx.needs_input_grad[3]:
            weights = torch.exp2(sinks.float().unsqueeze(1) * math.log2(math.e) - lse)
            dsinks = -(weights * delta).sum(dim=1).to(sinks.dtype)
        return *dqkv, dsinks, None, None


def _gradients(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    gradient: torch.Tensor,
    lse: torch.Tensor,
    delta: torch.Tensor,
    layout: Layout,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads, tokens, size = query.shape
    key_heads, value_size = key.shape[0], value.shape[-1]
    query, key, value, gradient = (dense_rows(one) for one in (query, key, value, gradient.transpose(0, 1)))
    dq = query.new_empty(tokens, heads, size).transpose(0, 1)
    dk = key.new_empty(tokens, key_heads, size).transpose(0, 1)
    dv = value.new_empty(tokens, key_heads, value_size).transpose(0, 1)
    blocks = _blocks(query, value_size)
    offsets, runs, subtree_ends, positions = on_device(
        layout, blocks["BLOCK_M"], blocks["BLOCK_N"], window, query.device
    )
    numbers = (scale / (softcap or 1.0), softcap or 0.0, scale, window or 0)
    options = {
        "group": heads // key_heads, "size": size, "value_size": value_size, "has_window": window is not None,
        "has_softcap": softcap is not None, "precision": precision_of(query), **blocks,
    }  # fmt: skip
    given = (query, key, value, gradient)
    seen_by = (subtree_ends, positions, tokens, *numbers)
    arguments = (*given, *_strides(*given), lse, delta, *seen_by)
    with torch.cuda.device_of(query):
        _dq_kernel[len(offsets), heads](*arguments, offsets, runs, dq, *_strides(dq), **options)
        _dkdv_kernel[triton.cdiv(tokens, blocks["BLOCK_N"]), key_heads](
            *arguments, dk, dv, *_strides(dk, dv), **options
        )
    return dq, dk, dv


def _strides(*tensors: torch.Tensor) -> list[int]:
    """From head to head and from token to token."""
    return [tensor.stride(dim) for tensor in tensors for dim in (0, 1)]


def _blocks(query: torch.Tensor, value_size: int) -> dict[str, int]:
    """The sizes of tiles and blocks."""
    sizes = [max(16, triton.next_power_of_2(size)) for size in (query.shape[-1], value_size)]
    fixed = {"BLOCK_D": sizes[0], "BLOCK_DV": sizes[1], "num_warps": 4, "enable_fp_fusion": True}
    if not query.is_cuda:
        return {"BLOCK_M": 16, "BLOCK_N": 16, "num_stages": 1, **fixed}
    if query.element_size() * max(sizes) <= 256:
        return {"BLOCK_M": 64, "BLOCK_N": 32, "num_stages": 2, **fixed}
    return {"BLOCK_M": 32, "BLOCK_N": 32, "num_stages": 1, **fixed}


@triton.jit(do_not_specialize=["tokens", "window"])
def _dq_kernel(
    query, key, value, gradient,
    query_head, query_token, key_head, key_token, value_head, value_token, gradient_head, gradient_token,
    lse, delta, subtree_ends, positions, tokens, softcap_scale, softcap, scale, window,
    offsets, runs, dq, dq_head, dq_token,
    group: tl.constexpr, size: tl.constexpr, value_size: tl.constexpr, has_window: tl.constexpr,
    has_softcap: tl.constexpr, precision: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Gradients by the queries of a tile, for one head."""
    tile, head = tl.program_id(0), tl.program_id(1)
    dims, value_dims = tl.arange(0, BLOCK_D)[None, :], tl.arange(0, BLOCK_DV)[None, :]
    key += (head // group) * key_head
    value += (head // group) * value_head
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = rows < tokens
    at = rows.to(tl.int64)[:, None]
    is_there = is_row[:, None] & (dims < size)
    queries = tl.load(query + head * query_head + at * query_token + dims, mask=is_there, other=0.0)
    is_out = is_row[:, None] & (value_dims < value_size)
    outs = tl.load(gradient + head * gradient_head + at * gradient_token + value_dims, mask=is_out, other=0.0)
    lse_of = tl.load(lse + head * tokens + rows, mask=is_row, other=0.0)
    delta_of = tl.load(delta + head * tokens + rows, mask=is_row, other=0.0)
    places = tl.minimum(rows, tokens - 1)
    found = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for run in range(tl.load(offsets + 3 * tile), tl.load(offsets + 3 * tile + 2)):
        stop = tl.load(runs + 2 * run + 1)
        for first in range(tl.load(runs + 2 * run), stop, BLOCK_N):
            keys = first + tl.arange(0, BLOCK_N)
            is_key = keys < stop
            key_at = keys.to(tl.int64)[:, None]
            block = tl.load(key + key_at * key_token + dims, mask=is_key[:, None] & (dims < size), other=0.0)
            is_value = is_key[:, None] & (value_dims < value_size)
            values = tl.load(value + key_at * value_token + value_dims, mask=is_value, other=0.0)
            sees = visibility_mask(places, keys, is_key, subtree_ends, positions, window, has_window)
            scores, slope = scores_of(queries, block, softcap_scale, softcap, has_softcap, precision)
            weights = tl.where(sees, tl.exp2(scores - lse_of[:, None]), 0.0)
            dp = tl.dot(outs, tl.trans(values), input_precision=precision)
            ds = weights * (dp - delta_of[:, None]) * slope * scale
            found = tl.dot(ds.to(block.dtype), block, found, input_precision=precision)
    tl.store(dq + head * dq_head + at * dq_token + dims, found.to(queries.dtype), mask=is_there)


@triton.jit(do_not_specialize=["tokens", "window"])
def _dkdv_kernel(
    query, key, value, gradient,
    query_head, query_token, key_head, key_token, value_head, value_token, gradient_head, gradient_token,
    lse, delta, subtree_ends, positions, tokens, softcap_scale, softcap, scale, window,
    dk, dv, dk_head, dk_token, dv_head, dv_token,
    group: tl.constexpr, size: tl.constexpr, value_size: tl.constexpr, has_window: tl.constexpr,
    has_softcap: tl.constexpr, precision: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Gradients by the keys and values of a block, for one of their heads."""
    start, key_of = tl.program_id(0) * BLOCK_N, tl.program_id(1)
    dims, value_dims = tl.arange(0, BLOCK_D)[None, :], tl.arange(0, BLOCK_DV)[None, :]
    keys = start + tl.arange(0, BLOCK_N)
    is_key = keys < tokens
    key_at = keys.to(tl.int64)[:, None]
    is_there = is_key[:, None] & (dims < size)
    is_value = is_key[:, None] & (value_dims < value_size)
    block = tl.load(key + key_of * key_head + key_at * key_token + dims, mask=is_there, other=0.0)
    values = tl.load(value + key_of * value_head + key_at * value_token + value_dims, mask=is_value, other=0.0)
    # Who sees any of them lies between the first of them and the end of the longest subtree.
    last = tl.max(tl.load(subtree_ends + keys, mask=is_key, other=0), 0)
    found = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    found_values = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    for head in range(key_of * group, key_of * group + group):
        for first in range(start, last, BLOCK_M):
            rows = first + tl.arange(0, BLOCK_M)
            is_row = rows < tokens
            at = rows.to(tl.int64)[:, None]
            is_query = is_row[:, None] & (dims < size)
            queries = tl.load(query + head * query_head + at * query_token + dims, mask=is_query, other=0.0)
            is_out = is_row[:, None] & (value_dims < value_size)
            outs = tl.load(gradient + head * gradient_head + at * gradient_token + value_dims, mask=is_out, other=0.0)
            lse_of = tl.load(lse + head * tokens + rows, mask=is_row, other=0.0)
            delta_of = tl.load(delta + head * tokens + rows, mask=is_row, other=0.0)
            places = tl.minimum(rows, tokens - 1)
            sees = visibility_mask(places, keys, is_key, subtree_ends, positions, window, has_window) & is_row[:, None]
            scores, slope = scores_of(queries, block, softcap_scale, softcap, has_softcap, precision)
            weights = tl.where(sees, tl.exp2(scores - lse_of[:, None]), 0.0)
            found_values = tl.dot(tl.trans(weights.to(outs.dtype)), outs, found_values, input_precision=precision)
            dp = tl.dot(outs, tl.trans(values), input_precision=precision)
            ds = weights * (dp - delta_of[:, None]) * slope * scale
            found = tl.dot(tl.trans(ds.to(queries.dtype)), queries, found, input_precision=precision)
    tl.store(dk + key_of * dk_head + key_at * dk_token + dims, found.to(block.dtype), mask=is_there)
    at_value = dv + key_of * dv_head + key_at * dv_token + value_dims
    tl.store(at_value, found_values.to(values.dtype), mask=is_value)
