"""Fine-tuning on retain documents alone: what every other method has to be compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wmdp_fast.unlearning.methods.config import LanguageModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from wmdp_fast.unlearning.method import Method, Setup


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(LanguageModelConfig):
    """Fine-tuning on the retain corpora. The forget corpora are measured and not trained on.

    A model forgets something by any training. What it forgets by this one is no effect of unlearning.

    Example:
        >>> from wmdp_fast import FinetuneConfig
        >>> config = FinetuneConfig(learning_rate=5e-6, max_steps=125)
        >>> config.forget_weight, config.retain_weight
        (0.0, 1.0)
    """

    method_name: ClassVar[str] = "finetune"
    source: ClassVar[str] = "fine-tuning on the retain corpora"
    summary: ClassVar[str] = "The loss on the retain corpora was lowered. Nothing was done to the forget corpora."
    reductions: ClassVar[tuple[str, ...]] = ("sequence_mean", "batch_mean_padded")
    shares_batches: ClassVar[bool] = True

    # What `ForgetRetain` asks of its settings.
    needs_reference: ClassVar[bool] = False
    forget_weight: ClassVar[float] = 0.0
    retain_weight: ClassVar[float] = 1.0
    retain_loss: ClassVar[str] = "cross_entropy"

    def method(self, setup: Setup) -> Method:
        """Fine-tuning of a model."""
        from wmdp_fast.unlearning.methods.forget_retain import ForgetRetain

        return ForgetRetain(setup, self)

    def forget_loss(self, losses: Tensor, _reference: Tensor | None, /) -> Tensor:
        """The cross-entropy, which is measured."""
        return losses.mean()
