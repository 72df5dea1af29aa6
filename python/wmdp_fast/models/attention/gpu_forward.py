"""Attention over a packed token trie on a GPU: one kernel, written in Triton, which torch brings along.

A program of the kernel computes the outputs of a tile: some tokens of the batch, for one head. Which keys its tokens
can see is known before it starts: runs of keys, each in one piece in memory, made from the segments of the trie. Of
most runs every token of the tile sees every key; only in the others does the kernel look at who sees whom. The softmax
over all runs is taken as FlashAttention does it, so no score is ever written to memory.

It does what the kernel for CPUs in `rust/core/src/kernels/attention` does, by the same rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from wmdp_fast.models.attention.layout import Layout

_LOG2_E = tl.constexpr(math.log2(math.e))


@dataclass(frozen=True)
class Tiles:
    """Which keys the tiles of a batch see. Keys are numbered with the carried tokens first, then the batch's own.

    Attributes:
        offsets: int32 [tiles, 3]: a tile's first run that all its tokens see in full, its first other run, its end.
        runs: int32 [R, 2]: first key, last key + 1. Those seen in full are as long as a whole number of key blocks.
    """

    offsets: NDArray[np.int32]
    runs: NDArray[np.int32]

    @classmethod
    def of(cls, layout: Layout, *, block_m: int, block_n: int, window: int | None) -> Tiles:
        """The tiles of a batch.

        Args:
            layout: The batch.
            block_m: Tokens of a tile; the last one may have fewer.
            block_n: Keys of a block.
            window: A token sees only keys less than so many positions before it.
        """
        tops = np.arange(0, len(layout.positions), block_m)
        nearest = np.minimum.reduceat(layout.positions, tops)
        farthest = np.maximum.reduceat(layout.positions, tops)
        low = tops + layout.num_carried
        high = np.minimum(low + block_m, layout.num_carried + len(layout.positions))
        starts, ends, subtree_ends, positions = layout.segments.T
        # Tile by tile, the segments that any of its tokens sees.
        tile, segment = np.nonzero((starts < high[:, None]) & (subtree_ends > low[:, None]))
        first, last = starts[segment], np.minimum(ends[segment], high[tile])
        seen_in_full = (last <= low[tile]) & (subtree_ends[segment] >= high[tile])
        if window is not None:
            first = np.maximum(first, first + nearest[tile] - window + 1 - positions[segment])
            position = positions[segment] + first - starts[segment]
            seen_in_full &= farthest[tile] - position < window
        full, other = (
            _joined(np.stack([tile, first, last], axis=1)[which & (first < last)], layout.num_carried)
            for which in (seen_in_full, ~seen_in_full)
        )
        # What is left of a run after its last whole block is looked at key by key.
        cuts = full[:, 1] + (full[:, 2] - full[:, 1]) // block_n * block_n
        rest = np.stack([full[:, 0], cuts, full[:, 2]], axis=1)
        full[:, 2] = cuts
        full, rest = (runs[runs[:, 1] < runs[:, 2]] for runs in (full, rest))
        other = np.concatenate([rest, other])
        other = _joined(other[np.lexsort((other[:, 1], other[:, 0]))], layout.num_carried)
        runs = np.concatenate([full, other])
        order = np.argsort(runs[:, 0], kind="stable")
        num_full, num_other = (np.bincount(part[:, 0], minlength=len(tops)) for part in (full, other))
        begins = np.cumsum(num_full + num_other) - num_full - num_other
        offsets = np.stack([begins, begins + num_full, begins + num_full + num_other], axis=1)
        return cls(offsets.astype(np.int32), runs[order, 1:].astype(np.int32))


def _joined(runs: NDArray[np.int64], num_carried: int) -> NDArray[np.int64]:
    """Runs of keys [R, 3], each with its tile, in order; those that follow on one another in memory are made one."""
    follows = (runs[1:, 0] == runs[:-1, 0]) & (runs[1:, 1] == runs[:-1, 2]) & (runs[1:, 1] != num_carried)
    heads = np.flatnonzero(np.concatenate([[True], ~follows])[: len(runs)])
    lasts = np.concatenate([heads[1:], [len(runs)]])[: len(heads)] - 1
    return np.column_stack([runs[heads, :2], runs[lasts, 2]])


def attend_with_lse(
    query: torch.Tensor,
    runs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    layout: Layout,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `gpu.attend_on_gpu` without gradients, and what these take.

    Returns:
        Outputs [T, heads, value size], and the log-sum-exps of the scores, to base 2, [heads, T], float32.
    """
    heads, tokens, size = query.shape
    query, *others = (dense_rows(tensor) for tensor in (query, *runs[0], *runs[-1]))
    value_size = others[-1].shape[-1]
    blocks = _blocks(query, value_size)
    offsets, table, subtree_ends, positions = on_device(
        layout, blocks["BLOCK_M"], blocks["BLOCK_N"], window, query.device
    )
    out = query.new_empty(tokens, heads, value_size)
    lse = query.new_empty(heads, tokens, dtype=torch.float32)
    tensors = (query, *others, out.transpose(0, 1))
    strides = [tensor.stride(dim) for tensor in tensors for dim in (0, 1)]
    with torch.cuda.device_of(query):
        _attend[len(offsets), heads](
            *tensors, *strides,
            lse, out if sinks is None else sinks, offsets, table, subtree_ends, positions, tokens, layout.num_carried,
            scale / (softcap or 1.0), softcap or 0.0, window or 0,
            group=heads // others[-1].shape[0], size=size, value_size=value_size,
            has_window=window is not None, has_softcap=softcap is not None, has_sinks=sinks is not None,
            precision=precision_of(query), **blocks,
        )  # fmt: skip
    return out, lse


def precision_of(tensor: torch.Tensor) -> str:
    """How a product is to be computed, as Triton names it; all digits of float32, and of what has fewer anyway."""
    return "ieee" if tensor.dtype == torch.float32 else "tf32"


def dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of which the numbers of a row are contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def on_device(
    layout: Layout, block_m: int, block_n: int, window: int | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tiles and what decides which token sees which key, brought to a device once for all layers with the same window.

    Returns:
        `offsets` and `runs` of the `Tiles`; of each key, where its subtree ends, and its position: int32.
    """

    def arrays() -> list[NDArray[Any]]:
        tiles = Tiles.of(layout, block_m=block_m, block_n=block_n, window=window)
        starts, ends, subtree_ends, positions = layout.segments.T
        lengths = ends - starts
        depths = np.arange(lengths.sum()) + np.repeat(positions - starts, lengths)
        return [tiles.offsets, tiles.runs, np.repeat(subtree_ends, lengths).astype(np.int32), depths.astype(np.int32)]

    offsets, runs, subtree_ends, positions = layout.on_device((block_m, block_n, window), arrays, device)
    return offsets, runs, subtree_ends, positions


def _blocks(query: torch.Tensor, value_size: int) -> dict[str, int]:
    """The sizes of tiles and blocks, as large as a multiprocessor's fast memory allows."""
    # The matrix units multiply at least 16 x 16.
    block_d, block_dv = (max(16, triton.next_power_of_2(size)) for size in (query.shape[-1], value_size))
    # Fusing multiplications with additions is asked for by name, as versions of Triton differ in what they do else.
    fixed = {"BLOCK_D": block_d, "BLOCK_DV": block_dv, "enable_fp_fusion": True}
    memory = 0
    if query.is_cuda:
        memory = torch.cuda.get_device_properties(query.device).shared_memory_per_block_optin
    for block_m, block_n, stages, warps in ((128, 32, 3, 4), (64, 32, 3, 4), (64, 32, 2, 4), (64, 32, 1, 4)):
        needed = block_m * block_d + stages * block_n * (block_d + block_dv)
        if query.element_size() * needed < 0.9 * memory:
            return {"BLOCK_M": block_m, "BLOCK_N": block_n, "num_stages": stages, "num_warps": warps, **fixed}
    return {"BLOCK_M": 16, "BLOCK_N": 16, "num_stages": 1, "num_warps": 4, **fixed}


@triton.jit(do_not_specialize=["tokens", "num_carried", "window"])
def _attend(
    query, carried_key, carried_value, key, value, out,
    query_head, query_token, carried_key_head, carried_key_token, carried_value_head, carried_value_token,
    key_head, key_token, value_head, value_token, out_head, out_token,
    lse, sinks, offsets, runs, subtree_ends, positions, tokens, num_carried,
    scale, softcap, window,
    group: tl.constexpr, size: tl.constexpr, value_size: tl.constexpr,
    has_window: tl.constexpr, has_softcap: tl.constexpr, has_sinks: tl.constexpr, precision: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """One tile of `BLOCK_M` tokens, for one head."""
    # A batch may have more numbers than 32 bits count.
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = rows < tokens
    dims, value_dims = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    is_dim, is_value_dim = dims < size, value_dims < value_size

    where = head * query_head + rows.to(tl.int64)[:, None] * query_token + dims[None, :]
    queries = tl.load(query + where, mask=is_row[:, None] & is_dim[None, :], other=0.0)
    # Rows beyond the last token are never written; what they see does not matter.
    places = tl.minimum(rows, tokens - 1) + num_carried
    # Both counted from the first key that was carried over.
    carried_key += (head // group) * carried_key_head
    carried_value += (head // group) * carried_value_head
    key += (head // group) * key_head - num_carried.to(tl.int64) * key_token
    value += (head // group) * value_head - num_carried.to(tl.int64) * value_token

    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    first_full = tl.load(offsets + 3 * tile)
    first_other = tl.load(offsets + 3 * tile + 1)
    end = tl.load(offsets + 3 * tile + 2)
    for run in range(first_full, first_other):
        start, stop = tl.load(runs + 2 * run), tl.load(runs + 2 * run + 1)
        is_carried = start < num_carried
        key_run, key_step = _one_of(is_carried, carried_key, carried_key_token, key, key_token)
        value_run, value_step = _one_of(is_carried, carried_value, carried_value_token, value, value_token)
        for first in range(start, stop, BLOCK_N):
            at = (first + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
            block = tl.load(key_run + at * key_step + dims[None, :], mask=is_dim[None, :], other=0.0)
            scores, _ = scores_of(queries, block, scale, softcap, has_softcap, precision)
            is_there = is_value_dim[None, :]
            block = tl.load(value_run + at * value_step + value_dims[None, :], mask=is_there, other=0.0)
            largest, total, acc = _add(scores, block, largest, total, acc, precision)
    for run in range(first_other, end):
        start, stop = tl.load(runs + 2 * run), tl.load(runs + 2 * run + 1)
        is_carried = start < num_carried
        key_run, key_step = _one_of(is_carried, carried_key, carried_key_token, key, key_token)
        value_run, value_step = _one_of(is_carried, carried_value, carried_value_token, value, value_token)
        for first in range(start, stop, BLOCK_N):
            keys = first + tl.arange(0, BLOCK_N)
            is_key = keys < stop
            at = keys.to(tl.int64)[:, None]
            is_there = is_key[:, None] & is_dim[None, :]
            block = tl.load(key_run + at * key_step + dims[None, :], mask=is_there, other=0.0)
            scores, _ = scores_of(queries, block, scale, softcap, has_softcap, precision)
            sees = visibility_mask(places, keys, is_key, subtree_ends, positions, window, has_window)
            scores = tl.where(sees, scores, float("-inf"))
            is_there = is_key[:, None] & is_value_dim[None, :]
            block = tl.load(value_run + at * value_step + value_dims[None, :], mask=is_there, other=0.0)
            largest, total, acc = _add(scores, block, largest, total, acc, precision)

    if has_sinks:
        # A sink adds to the softmax's sum and nothing to its output.
        sink = tl.load(sinks + head).to(tl.float32) * _LOG2_E
        new = tl.maximum(largest, sink)
        total = total * tl.exp2(largest - new) + tl.exp2(sink - new)
        acc *= tl.exp2(largest - new)[:, None]
        largest = new
    acc /= total[:, None]
    tl.store(lse + head * tokens + rows, largest + tl.log2(total), mask=is_row)
    where = rows.to(tl.int64)[:, None] * out_token + head * out_head + value_dims[None, :]
    tl.store(out + where, acc.to(out.dtype.element_ty), mask=is_row[:, None] & is_value_dim[None, :])


@triton.jit
def _one_of(is_first, first, first_token, second, second_token):
    """One of two tensors, by its address and what lies between two tokens."""
    return tl.where(is_first, first, second), tl.where(is_first, first_token, second_token)


@triton.jit
def visibility_mask(places, keys, is_key, subtree_ends, positions, window, has_window: tl.constexpr):
    """Which tokens [BLOCK_M] see which keys [BLOCK_N]; both are given by their places among all keys."""
    ends = tl.load(subtree_ends + keys, mask=is_key, other=0)
    sees = (keys[None, :] <= places[:, None]) & (places[:, None] < ends[None, :])
    if has_window:
        depths = tl.load(positions + places)
        key_depths = tl.load(positions + keys, mask=is_key, other=0)
        sees &= depths[:, None] - key_depths[None, :] < window
    return sees


@triton.jit
def scores_of(queries, keys, scale, softcap, has_softcap: tl.constexpr, precision: tl.constexpr):
    """Scores of queries [BLOCK_M, size] and keys [BLOCK_N, size], as logarithms to base 2.

    Also the slope of the soft cap where they are, 1 without one.
    """
    scores = tl.dot(queries, tl.trans(keys), input_precision=precision) * scale
    slope = scores * 0 + 1
    if has_softcap:
        small = tl.exp2(tl.abs(scores) * (-2 * _LOG2_E))
        bent = (1 - small) / (1 + small)
        slope = 1 - bent * bent
        scores = softcap * tl.where(scores < 0, -bent, bent)
    return scores * _LOG2_E, slope


@triton.jit
def _add(scores, values, largest, total, acc, precision: tl.constexpr):
    """Adds a block of keys to the softmax: its largest score, the sum of weights relative to that, and of values."""
    new = tl.maximum(largest, tl.max(scores, 1))
    # A token that has seen no key yet.
    reference = tl.where(new == float("-inf"), 0.0, new)
    weights = tl.exp2(scores - reference[:, None])
    factor = tl.exp2(largest - reference)
    total = total * factor + tl.sum(weights, 1)
    acc = tl.dot(weights.to(values.dtype), values, acc * factor[:, None], input_precision=precision)
    return new, total, acc
