"""Batches of documents, as a step runs them: side by side with padding, or packed back to back without."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import pad

from wmdp_fast.models.attention.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from wmdp_fast.prompts.documents import CorpusTokens


@dataclass(frozen=True)
class Batch:
    """Some documents of a corpus.

    Attributes:
        inputs: What a model is called with, each [B, S]: `input_ids`, int64; `attention_mask`, 1 for real tokens; and
            of a packed batch `position_ids`, int64.
        key: Equal for two batches of the same documents.
        documents: Their numbers in the corpus, in the batch's order.
        layout: Where the documents of a packed batch lie, or None if they are padded.
        counted: [B, S], 1 where the loss of predicting a token counts; None where that of every real one does.
    """

    inputs: dict[str, Tensor]
    key: Hashable
    documents: tuple[int, ...]
    layout: Layout | None = None
    counted: Tensor | None = None

    @property
    def attention_mask(self) -> Tensor:
        """[B, S], 1 for real tokens."""
        return self.inputs["attention_mask"]

    @property
    def shape(self) -> torch.Size:
        """[B, S]."""
        return self.inputs["input_ids"].shape

    @property
    def num_tokens(self) -> int:
        """Tokens that are computed, padding included."""
        return self.inputs["input_ids"].numel()

    def document_of_tokens(self) -> Tensor:
        """The place of its document in the batch for each real token, row after row: int64 [N], ascending."""
        if self.layout is not None:
            return ((self.inputs["position_ids"] == 0).cumsum(dim=1) - 1)[0]
        row, _ = self.attention_mask.nonzero(as_tuple=True)
        return row

    def part(self, first: int, last: int) -> Batch:
        """Some neighbors of its documents, as they lie in it: those at the places from `first` to below `last`."""
        rows, columns, layout = slice(first, last), slice(None), None
        if self.layout is not None:
            starts, ends = self.layout.segments[first:last, 0], self.layout.segments[first:last, 1]
            rows, columns = slice(None), slice(int(starts[0]), int(ends[-1]))
            layout = Layout.of_documents((ends - starts).tolist())
        return Batch(
            {name: tensor[rows, columns] for name, tensor in self.inputs.items()},
            (self.key, first, last),
            self.documents[first:last],
            layout,
            counted=None if self.counted is None else self.counted[rows, columns],
        )


def num_batches(corpus: CorpusTokens, batch_size: int) -> int:
    """How many batches a corpus makes; the last may be smaller."""
    return -(-len(corpus) // batch_size)


def padded_documents(
    corpus: CorpusTokens, index: int, *, batch_size: int, max_length: int, pad_id: int, device: torch.device
) -> Batch:
    """Cuts a batch out of a corpus, in its order: [documents, longest], padded on the left as in the original."""
    numbers, rows = _documents(corpus, index, batch_size, max_length)
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask, responses = (np.zeros((len(rows), width), dtype=np.int64) for _ in range(2))
    for at, (number, row) in enumerate(zip(numbers, rows, strict=True)):
        ids[at, width - len(row) :] = row
        mask[at, width - len(row) :] = 1
        responses[at, width - len(row) :] = _is_response(corpus, number, len(row))
    inputs = {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).to(device)}
    counted = None if corpus.kind == "documents" else torch.from_numpy(responses).to(device)
    return Batch(inputs, (id(corpus), index, batch_size, max_length), numbers, counted=counted)


def packed_documents(
    corpus: CorpusTokens, index: int, *, batch_size: int, max_length: int, device: torch.device
) -> Batch:
    """The same documents in one row without padding: [1, all their tokens], each at positions from 0 on."""
    numbered = [one for one in zip(*_documents(corpus, index, batch_size, max_length), strict=True) if len(one[1])]
    numbers, rows = zip(*numbered, strict=True)
    layout = Layout.of_documents([len(row) for row in rows])
    ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))
    inputs = {
        "input_ids": ids.unsqueeze(0).to(device),
        "attention_mask": torch.ones_like(ids).unsqueeze(0).to(device),
        "position_ids": torch.from_numpy(layout.positions).unsqueeze(0).to(device),
    }
    responses = [_is_response(corpus, number, len(row)) for number, row in numbered]
    counted = None if corpus.kind == "documents" else torch.from_numpy(np.concatenate(responses)).unsqueeze(0)
    return Batch(
        inputs,
        (id(corpus), index, batch_size, max_length),
        numbers,
        layout,
        counted=None if counted is None else counted.to(device),
    )


def lengthened(batch: Batch, length: int, pad_id: int) -> Batch:
    """A padded batch with more padding, up to a length in tokens."""
    padding = (length - batch.shape[1], 0)
    inputs = {
        "input_ids": pad(batch.inputs["input_ids"], padding, value=pad_id),
        "attention_mask": pad(batch.attention_mask, padding),
    }
    return replace(batch, inputs=inputs, counted=None if batch.counted is None else pad(batch.counted, padding))


def lengths_by_batch(corpus: CorpusTokens, *, batch_size: int, max_length: int) -> Iterator[list[int]]:
    """Tokens of the documents of each batch that the corpus makes; empty ones are left out."""
    for index in range(num_batches(corpus, batch_size)):
        yield [len(row) for row in _documents(corpus, index, batch_size, max_length)[1] if len(row)]


def _is_response(corpus: CorpusTokens, number: int, length: int) -> NDArray[np.int64]:
    """1 for each of a document's first tokens that is no prompt's, int64 [length]."""
    prompt = 0 if corpus.prompt_lengths is None else int(corpus.prompt_lengths[number])
    return (np.arange(length) >= prompt).astype(np.int64)


def _documents(
    corpus: CorpusTokens, index: int, batch_size: int, max_length: int
) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """The numbers of a batch's documents, and their tokens."""
    first = index * batch_size
    numbers = tuple(range(first, min(first + batch_size, len(corpus))))
    return numbers, [corpus.document(number)[:max_length] for number in numbers]
