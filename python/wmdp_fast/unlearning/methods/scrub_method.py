"""SCRUB on a model: the teacher is the same model with its original weights put in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from wmdp_fast.unlearning.language_model import LanguageModel
from wmdp_fast.unlearning.method import Method, StepOutput
from wmdp_fast.unlearning.methods.outcome import effects_after, effects_card, effects_findings
from wmdp_fast.unlearning.reductions import cross_entropy
from wmdp_fast.unlearning.verdict import Remedies

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from wmdp_fast.unlearning.batches import Batch
    from wmdp_fast.unlearning.method import CardText, Findings, Setup, StepInput

_REMEDIES = Remedies(
    weak="Raise the learning rate, forget_share or the number of steps",
    damaged="Lower the learning rate or forget_share, raise kl_weight, or give more retain text",
    both="Give more retain text, or raise kl_weight with the learning rate",
)


class Settings(Protocol):
    """What `SCRUB` asks of its settings, see `SCRUBConfig`."""

    @property
    def source(self) -> str:
        """The method's name with its source."""

    @property
    def summary(self) -> str:
        """What is done to the model, for its card."""

    @property
    def kl_weight(self) -> float:
        """Of the divergence in a min step."""

    @property
    def retain_weight(self) -> float:
        """Of the cross-entropy in a min step."""

    @property
    def temperature(self) -> float:
        """Of the divergence."""

    @property
    def forget_share(self) -> float:
        """Share of the run that has max steps."""

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether layers are run again for their gradients."""


class SCRUB(Method):
    """Takes min and max steps in turns.

    Args:
        setup: What it works on.
        config: The settings.

    Attributes:
        model: The model.
        metrics: The loss of a max step and that of a min step, 0 for the one that a step is not; and for the documents
            that it is of, nats per token: KL_T from the original model, without the factor T^2, and cross-entropy.
    """

    metrics: tuple[str, ...] = ("forget_loss", "retain_loss", "kl", "nll")

    def __init__(self, setup: Setup, config: Settings) -> None:
        self.model = LanguageModel(setup, gradient_checkpointing=config.gradient_checkpointing)
        self._setup, self._config = setup, config

    def why_padded(self, padded: Batch, packed: Batch) -> str | None:
        """As the model has it."""
        return self.model.why_padded(padded, packed)

    def describe(self) -> str | None:
        """How many steps are of which kind."""
        steps = self._setup.total_steps
        largest = sum(map(self._maximizes, range(steps)))
        return f"{largest} of {steps} steps are max steps on forget documents, the others min steps on retain documents"

    def step(self, given: StepInput) -> StepOutput:
        """Gradients of a min or a max step, and `metrics`."""
        maximizes = self._maximizes(given.index)
        gradients: dict[str, Tensor] = {}
        measured, tokens = [], 0
        for forget, retain in given.pairs:
            batch = forget if maximizes else retain
            loss, kl, nll = self._loss(batch, maximizes=maximizes)
            self.model.gradients(loss / len(given.pairs), into=gradients)
            loss = loss.detach()
            none = torch.zeros_like(loss)
            terms = (loss, none) if maximizes else (none, loss)
            measured.append(torch.stack([*terms, kl.detach(), nll.detach()]))
            tokens += batch.num_tokens
        return StepOutput(gradients, torch.stack(measured).mean(dim=0), tokens)

    def findings(self, steps: int) -> Findings:
        """What the run did to losses on forget and on retain documents, with the weights as they are."""
        effects = effects_after(self.model, self._setup.batches, steps)
        return effects_findings(effects, forgets=self._config.forget_share > 0, remedies=_REMEDIES)

    def card(self, record: Mapping[str, Any]) -> CardText:
        """What the model card says of the method."""
        return effects_card(record, source=self._config.source, summary=self._config.summary)

    def _loss(self, batch: Batch, *, maximizes: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of a batch, the divergence in it, and the cross-entropy."""
        config = self._config
        losses, divergences = self.model.losses_and_kl(batch, temperature=config.temperature)
        nll, kl = (cross_entropy(one, "sequence_mean") for one in (losses, divergences))
        scaled = config.temperature**2 * kl
        return (-scaled if maximizes else config.retain_weight * nll + config.kl_weight * scaled), kl, nll

    def _maximizes(self, step: int) -> bool:
        """Whether a step, counted from 0, is a max step: every other turn of the topics, while there are any."""
        turn = step // self._setup.batches.num_topics
        return turn % 2 == 1 and step < self._config.forget_share * self._setup.total_steps
