"""Attention over a packed token trie, for any model that goes through transformers' `AttentionInterface`.

A batch is one row of tokens `[1, T]`: the segments of a token trie, laid out depth-first. A token sees its ancestors
and the tokens before it in its own segment; because a segment's whole subtree is contiguous, one number a token says
all of it::

    token q sees token k  <=>  k <= q < subtree_end[k]

No mask is built. One call of a kernel does a layer: on a CPU in Rust (`rust/core/src/kernels/attention`), on a GPU in
Triton (`gpu_forward`). Keys and values of the segments that the next batch hangs below are carried over to it, so a
prefix is run once however many batches it spans.

Sliding windows (by position along the path), soft caps and attention sinks are exact. Whatever else a model asks of its
attention raises `NotPackableError`; such a model is scored on padded rows.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.attention.cpu import attend_on_cpu
from wmdp_fast.models.configurations import configurations_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from wmdp_fast.models.attention.layout import Layout

    _KeysAndValues = tuple[torch.Tensor, torch.Tensor]

ATTENTION_NAME = "wmdp_fast_packed"


class NotPackableError(ModelError):
    """A model asks something of its attention that a packed trie does not offer; the message says what."""


class PrefixKVCache:
    """Keys and values that one batch passes on to the next, for each attention call of a forward pass in their order.

    They are those of a path of the trie from its root: the prefix that the next batch's segments hang below.
    """

    def __init__(self) -> None:
        self._current: list[_KeysAndValues] = []
        self._next: list[_KeysAndValues] = []

    def begin(self) -> None:
        """A forward pass begins: forgets what a failed one has put, but nothing of what that could get."""
        self._next = []

    def get(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys [key heads, carried, head size] and values for the attention call at hand; None in the first batch."""
        return self._current[len(self._next)] if self._current else None

    def put(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """What the next batch will get for the attention call at hand; the next call follows."""
        self._next.append((keys, values))

    def commit(self) -> None:
        """The forward pass is done: what it put is what the next one gets."""
        self._current, self._next = self._next, []

    def skip(self, num_carried: int, keep: NDArray[np.int64]) -> None:
        """A batch is left out; the next one gets what it wants of what this one would have got."""
        # What is carried is a path from the root, so what is wanted of it is its first tokens.
        wanted = max((stop for _, stop in keep.tolist() if stop <= num_carried), default=0)
        self._current = [(keys[:, :wanted].clone(), values[:, :wanted].clone()) for keys, values in self._current]

    def exchange(self, current: list[_KeysAndValues]) -> list[_KeysAndValues]:
        """Sets what the next forward pass gets, as one layer's was taken out of another cache; returns what it was."""
        self._current, before = current, self._current
        return before

    @property
    def calls(self) -> int:
        """Attention calls of the last finished forward pass."""
        return len(self._current)


@dataclass(frozen=True)
class PackedMask:
    """What stands in for the attention mask: the batch, and the sliding window of the layers that this mask is for."""

    layout: Layout
    cache: PrefixKVCache | None
    window: int | None = None


_batch: ContextVar[PackedMask | None] = ContextVar("packed_batch", default=None)


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Lets a model attend by trie; inside, it can only be called within `packed_batch`."""
    with attending_by(model, ATTENTION_NAME):
        yield


@contextmanager
def attending_by(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Sets a model to an attention implementation that transformers knows by name, and puts its own back."""
    before = [(config, config._attn_implementation) for config in configurations_of(model)]
    try:
        model.set_attn_implementation(name)
        yield
    finally:
        # Not by `set_attn_implementation`: of what a class does not take it would raise, though it was so before.
        for config, own in before:
            config._attn_implementation_internal = own


def attention_names(model: nn.Module) -> set[str]:
    """The attention implementations that a model's parts are set to."""
    return {str(config._attn_implementation) for config in configurations_of(model)}


@contextmanager
def packed_batch(layout: Layout, cache: PrefixKVCache | None = None) -> Iterator[None]:
    """The batch of the one forward pass inside; once that returns, what it put in the cache is the next batch's."""
    if cache is not None:
        cache.begin()
    token = _batch.set(PackedMask(layout, cache))
    try:
        yield
        if cache is not None:
            cache.commit()
    finally:
        _batch.reset(token)


def packed_mask(
    *, q_length: int, kv_length: int, local_size: int | None = None, use_vmap: bool = False, **_: Any
) -> PackedMask:
    """What transformers calls to build a mask; `local_size` is the sliding window of the layers the mask is for."""
    current = _batch.get()
    if current is None:
        raise RuntimeError("a model with packed attention can only be called within `packed_batch`")
    tokens = len(current.layout.positions)
    if (q_length, kv_length) != (tokens, tokens):
        raise NotPackableError(f"its mask is for {q_length} x {kv_length} tokens, the batch has {tokens}")
    if use_vmap:
        raise NotPackableError("it changes the causal mask")
    return PackedMask(current.layout, current.cache, local_size)


# What models pass along that says nothing about how to attend, or what the mask already says.
_HARMLESS = {"sliding_window", "position_ids", "cache_position", "is_causal", "dropout", "use_cache"}


def packed_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: PackedMask | torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls to attend: query [1, heads, T, size], key and value [1, key heads, T, size]."""
    if not isinstance(attention_mask, PackedMask):
        raise NotPackableError(f"{type(module).__name__} attends with a mask of its own making")
    if not (getattr(module, "is_causal", True) and kwargs.get("is_causal") is not False):
        raise NotPackableError(f"{type(module).__name__} is not causal")
    for name, argument in kwargs.items():
        if name not in _HARMLESS and isinstance(argument, torch.Tensor):
            raise NotPackableError(f"{type(module).__name__} passes {name} to its attention")
    tokens = len(attention_mask.layout.positions)
    if query.shape[0] != 1 or query.shape[2] != tokens or key.shape[2] != tokens:
        raise NotPackableError(f"{type(module).__name__} attends to {key.shape[2]} tokens in a batch of {tokens}")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    out = attend(query[0], key[0], value[0], attention_mask, scale=scale, softcap=softcap, sinks=s_aux)
    return out.unsqueeze(0), None


AttentionInterface.register(ATTENTION_NAME, packed_attention_forward)
AttentionMaskInterface.register(ATTENTION_NAME, packed_mask)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: PackedMask,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of a batch's tokens to their ancestors and themselves.

    Args:
        query: [heads, T, head size].
        key: [key heads, T, head size]; each serves heads / key heads query heads.
        value: [key heads, T, value size].
        mask: The batch. What is put in its `cache`, if it has one, is ready for the next batch.
        scale: Factor of the scores.
        softcap: Scores s become `softcap * tanh(s / softcap)` (Gemma 2).
        sinks: [heads], the score of a key that every token sees and that has no value (gpt-oss).

    Returns:
        [T, heads, value size].
    """
    carried = None if mask.cache is None else mask.cache.get()
    runs = [run for run in (carried, (key, value)) if run is not None and run[0].shape[1]]
    options: dict[str, Any] = {"scale": scale, "window": mask.window, "softcap": softcap}
    if query.device.type == "cpu":
        out, lse = attend_on_cpu(query, runs, mask.layout.segments, **options)
        if sinks is not None:
            # A sink adds exp(sink) to the softmax's sum and nothing to its output.
            out = (out * torch.sigmoid(lse - sinks.float()).unsqueeze(-1)).to(out.dtype)
    else:
        out = _kernel_for(query.device)(query, runs, mask.layout, sinks=sinks, **options)
    if mask.cache is not None:
        mask.cache.put(*_kept(runs, mask.layout.keep))
    return out


def _kernel_for(device: torch.device) -> Callable[..., torch.Tensor]:
    """The kernel for a device that is no CPU."""
    if device.type != "cuda":
        raise NotPackableError(f"there is no packed attention for devices of the kind {device.type}")
    # Slow to import, and of no use on a CPU.
    from wmdp_fast.models.attention.gpu import attend_on_gpu

    return attend_on_gpu


def _joined(runs: Sequence[_KeysAndValues]) -> _KeysAndValues:
    """Runs of keys and values as one, copied."""
    return torch.cat([key for key, _ in runs], dim=1), torch.cat([value for _, value in runs], dim=1)


def _kept(runs: Sequence[_KeysAndValues], keep: NDArray[np.int64]) -> _KeysAndValues:
    """What lies in some runs of all keys, copied, so that the rest can be freed."""
    key, value = runs[0]
    pieces = [(key[:, :0], value[:, :0])]
    for start, stop in keep.tolist():
        before = 0
        for key, value in runs:
            wanted = slice(max(start - before, 0), max(stop - before, 0))
            pieces.append((key[:, wanted], value[:, wanted]))
            before += key.shape[1]
    return _joined(pieces)
