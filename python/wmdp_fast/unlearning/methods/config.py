"""The settings that methods over logits have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from wmdp_fast.prompts.documents import CorpusKind  # noqa: TC001 (hints are looked at as the program runs)
from wmdp_fast.unlearning.adapter_config import AdapterConfig
from wmdp_fast.unlearning.reductions import Reduction
from wmdp_fast.unlearning.training_config import check_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from wmdp_fast.unlearning.method import Method, Setup


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(AdapterConfig):
    """The settings of a method whose losses are on the logits of the whole model.

    Attributes:
        reductions: Those that mean something to the method.
        master_weights: Whether the optimizer keeps weights and moments in float32. A step in bfloat16 alone leaves all
            weights as they are that are more than some 256 times as large as it, which at these learning rates is most.
        reduction: How losses of tokens become those of documents: `"sequence_mean"`, `"sum"` or `"batch_mean_padded"`;
            see `wmdp_fast.unlearning.reductions`. Strengths such as beta belong to one of them.
        gradient_checkpointing: Whether layers are run again for their gradients, for less memory and more time.
    """

    optimizer: ClassVar[Literal["adamw_hf", "adamw_torch"]] = "adamw_torch"
    reductions: ClassVar[tuple[str, ...]] = get_args(Reduction)
    forget_kinds: ClassVar[tuple[CorpusKind, ...]] = ("documents", "answers")
    retain_kinds: ClassVar[tuple[CorpusKind, ...]] = ("documents", "answers")
    activation_metrics: ClassVar[tuple[str, ...]] = ("forget_nll", "retain_nll", "retain_kl")

    learning_rate: float = 1e-5
    schedule: Literal["constant", "linear"] = "linear"
    warmup: float = 0.1
    max_steps: int = 500
    grad_clip: float | None = 1.0
    master_weights: bool = True
    reduction: Reduction = "sequence_mean"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reduction not in self.reductions:
            raise ValueError(
                f"reduction of {self.method_name} must be one of {', '.join(self.reductions)}, not {self.reduction!r}"
            )

    def trained_layers(self, num_layers: int, /) -> Sequence[int]:
        """All of them."""
        return range(num_layers)


@dataclass(frozen=True, kw_only=True)
class ForgetRetainConfig(LanguageModelConfig):
    """The settings of a method with a loss on forget documents and one on retain documents, added up.

    A subclass says what the loss on forget documents is (`forget_loss`) and where it is from (`source`, `summary`), and
    has a whole method: `ForgetRetain` does the rest.

    Attributes:
        source: The method's name with its source, such as `NPO (Zhang et al. 2024, arXiv:2404.05868)`.
        summary: What is done to the model, as a sentence for its card.
        needs_reference: Whether `forget_loss` compares with the original model.
        forget_weight: Weight of the forget loss.
        retain_weight: Weight of the retain loss; 0 for none.
        retain_loss: `"cross_entropy"`, or `"kl"` for the divergence from the original model, KL(p0 || p).
    """

    source: ClassVar[str]
    summary: ClassVar[str]
    needs_reference: ClassVar[bool] = False
    shares_batches: ClassVar[bool] = True

    forget_weight: float = 1.0
    retain_weight: float = 1.0
    retain_loss: Literal["cross_entropy", "kl"] = "cross_entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("forget_weight", "retain_weight"):
            check_number(name, getattr(self, name), zero_allowed=True)
        if self.forget_weight == self.retain_weight == 0:
            raise ValueError("forget_weight and retain_weight are both 0, so nothing would be trained")
        if self.retain_loss not in ("cross_entropy", "kl"):
            raise ValueError(f"retain_loss must be cross_entropy or kl, not {self.retain_loss!r}")

    def method(self, setup: Setup) -> Method:
        """The method on a model."""
        from wmdp_fast.unlearning.methods.forget_retain import ForgetRetain

        return ForgetRetain(setup, self)

    @abstractmethod
    def forget_loss(self, losses: Tensor, reference: Tensor | None, /) -> Tensor:
        """The loss on forget documents, which is minimized.

        Args:
            losses: The cross-entropy of each document as `reduction` has it, float32 `[D]`, with gradients.
            reference: The same of the original model, if it is needed.
        """

    def what_to_lower(self, *, losses_alone: bool) -> list[str]:
        """The learning rate, and the weight of what has no lower bound."""
        return [
            *super().what_to_lower(losses_alone=losses_alone),
            f"{'' if losses_alone else 'then '}lower forget_weight (now {self.forget_weight:g})",
        ]
