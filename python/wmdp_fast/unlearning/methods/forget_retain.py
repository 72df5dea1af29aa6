"""Methods with a loss on forget documents and one on retain documents, added up: gradient difference, NPO, SimNPO."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch

from wmdp_fast.unlearning.language_model import LanguageModel
from wmdp_fast.unlearning.method import Method, MethodState, StepOutput
from wmdp_fast.unlearning.methods.outcome import effects_after, effects_card, effects_findings
from wmdp_fast.unlearning.reductions import cross_entropy, document_losses

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor

    from wmdp_fast.unlearning.batches import Batch
    from wmdp_fast.unlearning.language_model import DocumentLosses
    from wmdp_fast.unlearning.method import CardText, Findings, Setup, StepInput
    from wmdp_fast.unlearning.reductions import Reduction


class Settings(Protocol):
    """What `ForgetRetain` asks of its settings; `ForgetRetainConfig` has it all."""

    @property
    def source(self) -> str:
        """The method's name with its source."""

    @property
    def summary(self) -> str:
        """What is done to the model, for its card."""

    @property
    def needs_reference(self) -> bool:
        """Whether the forget loss compares with the original model."""

    @property
    def forget_weight(self) -> float:
        """Of the forget loss."""

    @property
    def retain_weight(self) -> float:
        """Of the retain loss."""

    @property
    def retain_loss(self) -> str:
        """`cross_entropy` or `kl`."""

    @property
    def reduction(self) -> Reduction:
        """From tokens to documents."""

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether layers are run again for their gradients."""

    def forget_loss(self, losses: Tensor, reference: Tensor | None, /) -> Tensor:
        """The loss on forget documents."""


class ForgetRetain(Method):
    """Minimizes `forget_weight * forget_loss + retain_weight * retain_loss`.

    Where the forget loss compares with the original model, one number for each forget document is kept of that,
    computed when the document first comes up. A term whose weight is 0 is measured only.

    Args:
        setup: What it works on.
        config: The settings, and the loss on forget documents.

    Attributes:
        model: The model.
        metrics: Both terms of the loss, weights included, and nats per token: the cross-entropy of forget documents,
            and that of retain documents, or their divergence from the original model where that is the loss.
    """

    def __init__(self, setup: Setup, config: Settings) -> None:
        self.model = LanguageModel(setup, gradient_checkpointing=config.gradient_checkpointing)
        measure = "retain_kl" if config.retain_loss == "kl" else "retain_nll"
        self.metrics: tuple[str, ...] = ("forget_loss", "retain_loss", "forget_nll", measure)
        self._setup, self._config = setup, config
        # Of each topic's documents; NaN where it is not known yet.
        corpora = setup.batches.forget_corpora if config.needs_reference else ()
        self._references = [torch.full((len(corpus),), math.nan, device="cpu") for corpus in corpora]

    def why_padded(self, padded: Batch, packed: Batch) -> str | None:
        """Why documents must be padded: the padding is to count, or the model says something else without it."""
        if self._config.reduction == "batch_mean_padded":
            return "it counts, with reduction batch_mean_padded"
        return self.model.why_padded(padded, packed)

    def restore(self, state: MethodState) -> None:
        """Takes over what is known of the original model."""
        for topic, reference in enumerate(self._references):
            reference.copy_(state.tensors[f"reference.{topic}"])

    def state(self) -> MethodState:
        """What is known of the original model."""
        return MethodState(tensors={f"reference.{topic}": known for topic, known in enumerate(self._references)})

    def step(self, given: StepInput) -> StepOutput:
        """Gradients of both terms, and `metrics`."""
        gradients: dict[str, Tensor] = {}
        measured = []
        for forget, retain in given.pairs:
            # One after the other, so that one graph is alive at a time.
            forget_terms = self.forget_term(given.topic, forget, gradients, len(given.pairs))
            retain_terms = self.retain_term(retain, gradients, len(given.pairs))
            measured.append(torch.stack([forget_terms[0], retain_terms[0], forget_terms[1], retain_terms[1]]))
        return StepOutput(gradients, torch.stack(measured).mean(dim=0))

    def forget_term(
        self, topic: int, batch: Batch, gradients: dict[str, Tensor], parts: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The forget loss, weight included, and nats per token; a `parts`-th of the gradient is added to the others."""
        config, length = self._config, self._setup.batches.max_lengths[topic]
        reference = self._reference(topic, batch) if config.needs_reference else None
        with self._graph(config.forget_weight):
            losses = self._losses(batch, length)
            counted = losses.counts() > 0
            loss = config.forget_weight * config.forget_loss(
                document_losses(losses, config.reduction)[counted], None if reference is None else reference[counted]
            )
        return self._differentiated(loss, gradients, parts), losses.nll.detach().mean()

    def retain_term(self, batch: Batch, gradients: dict[str, Tensor], parts: int = 1) -> tuple[Tensor, Tensor]:
        """The same of the retain loss."""
        config = self._config
        with self._graph(config.retain_weight):
            if config.retain_loss == "kl":
                divergences = self.model.kl(batch)
                loss, measure = divergences.mean(), divergences.detach().mean()
            else:
                losses = self._losses(batch, self._setup.batches.retain_max_length)
                loss, measure = cross_entropy(losses, config.reduction), losses.nll.detach().mean()
            loss = config.retain_weight * loss
        return self._differentiated(loss, gradients, parts), measure

    def findings(self, steps: int) -> Findings:
        """What the run did to losses on forget and on retain documents, with the weights as they are.

        Args:
            steps: How many have been done: forget documents beyond theirs are taken, if there are any.
        """
        effects = effects_after(self.model, self._setup.batches, steps)
        return effects_findings(effects, forgets=self._config.forget_weight > 0)

    def card(self, record: Mapping[str, Any]) -> CardText:
        """What the model card says of the method."""
        return effects_card(record, source=self._config.source, summary=self._config.summary)

    def _losses(self, batch: Batch, length: int) -> DocumentLosses:
        padding = self._config.reduction == "batch_mean_padded"
        return self.model.losses(batch, padded_to=length if padding else None)

    def _reference(self, topic: int, batch: Batch) -> Tensor:
        """The original model's number for each document of a batch."""
        known, places = self._references[topic], list(batch.documents)
        if known[places].isnan().any():
            with self.model.originals():
                losses = self._losses(batch, self._setup.batches.max_lengths[topic])
            known[places] = document_losses(losses, self._config.reduction).cpu()
        return known[places].to(self._setup.batches.device)

    def _graph(self, weight: float) -> AbstractContextManager[Any]:
        return nullcontext() if weight else torch.no_grad()

    def _differentiated(self, loss: Tensor, gradients: dict[str, Tensor], parts: int) -> Tensor:
        if loss.requires_grad:
            self.model.gradients(loss / parts, into=gradients)
        return loss.detach()
