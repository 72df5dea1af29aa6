"""Methods over logits written down plainly, as a baseline to be measured against: what an ordinary trainer does.

Rows are padded to the longest of their batch, logits are there whole, both terms of the loss are differentiated in one
backward pass, and where the original model is needed it is a second one. In one thing it does better than most: only
what is trained needs gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from wmdp_fast.models.decoder import decoder_of
from wmdp_fast.unlearning.parameters import select_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class PlainMethod:
    """Gradient difference, or NPO with the mean loss of each document.

    Args:
        model: The model that is trained.
        reference: The original model; None for gradient difference.
        parameters: Which parameters of all layers.
        learning_rate: Of AdamW.
        beta: Of NPO.
    """

    def __init__(
        self, model: Any, reference: Any | None, *, parameters: str, learning_rate: float, beta: float
    ) -> None:
        self.model, self.reference, self.beta = model, reference, beta
        decoder = decoder_of(model)
        picked = select_parameters(decoder.layers, decoder.prefix, range(len(decoder.layers)), parameters)
        model.requires_grad_(False)
        self.parameters = [one.parameter.requires_grad_() for one in picked]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=0.0)

    def step(self, forget: Sequence[Tensor], retain: Sequence[Tensor]) -> tuple[float, float]:
        """One optimizer step on documents, each its token ids; returns the forget and the retain loss."""
        forget_loss, retain_loss = self._forget_loss(forget), _losses(self.model, retain).mean()
        (forget_loss + retain_loss).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(forget_loss.detach()), float(retain_loss.detach())

    def _forget_loss(self, documents: Sequence[Tensor]) -> Tensor:
        losses = _losses(self.model, documents)
        if self.reference is None:
            return -losses.mean()
        with torch.no_grad():
            before = _losses(self.reference, documents)
        return -2 / self.beta * F.logsigmoid(self.beta * (losses - before)).mean()


def _losses(model: Any, documents: Sequence[Tensor]) -> Tensor:
    """The mean cross-entropy of each document's tokens, [documents]."""
    ids = torch.nn.utils.rnn.pad_sequence(list(documents), batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in documents], batch_first=True)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
    return losses.sum(dim=1) / mask[:, 1:].sum(dim=1)
