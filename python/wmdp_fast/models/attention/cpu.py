"""Attention over a packed token trie on a CPU: the kernel of `rust/core/src/kernels/attention`, with its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

from wmdp_fast import _rust

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def attend_on_cpu(
    query: torch.Tensor,
    runs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    segments: NDArray[Any],
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of a batch, in float32 whatever the dtype, on the threads that torch computes with.

    With gradients for query, key and value, if nothing was carried over to the batch.

    Args:
        query: [heads, T, head size].
        runs: Keys [key heads, N, head size] and values [key heads, N, value size], a run of tokens after the other; the
            last is the batch's own T tokens.
        segments: int64 [S, 4], as in `Layout`.
        scale: Factor of the scores.
        window: A token sees only keys less than so many positions before it.
        softcap: Scores s become `softcap * tanh(s / softcap)`.

    Returns:
        Outputs [T, heads, value size], and the log-sum-exps of the scores [T, heads], float32.

    Raises:
        ValueError: Shapes do not fit together, or a gradient is wanted and something was carried over.
    """
    options = {"scale": scale, "window": window, "softcap": softcap}
    if torch.is_grad_enabled() and any(one.requires_grad for one in (query, *(one for run in runs for one in run))):
        if len(runs) > 1:
            raise ValueError("attention to keys that were carried over has no gradient")
        found: tuple[torch.Tensor, torch.Tensor] = _WithGradient.apply(query, *runs[0], segments, options)
        return found
    return _forward(query, runs, segments, options)


def _forward(
    query: torch.Tensor,
    runs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    segments: NDArray[Any],
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    heads, tokens, _ = query.shape
    out, lse = _empty(tokens, heads, runs[-1][1].shape[-1]), _empty(tokens, heads)
    keys = [(_float32(key), _float32(value)) for key, value in runs]
    _rust.packed_attention(
        _float32(query), keys, segments, out.numpy(), lse.numpy(), threads=torch.get_num_threads(), **options
    )
    return out.to(query.dtype), lse


class _WithGradient(torch.autograd.Function):
    """The same as torch differentiates it."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: NDArray[Any],
        options: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = _forward(query, [(key, value)], segments, options)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.segments, ctx.options = segments, options
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, out_gradient: torch.Tensor, lse_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        heads, tokens, size = query.shape
        key_heads = key.shape[0]
        dq = _empty(key_heads, tokens, heads // key_heads * size)
        dk, dv = _empty(*key.shape), _empty(*value.shape)
        _rust.packed_attention_gradient(
            _float32(query),
            _float32(key),
            _float32(value),
            ctx.segments,
            _float32(out),
            _float32(lse),
            _float32(out_gradient),
            _float32(lse_gradient),
            dq.numpy(),
            dk.numpy(),
            dv.numpy(),
            threads=torch.get_num_threads(),
            **ctx.options,
        )
        by_head = dq.view(key_heads, tokens, -1, size).transpose(1, 2).reshape(heads, tokens, size)
        return by_head.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype), None, None


def _empty(*shape: int) -> torch.Tensor:
    # What torch makes unless told otherwise, and where, is a setting of the process.
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _float32(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor in the CPU's memory as numpy sees it; no copy if it is float32."""
    array: NDArray[Any] = tensor.detach().float().numpy()
    return array
