"""Attention over a packed token trie, for any model that goes through transformers' `AttentionInterface`.

A batch is one row of tokens `[1, T]`: the segments of a token trie, laid out depth-first. A token sees its ancestors
and the tokens before it in its own segment; because a segment's whole subtree is contiguous, one number a token says
all of it::

    token q sees token k  <=>  k <= q < subtree_end[k]

No mask is built. On a CPU one call of a kernel in Rust does a layer (`rust/core/src/attention`). On a GPU each segment
attends to itself (causal), each run of queries attends to the ancestor segments above it (in full), and the parts are
merged by their log-sum-exp, which gives the softmax over all of them exactly (as FlashAttention merges blocks, and
cascade attention shared prefixes). Keys and values of the segments that the next batch hangs below are carried over to
it, so a prefix is run once however many batches it spans.

Sliding windows (by position along the path), soft caps and attention sinks are exact. Whatever else a model asks of its
attention raises `NotPackableError`; such a model is scored on padded rows.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.cpu_attention import attend_on_cpu

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    # The output of one part [heads, queries, value size] and the log-sum-exp of its scores [heads, queries], float32.
    Part = tuple[torch.Tensor, torch.Tensor]
    # A level's call of the variable-length kernel, and the spans that it cannot do.
    Level = tuple["VarlenCall | None", tuple["Span", ...]]

ATTENTION_NAME = "wmdp_fast_packed"

# Where scores are computed in full, so many queries at a time: with 32 heads and 4,096 keys, 128 MiB of scores.
_QUERY_BLOCK = 256


class NotPackableError(ModelError):
    """A model asks something of its attention that a packed trie does not offer; the message says what."""


@dataclass(frozen=True)
class Span:
    """A run of queries and a run of keys. Keys are numbered with the carried tokens first, then the batch's own."""

    queries: slice
    keys: slice
    key_position: int


@dataclass(frozen=True)
class VarlenCall:
    """One call of the variable-length kernel: runs of queries, each with a run of keys. Its arrays are on the device.

    Attributes:
        queries: int64, the tokens of the batch that ask, run after run.
        query_ends: int32, where each run of those ends, 0 first.
        key_ends: int32, the same of keys.
        longest_queries: Length of the longest run of queries.
        longest_keys: Length of the longest run of keys.
        carried: The runs of keys that were carried over; they come first.
        own: int64, the keys that are the batch's own.
    """

    queries: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    longest_queries: int
    longest_keys: int
    carried: tuple[slice, ...]
    own: torch.Tensor

    @classmethod
    def of(cls, spans: Sequence[Span], num_carried: int, device: torch.device) -> VarlenCall:
        """The call for spans whose keys are in order."""
        own = [s.keys for s in spans if s.keys.stop > num_carried]
        return cls(
            queries=_to_device(_indices([span.queries for span in spans]), device),
            query_ends=_to_device(_ends([span.queries for span in spans]), device),
            key_ends=_to_device(_ends([span.keys for span in spans]), device),
            longest_queries=max(span.queries.stop - span.queries.start for span in spans),
            longest_keys=max(span.keys.stop - span.keys.start for span in spans),
            carried=tuple(span.keys for span in spans if span.keys.stop <= num_carried),
            own=_to_device(_indices(own) - num_carried, device),
        )


@dataclass(frozen=True)
class Layout:
    """Where the segments of a batch lie.

    Attributes:
        positions: int64 [T], the depth in tokens of each token of the batch.
        num_carried: Tokens carried over from the batch before: one path of the trie, root first.
        segments: int64 [S, 4], depth-first: first key, last key + 1, subtree's last key + 1, position of the first key.
        keep: int64 [K, 2], runs of keys (first, last + 1) that the next batch wants carried over: one path, root first.
    """

    positions: NDArray[np.int64]
    num_carried: int
    segments: NDArray[np.int64]
    keep: NDArray[np.int64]
    _on_device: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of_documents(cls, lengths: Sequence[int]) -> Layout:
        """Documents of at least one token, one behind the other, none of which sees anything of another."""
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - np.asarray(lengths, dtype=np.int64)
        return cls(
            positions=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
            num_carried=0,
            segments=np.stack([starts, ends, ends, np.zeros_like(starts)], axis=1),
            keep=np.zeros((0, 2), dtype=np.int64),
        )

    def positions_on(self, device: torch.device) -> torch.Tensor:
        """`positions` on a device, brought there once."""
        found = self._on_device.get(device)
        if found is None:
            found = self._on_device[device] = _to_device(self.positions, device)
        return cast("torch.Tensor", found)

    def sees_all(self, span: Span, window: int | None) -> bool:
        """Whether a window hides none of a run's keys from its queries."""
        return window is None or int(self.positions[span.queries].max()) - span.key_position < window

    def varlen_calls(self, device: torch.device, window: int | None) -> tuple[VarlenCall, list[Level]]:
        """The calls for a device, made once for all layers with the same window.

        Returns:
            The call of each segment to itself, and for each level its call, if there is one, with the spans of that
            level of which the window hides something.
        """
        found = self._on_device.get((device, window))
        if found is None:
            levels: list[Level] = []
            for level in self.levels:
                whole = [span for span in level if self.sees_all(span, window)]
                call = VarlenCall.of(whole, self.num_carried, device) if whole else None
                levels.append((call, tuple(span for span in level if not self.sees_all(span, window))))
            found = self._on_device[device, window] = VarlenCall.of(self.own, self.num_carried, device), levels
        return cast("tuple[VarlenCall, list[Level]]", found)

    @cached_property
    def own(self) -> tuple[Span, ...]:
        """The segments of the batch itself; together they are all its tokens in order."""
        carried = self.num_carried
        return tuple(
            Span(slice(start - carried, end - carried), slice(start, end), position)
            for start, end, _, position in self.segments.tolist()
            if end > carried
        )

    @cached_property
    def levels(self) -> tuple[tuple[Span, ...], ...]:
        """Segments with the queries that see them in full, by depth; the queries of one level never overlap."""
        levels: list[list[Span]] = []
        path: list[tuple[int, int]] = []  # above the segment at hand: where each subtree ends, and its level
        for start, end, subtree_end, position in self.segments.tolist():
            while path and path[-1][0] <= start:
                path.pop()
            level = path[-1][1] if path else -1
            queries = slice(max(end - self.num_carried, 0), subtree_end - self.num_carried)
            if queries.start < queries.stop:
                above = levels[level][-1] if level >= 0 else None
                if above is not None and above.queries == queries and above.keys.stop == start:
                    # Carried segments that the same queries see are one run of keys.
                    levels[level][-1] = Span(queries, slice(above.keys.start, end), above.key_position)
                else:
                    level += 1
                    levels.extend([[]] if level == len(levels) else [])
                    levels[level].append(Span(queries, slice(start, end), position))
            path.append((subtree_end, level))
        return tuple(tuple(level) for level in levels)


class Carried:
    """Keys and values that one batch leaves to the next, for each attention call of a forward pass in their order."""

    def __init__(self) -> None:
        self._given: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._left: list[tuple[torch.Tensor, torch.Tensor]] = []

    def begin(self) -> None:
        """A forward pass begins: forgets what a failed one has left, but nothing of what that was given."""
        self._left = []

    def take(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys [key heads, carried, head size] and values for the attention call at hand; None in the first batch."""
        return self._given[len(self._left)] if self._given else None

    def leave(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """What the next batch will be given for the attention call at hand; the next call follows."""
        self._left.append((keys, values))

    def commit(self) -> None:
        """The forward pass is done: what it left is given to the next."""
        self._given, self._left = self._left, []

    def skip(self, num_carried: int, keep: NDArray[np.int64]) -> None:
        """A batch is left out; the next one is given what it wants of what this one was given."""
        # What is carried is a path from the root, so what is wanted of it is its first tokens.
        wanted = max((stop for _, stop in keep.tolist() if stop <= num_carried), default=0)
        self._given = [(keys[:, :wanted].clone(), values[:, :wanted].clone()) for keys, values in self._given]

    @property
    def calls(self) -> int:
        """Attention calls of the last finished forward pass."""
        return len(self._given)


@dataclass(frozen=True)
class PackedMask:
    """What stands in for the attention mask: the batch, and the sliding window of the layers that this mask is for."""

    layout: Layout
    carried: Carried | None
    window: int | None = None


_batch: ContextVar[PackedMask | None] = ContextVar("packed_batch", default=None)


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Lets a model attend by trie; inside, it can only be called within `packed_batch`."""
    previous: str | dict[str, str] = model.config._attn_implementation
    if model.config.sub_configs:
        configs = {name: getattr(model.config, name) for name in model.config.sub_configs}
        parts = {name: config._attn_implementation for name, config in configs.items() if config is not None}
        previous = {"": model.config._attn_implementation, **parts}
    model.set_attn_implementation(ATTENTION_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(previous)


@contextmanager
def packed_batch(layout: Layout, carried: Carried | None = None) -> Iterator[None]:
    """The batch of the one forward pass inside; if that returns, what it leaves is what the next batch is given."""
    if carried is not None:
        carried.begin()
    token = _batch.set(PackedMask(layout, carried))
    try:
        yield
        if carried is not None:
            carried.commit()
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
    return PackedMask(current.layout, current.carried, local_size)


# What models pass along that says nothing about how to attend, or what the mask already says.
_HARMLESS = {"sliding_window", "position_ids", "cache_position", "is_causal", "dropout", "use_cache"}


def packed_attention_forward(
    module: torch.nn.Module,
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
        mask: The batch. What is left to its `carried`, if it has one, is ready for the next batch.
        scale: Factor of the scores.
        softcap: Scores s become `softcap * tanh(s / softcap)` (Gemma 2).
        sinks: [heads], the score of a key that every token sees and that has no value (gpt-oss).

    Returns:
        [T, heads, value size].
    """
    value_size = value.shape[-1]
    if query.shape[-1] != value_size and query.device.type != "cpu":
        # Torch's kernels want one size (multi-head latent attention has two); zeros change neither scores nor outputs.
        size = max(query.shape[-1], value_size)
        query, key, value = (functional.pad(x, (0, size - x.shape[-1])) for x in (query, key, value))
    carried = None if mask.carried is None else mask.carried.take()
    keys = _Keys(key, value, carried, mask.layout.num_carried)
    out, lse = _Call(query, keys, mask.layout, scale, mask.window, softcap).run()
    if mask.carried is not None:
        mask.carried.leave(*keys.runs(mask.layout.keep))
    if sinks is not None:
        # A sink adds exp(sink) to the softmax's sum and nothing to its output.
        out = (out * torch.sigmoid(lse - sinks.float()).unsqueeze(-1)).to(out.dtype)
    return out[..., :value_size]


class _Keys:
    """Keys and values of a batch: those carried over, then its own."""

    def __init__(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        carried: tuple[torch.Tensor, torch.Tensor] | None,
        num_carried: int,
    ) -> None:
        self.own = (key, value)
        self.carried = carried if carried is not None else (key[:, :0], value[:, :0])
        self.num_carried = num_carried

    def run(self, span: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """A run of keys and values that is either all carried or all of the batch."""
        if span.stop <= self.num_carried:
            return self.carried[0][:, span], self.carried[1][:, span]
        own = slice(span.start - self.num_carried, span.stop - self.num_carried)
        return self.own[0][:, own], self.own[1][:, own]

    def of(self, call: VarlenCall) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values that a call asks for, run after run."""
        found = []
        for carried, own in zip(self.carried, self.own, strict=True):
            parts = [carried[:, run] for run in call.carried]
            if len(call.own) or not parts:
                parts.append(own.index_select(1, call.own))
            found.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
        return found[0], found[1]

    def runs(self, spans: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Several runs as one, copied, so that the rest can be freed."""
        runs = [self.run(slice(start, stop)) for start, stop in spans.tolist()] or [self.run(slice(0, 0))]
        return torch.cat([key for key, _ in runs], dim=1), torch.cat([value for _, value in runs], dim=1)


@dataclass(frozen=True)
class _Call:
    """One attention call: query [heads, T, size]; outputs [T, heads, value size] and log-sum-exps [T, heads]."""

    query: torch.Tensor
    keys: _Keys
    layout: Layout
    scale: float
    window: int | None
    softcap: float | None

    def run(self) -> Part:
        """The way that is fastest on the device at hand."""
        if self.query.device.type == "cpu":
            return self.run_on_cpu()
        return self.run_varlen() if self.can_use_varlen() else self.run_in_full()

    def run_on_cpu(self) -> Part:
        """One call of the kernel in Rust."""
        runs = [run for run in (self.keys.carried, self.keys.own) if run[0].shape[1]]
        return attend_on_cpu(
            self.query, runs, self.layout.segments, scale=self.scale, window=self.window, softcap=self.softcap
        )

    def run_in_full(self) -> Part:
        """Part by part, every score in memory: where no kernel returns its log-sum-exp."""
        heads, tokens, _ = self.query.shape
        out = self.query.new_empty(tokens, heads, self.keys.own[1].shape[-1])
        lse = torch.empty(tokens, heads, dtype=torch.float32, device=self.query.device)
        for span in self.layout.own:
            part, part_lse = self._in_full(span)
            out[span.queries] = part.transpose(0, 1)
            lse[span.queries] = part_lse.transpose(0, 1)
        for level in self.layout.levels:
            for span in level:
                part, part_lse = self._in_full(span)
                merge(out[span.queries], lse[span.queries], part.transpose(0, 1), part_lse.transpose(0, 1))
        return out, lse

    def run_varlen(self) -> Part:
        """One call of torch's variable-length flash kernel a level."""
        own, levels = self.layout.varlen_calls(self.query.device, self.window)
        tokens = self.query.transpose(0, 1)
        # A batch's segments are all its tokens in order: queries and keys are taken as they are.
        out, lse = self._varlen(own, tokens, *self.keys.own, causal=True)
        for call, rest in levels:
            if call is not None:
                part, part_lse = self._varlen(call, tokens[call.queries], *self.keys.of(call), causal=False)
                above, above_lse = out[call.queries], lse[call.queries]
                merge(above, above_lse, part, part_lse)
                out[call.queries], lse[call.queries] = above, above_lse
            for span in rest:
                part, part_lse = self._in_full(span)
                merge(out[span.queries], lse[span.queries], part.transpose(0, 1), part_lse.transpose(0, 1))
        return out, lse

    def can_use_varlen(self) -> bool:
        """Whether torch's variable-length flash kernel takes these tensors."""
        size = self.query.shape[-1]
        half = self.query.dtype in (torch.float16, torch.bfloat16)
        return self.query.is_cuda and half and size <= 256 and size % 8 == 0 and self.softcap is None

    def _varlen(
        self, call: VarlenCall, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool
    ) -> Part:
        """Query [tokens that ask, heads, size]; key and value [key heads, keys, size]."""
        # Slow to import, and of no use on a CPU.
        from torch.nn.attention.varlen import AuxRequest, varlen_attn

        out, lse = varlen_attn(
            query.contiguous(),
            key.transpose(0, 1).contiguous(),
            value.transpose(0, 1).contiguous(),
            call.query_ends,
            call.key_ends,
            call.longest_queries,
            call.longest_keys,
            return_aux=AuxRequest(lse=True),
            scale=self.scale,
            window_size=((self.window or 0) - 1, 0) if causal else (-1, -1),
            enable_gqa=key.shape[0] != query.shape[1],
        )
        return out, lse.transpose(0, 1).contiguous()

    def _in_full(self, span: Span) -> Part:
        """A part with every score in memory, in float32; what its queries do not see is hidden."""
        blocks = [
            self._block(span, slice(start, min(start + _QUERY_BLOCK, span.queries.stop)))
            for start in range(span.queries.start, span.queries.stop, _QUERY_BLOCK)
        ]
        return torch.cat([out for out, _ in blocks], dim=1), torch.cat([lse for _, lse in blocks], dim=1)

    def _block(self, span: Span, queries: slice) -> Part:
        positions = self.layout.positions[queries]
        # Keys that none of the queries sees are left out, all but one.
        first, last = 0, min(span.keys.stop - span.keys.start - 1, int(positions.max()) - span.key_position)
        if self.window is not None:
            first = min(max(int(positions.min()) - self.window + 1 - span.key_position, 0), last)
        keys = slice(span.keys.start + first, span.keys.start + last + 1)
        key, value = self.keys.run(keys)
        heads, device = self.query.shape[0], self.query.device
        groups = (key.shape[0], heads // key.shape[0])
        query = self.query[:, queries].reshape(*groups, -1, self.query.shape[-1])
        scores = torch.matmul(query, key.unsqueeze(1).transpose(-1, -2)).float() * self.scale
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        key_positions = torch.arange(span.key_position + first, span.key_position + last + 1, device=device)
        distance = self.layout.positions_on(device)[queries].unsqueeze(1) - key_positions
        hidden = distance < 0
        if self.window is not None:
            hidden |= distance >= self.window
        scores.masked_fill_(hidden, -torch.inf)
        lse = torch.logsumexp(scores, dim=-1)
        # A query that sees no key here has a log-sum-exp of -inf, so no weight in the merge; its output is 0, not NaN.
        weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1))
        out = torch.matmul(weights.to(value.dtype), value.unsqueeze(1))
        return out.flatten(0, 1), lse.flatten(0, 1)


def merge(out: torch.Tensor, lse: torch.Tensor, part: torch.Tensor, part_lse: torch.Tensor) -> None:
    """Merges the attention to one set of keys into that to another, in place.

    Args:
        out: [T, heads, size], becomes the softmax over both sets.
        lse: [T, heads], log-sum-exp of the scores behind `out`, finite; becomes that of both sets.
        part: [T, heads, size].
        part_lse: [T, heads], -inf where `part` saw no key.
    """
    weight = torch.sigmoid(part_lse - lse).unsqueeze(-1)
    if out.dtype == torch.float32:
        out.lerp_(part, weight)
    else:
        out.copy_(torch.lerp(out.float(), part.float(), weight))
    torch.logaddexp(lse, part_lse, out=lse)


def _ends(runs: list[slice]) -> NDArray[np.int32]:
    """Where each of several runs ends once they are put together, 0 first."""
    return np.cumsum([0] + [run.stop - run.start for run in runs], dtype=np.int32)


def _indices(runs: list[slice]) -> NDArray[np.int64]:
    """Every index of several runs."""
    return np.concatenate([np.arange(run.start, run.stop) for run in [*runs, slice(0, 0)]])


def _to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array on a device; to a GPU by a copy that nobody waits for, which takes pinned memory."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
