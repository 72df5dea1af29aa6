"""Methods written down plainly, as a baseline to be measured against: what an ordinary trainer does.

Rows are padded to the longest of their batch, logits are there whole, both terms of the loss are differentiated in one
backward pass, and where the original model is needed it is a second one. In two things it does better than most: only
what is trained needs gradients, and for losses of activations there are no logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from wmdp_fast.models.decoder import decoder_of, record_outputs
from wmdp_fast.unlearning.parameters import select_parameters
from wmdp_fast.unlearning.seeds import normal_noise

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

# Of the activations that the first step of RR compares with, as a share of their length.
_NOISE = 0.01


class PlainTrainer(ABC):
    """A forget and a retain loss, and AdamW.

    Args:
        model: The model that is trained.
        layers: Numbers of the layers that are.
        parameters: Which of their parameters.
        learning_rate: Of AdamW.
    """

    def __init__(self, model: Any, *, layers: Iterable[int], parameters: str, learning_rate: float) -> None:
        self.model = model
        decoder = decoder_of(model)
        picked = select_parameters(decoder.layers, decoder.prefix, list(layers), parameters)
        model.requires_grad_(False)
        self.parameters = [one.parameter.requires_grad_() for one in picked]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=0.0)

    @abstractmethod
    def losses(self, forget: Sequence[Tensor], retain: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The forget and the retain loss of documents, each its token ids."""

    def warm_up(self, forget: Sequence[Tensor], retain: Sequence[Tensor]) -> None:
        """Computes gradients and lets go of them."""
        torch.stack(self.losses(forget, retain)).sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.zero_grad()

    def step(self, forget: Sequence[Tensor], retain: Sequence[Tensor]) -> tuple[float, float]:
        """One optimizer step on documents; returns the forget and the retain loss."""
        forget_loss, retain_loss = self.losses(forget, retain)
        (forget_loss + retain_loss).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(forget_loss.detach()), float(retain_loss.detach())


class PlainLogits(PlainTrainer):
    """Gradient difference, or NPO with the mean loss of each document, of all layers.

    Args:
        model: The model that is trained.
        reference: The original model; None for gradient difference.
        parameters: Which parameters.
        learning_rate: Of AdamW.
        beta: Of NPO.
    """

    def __init__(
        self, model: Any, reference: Any | None, *, parameters: str, learning_rate: float, beta: float
    ) -> None:
        layers = range(model.config.get_text_config().num_hidden_layers)
        super().__init__(model, layers=layers, parameters=parameters, learning_rate=learning_rate)
        self.reference, self.beta = reference, beta

    def losses(self, forget: Sequence[Tensor], retain: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The method's loss of forget documents, and the mean cross-entropy of retain documents."""
        return self._forget_loss(forget), _losses(self.model, retain).mean()

    def _forget_loss(self, documents: Sequence[Tensor]) -> Tensor:
        losses = _losses(self.model, documents)
        if self.reference is None:
            return -losses.mean()
        with torch.no_grad():
            before = _losses(self.reference, documents)
        return -2 / self.beta * F.logsigmoid(self.beta * (losses - before)).mean()


class PlainRerouting(PlainTrainer):
    """RR, of the layers up to the highest target.

    Args:
        model: The model that is trained.
        reference: The original model.
        target_layers: Whose outputs are rerouted.
        coefficient: The sum of the weights of both terms.
        steps: Of the whole run.
        seed: Of the noise in the first step's originals.
        parameters: Which parameters.
        learning_rate: Of AdamW.
    """

    def __init__(
        self,
        model: Any,
        reference: Any,
        *,
        target_layers: Sequence[int],
        coefficient: float,
        steps: int,
        seed: int,
        parameters: str,
        learning_rate: float,
    ) -> None:
        layers = range(max(target_layers) + 1)
        super().__init__(model, layers=layers, parameters=parameters, learning_rate=learning_rate)
        self.reference, self.targets, self.held = reference, target_layers, layers
        self.coefficient, self.steps, self.seed = coefficient, steps, seed
        self.done = 0

    def losses(self, forget: Sequence[Tensor], retain: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The cosine to the original activations of forget documents, and the distance of those of retain documents."""
        progress = self.done / (2 * self.steps)
        now, before = self._activations(forget, self.targets)
        if self.done == 0:
            before = [self._with_noise(one, place) for place, one in enumerate(before)]
        cosines = [F.cosine_similarity(one, other, dim=-1).relu() for one, other in zip(now, before, strict=True)]
        now, before = self._activations(retain, self.held)
        distances = [(one - other).norm(dim=-1) for one, other in zip(now, before, strict=True)]
        return (
            self.coefficient * (1 - progress) * torch.stack(cosines).mean(),
            self.coefficient * progress * torch.stack(distances).mean(),
        )

    def step(self, forget: Sequence[Tensor], retain: Sequence[Tensor]) -> tuple[float, float]:
        """One optimizer step, after which the weights of both terms are others."""
        found = super().step(forget, retain)
        self.done += 1
        return found

    def _activations(self, documents: Sequence[Tensor], layers: Iterable[int]) -> tuple[list[Tensor], list[Tensor]]:
        """What layers of both models return for real tokens, each [N, d]."""
        ids, mask = _padded(documents)
        found = []
        for model in (self.model, self.reference):
            these = [decoder_of(model).layers[index] for index in layers]
            with record_outputs(these) as outputs, torch.set_grad_enabled(model is self.model):
                model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
            found.append([one[mask.bool()].float() for one in outputs])
        return found[0], found[1]

    def _with_noise(self, activations: Tensor, place: int) -> Tensor:
        noise = normal_noise(activations.shape, (self.seed, 0, 0, place)).to(activations.device)
        noisy: Tensor = (
            activations + _NOISE * noise * activations.norm(dim=-1, keepdim=True) / activations.shape[1] ** 0.5
        )
        return noisy


def _losses(model: Any, documents: Sequence[Tensor]) -> Tensor:
    """The mean cross-entropy of each document's tokens, [documents]."""
    ids, mask = _padded(documents)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
    return losses.sum(dim=1) / mask[:, 1:].sum(dim=1)


def _padded(documents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [documents, longest], padded on the right."""
    ids = torch.nn.utils.rnn.pad_sequence(list(documents), batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in documents], batch_first=True)
    return ids, mask
