"""From the losses of tokens to those of documents and of batches, as papers and programs take them.

They do it in different ways, and what a strength such as NPO's beta means depends on it, so that it cannot be carried
over from one to another: with a document's 500 tokens added up, a beta of 0.1 has done its work after a rise of a tenth
of a nat per token; with their mean, after a rise of tens of nats.

| reduction           | a document's number | a batch's cross-entropy   | as in                          |
| ------------------- | ------------------- | ------------------------- | ------------------------------ |
| `sequence_mean`     | mean of its tokens  | mean of its documents     | SimNPO's paper; the default    |
| `sum`               | sum of its tokens   | mean of all its tokens    | NPO's code, OpenUnlearning     |
| `batch_mean_padded` | the batch's         | mean, padding counted too | Unlearn-Simple, Unlearn-Smooth |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from wmdp_fast.unlearning.language_model import DocumentLosses

Reduction = Literal["sequence_mean", "sum", "batch_mean_padded"]


def document_losses(losses: DocumentLosses, reduction: Reduction) -> Tensor:
    """A number for each document, float32 `[D]`; 0 for one of which nothing counts."""
    if reduction == "batch_mean_padded":
        return losses.mean().expand(losses.num_documents)
    return losses.sums() if reduction == "sum" else losses.means()


def cross_entropy(losses: DocumentLosses, reduction: Reduction) -> Tensor:
    """A batch's cross-entropy in nats per token, a number."""
    return losses.means()[losses.counts() > 0].mean() if reduction == "sequence_mean" else losses.mean()
