"""Batches of a trie, run one after another without a pause between them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial as partial_function
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wmdp_fast.models.attention.layout import Layout
from wmdp_fast.models.attention.packed import PrefixKVCache, packed_batch
from wmdp_fast.models.fused.last_layer import reading
from wmdp_fast.models.threads import computing
from wmdp_fast.scoring.padded import is_out_of_memory
from wmdp_fast.scoring.scores import PartialScores, TargetScores, look_up
from wmdp_fast.scoring.streamed import Batch, scored_in_chunks
from wmdp_fast.scoring.trie_budget import bytes_of_keys_and_values, num_kept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from wmdp_fast._rust import Trie, TrieBatch
    from wmdp_fast.models.load import LoadedModel
    from wmdp_fast.models.streamed import StreamedModel
    from wmdp_fast.scoring.chunk_memory import Needs
    from wmdp_fast.scoring.lm_head import ChunkedLMHead
    from wmdp_fast.scoring.scores import ScoreMode
    from wmdp_fast.scoring.token_scores import TokenScores
    from wmdp_fast.scoring.trunk import Passes


@dataclass
class Pipeline:
    """Runs batches one after another without a pause between them.

    Batches are planned on a thread of Rust's. On a GPU, where a forward pass is only asked for and done later, the
    scores of a batch are fetched after the next one was asked for, so that the GPU always has something to do.
    """

    loaded: LoadedModel
    lm_head: ChunkedLMHead | None
    trie: Trie
    tokens: TokenScores
    partial: PartialScores
    score_mode: ScoreMode
    progress: Callable[[int, int], None] | None
    begin: float
    passes: Passes
    most_read: float

    def run(self, batches: Iterator[TrieBatch], needed: Mapping[int, bool]) -> TrieBatch | None:
        """Runs the batches that are needed; returns the one for which memory ran out, if one did."""
        cache = PrefixKVCache()
        pending: _Pending | None = None
        try:
            index = -1
            while True:
                index += 1
                asked = time.perf_counter()
                batch = next(batches, None)
                waited = time.perf_counter() - asked
                if batch is None:
                    return None
                if not needed[index]:
                    cache.skip(batch.num_carried, batch.keep)
                    continue
                with self.passes.batch(index):
                    started = self._start(batch, cache, None if pending is None else pending.ended)
                # Nothing of the batch before may be lost, whatever becomes of this one.
                pending, before = None, pending
                if before is not None:
                    self._finish(before)
                if started is None:
                    return batch
                pending = started
                if self.loaded.device.type != "cuda":
                    self.partial.seconds_waiting += waited
                    pending = None
                    self._finish(started)
        finally:
            if pending is not None:
                self._finish(pending)

    def run_streamed(
        self, batches: Iterator[TrieBatch], needed: Mapping[int, bool], streamed: StreamedModel, needs: Needs
    ) -> TrieBatch | None:
        """As `run`, layer by layer over as many batches as there is memory for."""
        cache = PrefixKVCache()
        taken: list[TrieBatch] = []
        width = bytes_of_keys_and_values(self.loaded)

        def prepared() -> Iterator[Batch[_Pending | _Hidden]]:
            for index, batch in enumerate(batches):
                skip = partial_function(cache.skip, batch.num_carried, batch.keep)
                layout = Layout(batch.position_ids, batch.num_carried, batch.segments, batch.keep)
                if needed[index]:
                    taken.append(batch)
                hidden_only = self.lm_head is not None
                run = partial_function(self._pass, layout, batch, cache, None, hidden_only) if needed[index] else None
                within = partial_function(_reading, batch, self.most_read)
                yield Batch(batch.input_ids.size, run, skip, num_kept(batch) * width, within)

        # A part of the vocabulary is read for all batches of a chunk.
        look_up = None if self.lm_head is None else partial_function(_looked_up, self.lm_head)
        scored = scored_in_chunks(streamed, prepared(), needs, cache=cache, progress=self.progress, together=look_up)
        try:
            for pending in scored:
                assert isinstance(pending, _Pending)  # noqa: S101 (for the type checker)
                self._finish(pending)
                taken.pop(0)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return max(taken, key=lambda batch: batch.input_ids.size)
        return None

    def _start(self, batch: TrieBatch, cache: PrefixKVCache, previous: torch.cuda.Event | None) -> _Pending | None:
        """Asks for one forward pass after the previous one has ended; None if memory ran out."""
        layout = Layout(batch.position_ids, batch.num_carried, batch.segments, batch.keep)
        try:
            started = self._pass(layout, batch, cache, previous)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        assert isinstance(started, _Pending)  # noqa: S101 (for the type checker)
        return started

    def _pass(
        self,
        layout: Layout,
        batch: TrieBatch,
        cache: PrefixKVCache,
        previous: torch.cuda.Event | None,
        hidden_only: bool = False,
    ) -> _Pending | _Hidden:
        with computing():
            on_device = _OnDevice(batch, self.loaded.device, previous)
            inputs: dict[str, Any] = {
                "input_ids": on_device["input_ids"].unsqueeze(0),
                "position_ids": on_device["position_ids"].unsqueeze(0),
                # Without one, transformers looks at the positions for sequences put one behind another, and waits.
                "attention_mask": torch.ones(1, batch.input_ids.size, dtype=torch.bool, device=self.loaded.device),
                "use_cache": False,
            }
            targets = on_device["target_readouts"], on_device["target_tokens"]
            read = reading(on_device["readouts"], batch.input_ids.size, self.most_read)
            if self.lm_head is not None:
                with packed_batch(layout, cache), read:
                    hidden = self.lm_head.base(**inputs).last_hidden_state[0, on_device["readouts"]]
                if hidden_only:
                    return _Hidden(batch, on_device, hidden, *targets)
                return _Pending(batch, on_device, self.lm_head.look_up(hidden, *targets), hidden.dtype)
            with packed_batch(layout, cache), read:
                logits = self.loaded.model(**inputs, logits_to_keep=on_device["readouts"]).logits[0]
            return _Pending(batch, on_device, look_up(logits, *targets, self.score_mode), logits.dtype)

    def _finish(self, pending: _Pending) -> None:
        """Waits for a batch and enters its scores."""
        batch, partial = pending.batch, self.partial
        found = pending.fetch()
        self.tokens.enter(batch.targets, TargetScores.from_host(found, pending.dtype, self.score_mode), partial)
        partial.seconds_waiting += pending.on_device.waited()
        now = time.perf_counter()
        partial.seconds += now - self.begin
        self.begin = now
        partial.tokens_run += batch.input_ids.size
        partial.batches += 1
        if self.progress is not None and self.loaded.streamed is None:
            self.progress(batch.stop, self.trie.num_paths)


def _reading(batch: TrieBatch, most_read: float, _layer: int) -> AbstractContextManager[None]:
    return reading(torch.from_numpy(batch.readouts), batch.input_ids.size, most_read)


@dataclass
class _Hidden:
    """A batch of which the vocabulary has not been asked yet."""

    batch: TrieBatch
    on_device: _OnDevice
    states: torch.Tensor
    readouts: torch.Tensor
    tokens: torch.Tensor


def _looked_up(lm_head: ChunkedLMHead, batches: Sequence[_Pending | _Hidden]) -> list[_Pending | _Hidden]:
    hidden = [one for one in batches if isinstance(one, _Hidden)]
    with computing():
        found = lm_head.look_up_all([(one.states, one.readouts, one.tokens) for one in hidden])
    return [
        _Pending(one.batch, one.on_device, scores, one.states.dtype) for one, scores in zip(hidden, found, strict=True)
    ]


class _OnDevice:
    """The arrays of a batch that the device needs, brought there by one copy that nobody waits for."""

    _NAMES = ("input_ids", "position_ids", "readouts", "target_readouts", "target_tokens")

    def __init__(self, batch: TrieBatch, device: torch.device, previous: torch.cuda.Event | None) -> None:
        arrays = [getattr(batch, name) for name in self._NAMES]
        host = torch.from_numpy(np.concatenate(arrays))
        if device.type == "cuda":
            # Only from pinned memory does a copy leave this thread free. It is kept until the batch is done.
            self._host = host.pin_memory()
            host = self._host.to(device, non_blocking=True)
        parts: Sequence[torch.Tensor] = torch.split(host, [len(array) for array in arrays])
        self._arrays = dict(zip(self._NAMES, parts, strict=True))
        self._previous = previous
        self._started = _recorded_event(device)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._arrays[name]

    def waited(self) -> float:
        """Seconds between the end of the batch before and the beginning of this one, which is done."""
        if self._previous is None or self._started is None:
            return 0.0
        return float(self._previous.elapsed_time(self._started)) / 1000


class _Pending:
    """A batch whose scores are on their way to the host."""

    def __init__(self, batch: TrieBatch, on_device: _OnDevice, found: torch.Tensor, dtype: torch.dtype) -> None:
        self.batch = batch
        self.on_device = on_device
        self.dtype = dtype
        self.ended = _recorded_event(found.device)
        self._found = found
        if self.ended is not None:
            pinned = torch.empty(found.shape, dtype=found.dtype, device="cpu", pin_memory=True)
            self._found = pinned.copy_(found, non_blocking=True)
        self._copied = _recorded_event(found.device)

    def fetch(self) -> torch.Tensor:
        """What `look_up` found, on the host."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._found


def _recorded_event(device: torch.device) -> torch.cuda.Event | None:
    """A mark in a GPU's queue that says when it was reached."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
