"""A method in one place, as anyone would write one: gradient ascent over the whole model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn.functional import cross_entropy

from wmdp_fast.unlearning.method import CardText, Findings, MethodState, Setup, StepInput, StepOutput
from wmdp_fast.unlearning.training_config import TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from wmdp_fast.unlearning.batches import Batch
    from wmdp_fast.unlearning.method import Method


# A whole method: gradient ascent on forget documents, up to a loss found in the beginning, with a retain term.


@dataclass(frozen=True, kw_only=True)
class AscentConfig(TrainingConfig):
    method_name: ClassVar[str] = "gradient-ascent"
    retain_weight: float = 1.0

    def method(self, setup: Setup) -> Method:
        return Ascent(setup, self.retain_weight)

    def trained_layers(self, num_layers: int, /) -> Sequence[int]:
        return range(num_layers)


class Ascent:
    metrics: tuple[str, ...] = ("forget_loss", "retain_loss")

    def __init__(self, setup: Setup, retain_weight: float) -> None:
        self.setup, self.retain_weight, self.ceiling = setup, retain_weight, 0.0

    def why_padded(self, _padded: Batch, _packed: Batch) -> str | None:
        return "gradient ascent takes one document in a row"

    def prepare(self) -> None:
        with torch.no_grad():
            self.ceiling = 3 * float(self.loss(self.setup.batches.forget(0, 0)))

    def state(self) -> MethodState:
        return MethodState(values=self.ceiling)

    def restore(self, state: MethodState) -> None:
        self.ceiling = state.values

    def describe(self) -> str | None:
        return f"forget documents' loss rises to at most {self.ceiling:.3g}"

    def step(self, given: StepInput) -> StepOutput:
        terms = [torch.stack([self.loss(batch) for batch in kind]).mean() for kind in zip(*given.pairs, strict=True)]
        loss = -terms[0].clamp_max(self.ceiling) + self.retain_weight * terms[1]
        gradients = torch.autograd.grad(loss, list(self.setup.trained.values()))
        return StepOutput(dict(zip(self.setup.trained, gradients, strict=True)), torch.stack(terms).detach())

    def findings(self, _steps: int) -> Findings:
        return Findings(record={"ceiling": self.ceiling}, settings=("ceiling",), figures={"ceiling": self.ceiling})

    def card(self, record: Mapping[str, Any]) -> CardText:
        return CardText(
            method="gradient ascent",
            summary=f"The loss of the forget corpora was raised to at most {record['ceiling']:.2f} nats per token.",
            change="Its answers were made unlikely.",
            ways_back=("by fine-tuning",),
        )

    def loss(self, batch: Batch) -> Tensor:
        logits = self.setup.model(**batch.inputs, use_cache=False).logits[:, :-1]
        targets = batch.inputs["input_ids"][:, 1:].masked_fill(batch.attention_mask[:, :-1] == 0, -100)
        return cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
