"""The batches of a run: which documents of which topic a step is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wmdp_fast.unlearning.batches import Batch, num_batches, packed_documents, padded_documents

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from wmdp_fast.prompts.documents import CorpusTokens


@dataclass
class BatchReader:
    """Cuts batches out of the corpora, in their order, from the front again when they end.

    Attributes:
        forget_corpora: The tokens of each topic.
        retain_corpora: Likewise.
        max_lengths: Maximum tokens of a forget document, by topic.
        retain_max_length: Maximum tokens of a retain document.
        batch_size: Documents in a batch.
        grad_accum: Batches of each kind in a step.
        pad_id: Token to pad with.
        device: Where batches go.
        packed: Whether documents lie back to back without padding.
    """

    forget_corpora: Sequence[CorpusTokens]
    retain_corpora: Sequence[CorpusTokens]
    max_lengths: Sequence[int]
    retain_max_length: int
    batch_size: int
    grad_accum: int
    pad_id: int
    device: torch.device
    packed: bool = False

    @property
    def num_topics(self) -> int:
        """How many topics there are; steps take turns between them."""
        return len(self.forget_corpora)

    def forget(self, topic: int, index: int, *, packed: bool | None = None) -> Batch:
        """A batch of a topic's forget documents; `packed` None takes the run's way."""
        return self._batch(self.forget_corpora[topic], index, self.max_lengths[topic], packed=packed)

    def retain(self, topic: int, index: int, *, packed: bool | None = None) -> Batch:
        """A batch of a topic's retain documents."""
        return self._batch(self.retain_corpora[topic], index, self.retain_max_length, packed=packed)

    def pairs(self, step: int) -> tuple[int, list[tuple[Batch, Batch]]]:
        """The topic of a step, counted from 0, and a forget and a retain batch for each of its parts."""
        topic, turn = step % self.num_topics, step // self.num_topics
        indices = range(turn * self.grad_accum, (turn + 1) * self.grad_accum)
        return topic, [(self.forget(topic, index), self.retain(topic, index)) for index in indices]

    def after(self, topic: int, steps: int) -> tuple[int, bool]:
        """The number of the forget batch that follows a topic's last one after so many steps, and whether there is one.

        If there is none, the number is the last one's.
        """
        turns = -(-(steps - topic) // self.num_topics) if steps > topic else 0
        following = turns * self.grad_accum
        unseen = following < num_batches(self.forget_corpora[topic], self.batch_size)
        return (following if unseen else following - 1), unseen

    def _batch(self, corpus: CorpusTokens, index: int, max_length: int, *, packed: bool | None) -> Batch:
        size, device = self.batch_size, self.device
        index %= num_batches(corpus, size)
        if self.packed if packed is None else packed:
            return packed_documents(corpus, index, batch_size=size, max_length=max_length, device=device)
        return padded_documents(
            corpus, index, batch_size=size, max_length=max_length, pad_id=self.pad_id, device=device
        )
