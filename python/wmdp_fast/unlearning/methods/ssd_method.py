"""SSD on a model: two passes of gradients over documents, and one change of the weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.unlearning.batches import num_batches
from wmdp_fast.unlearning.language_model import LanguageModel
from wmdp_fast.unlearning.method import Method, MethodState, StepOutput
from wmdp_fast.unlearning.methods.outcome import effect_at, effects_card, effects_findings
from wmdp_fast.unlearning.verdict import Remedies

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from wmdp_fast.prompts.documents import CorpusTokens
    from wmdp_fast.unlearning.batches import Batch
    from wmdp_fast.unlearning.method import CardText, Findings, Setup, StepInput
    from wmdp_fast.unlearning.methods.effect import Effect

_SOURCE = "SSD, selective synaptic dampening (Foster et al. 2023, arXiv:2308.07707)"

_REMEDIES = Remedies(
    weak="Lower threshold, or lower dampening",
    damaged="Raise threshold, or raise dampening",
    both="Raise num_documents, or give retain text that is more like what should be kept",
)


@dataclass
class _Importance:
    """What a pass over documents adds up.

    Attributes:
        squares: The sum of squared gradients of every weight, float32, by parameter.
        nll: The sum of the documents' cross-entropies, a number.
        documents: How many there were.
        tokens: How many tokens they had.
    """

    squares: dict[str, Tensor]
    nll: Tensor
    documents: int = 0
    tokens: int = 0

    def mean(self) -> Tensor:
        """Over all weights and documents, a number."""
        weights = sum(one.numel() for one in self.squares.values())
        return torch.stack([one.sum() for one in self.squares.values()]).sum() / (weights * self.documents)


class SSD(Method):
    """Dampens weights, in its only step.

    Memory: two numbers in float32 for every weight that may change, and the gradients of one document.

    Args:
        setup: What it works on.
        threshold: As in `SSDConfig`.
        dampening: Likewise.
        num_documents: Likewise.
        gradient_checkpointing: Likewise.

    Attributes:
        model: The model.
        metrics: Nats per token of forget and retain documents, by the original model; the share of weights that became
            smaller; and the mean importance of a weight for either.
    """

    metrics: tuple[str, ...] = ("forget_nll", "retain_nll", "dampened", "forget_importance", "retain_importance")

    def __init__(
        self, setup: Setup, *, threshold: float, dampening: float, num_documents: int, gradient_checkpointing: bool
    ) -> None:
        self.model = LanguageModel(setup, gradient_checkpointing=gradient_checkpointing)
        self._setup, self._threshold, self._dampening, self._most = setup, threshold, dampening, num_documents
        self._found: dict[str, Any] = {}

    def why_padded(self, padded: Batch, packed: Batch) -> str | None:
        """As the model has it."""
        return self.model.why_padded(padded, packed)

    def restore(self, state: MethodState) -> None:
        """Takes over what was found."""
        self._found = state.values

    def state(self) -> MethodState:
        """How many documents were taken, and how many weights dampened."""
        return MethodState(values=self._found)

    def describe(self) -> str | None:
        """Of how many documents importances are."""
        batches = self._setup.batches
        forget = sum(self._taken(corpus) for corpus in batches.forget_corpora)
        retain = sum(self._taken(batches.retain_corpora[topic]) for topic in self._retained())
        return f"importances of weights are means over {forget} forget and {retain} retain documents, one at a time"

    def step(self, _given: StepInput) -> StepOutput:
        """Changes the weights; no gradients, and `metrics`."""
        alone = replace(self._setup.batches, batch_size=1)
        forget = self._importance(
            alone.forget(topic, index)
            for topic, corpus in enumerate(alone.forget_corpora)
            for index in range(self._taken(corpus))
        )
        retain = self._importance(
            alone.retain(topic, index)
            for topic in self._retained()
            for index in range(self._taken(alone.retain_corpora[topic]))
        )
        share = self._dampen(forget, retain)
        self._found = {
            "documents": {"forget": forget.documents, "retain": retain.documents},
            "dampened": float(share),
        }
        nlls = [one.nll / one.documents for one in (forget, retain)]
        measured = torch.stack([*nlls, share, forget.mean(), retain.mean()])
        return StepOutput({}, measured, forget.tokens + retain.tokens)

    def findings(self, steps: int) -> Findings:
        """How many weights were dampened, and what that did to losses; none were before the first step."""
        effects, dampened = self._effects(), self._found["dampened"] if steps else 0.0
        record = {**self._found, "dampened": dampened}
        return effects_findings(effects, forgets=True, remedies=_REMEDIES, record=record)

    def card(self, record: Mapping[str, Any]) -> CardText:
        """What the model card says of it."""
        documents = record["documents"]
        summary = (
            f"Without training, {record['dampened']:.2%} of the weights above were made smaller: those whose squared"
            f" gradients are more than {self._threshold:g} times as large on {documents['forget']} documents of"
            f" the forget corpora as on {documents['retain']} of the retain corpora."
        )
        return effects_card(record, source=_SOURCE, summary=summary)

    def _importance(self, batches: Iterator[Batch]) -> _Importance:
        """Adds up squared gradients over batches of one document."""
        trained, device = self._setup.trained, self._setup.batches.device
        found = _Importance(
            {name: torch.zeros_like(one, dtype=torch.float32, requires_grad=False) for name, one in trained.items()},
            torch.zeros((), device=device),
        )
        for batch in batches:
            if batch.num_tokens == 1:
                continue  # It predicts nothing.
            loss = self.model.losses(batch).mean()
            for name, gradient in self.model.gradients(loss).items():
                wide = gradient.float()
                found.squares[name].addcmul_(wide, wide)
            found.nll += loss.detach()
            found.documents += 1
            found.tokens += batch.num_tokens
        if found.documents == 0:
            raise ValueError("ssd needs forget and retain documents of two tokens or more")
        return found

    @torch.no_grad()
    def _dampen(self, forget: _Importance, retain: _Importance) -> Tensor:
        """Multiplies weights by what they are to be dampened by, and says what share of them became smaller."""
        changed = torch.zeros((), dtype=torch.int64, device=self._setup.batches.device)
        for name, parameter in self._setup.trained.items():
            of_forget = forget.squares[name] / forget.documents
            of_retain = retain.squares[name] / retain.documents
            factor = (self._dampening * of_retain / of_forget).clamp_max_(1)
            factor = factor.where(of_forget > self._threshold * of_retain, 1)
            dampened = (parameter.float() * factor).to(parameter.dtype)
            # In a narrow type some are rounded back to what they were.
            changed += (dampened.abs() < parameter.abs()).sum()
            parameter.copy_(dampened)
        return changed / sum(one.numel() for one in self._setup.trained.values())

    def _taken(self, corpus: CorpusTokens) -> int:
        """How many documents of a corpus importances are taken over."""
        return min(self._most, len(corpus))

    def _retained(self) -> list[int]:
        """A topic for each retain corpus; one may be that of several."""
        return list({id(corpus): topic for topic, corpus in enumerate(self._setup.batches.retain_corpora)}.values())

    def _effects(self) -> tuple[Effect, ...]:
        """What became of losses of documents that no importance is of, if there are any."""
        batches, found = self._setup.batches, []
        for topic, corpus in enumerate(batches.forget_corpora):
            following = -(-self._taken(corpus) // batches.batch_size)
            unseen = following < num_batches(corpus, batches.batch_size)
            index = following if unseen else following - 1
            found.append(effect_at(self.model, batches, topic, index, unseen=unseen))
        return tuple(found)
