"""SSD, selective synaptic dampening: weights that matter more to forget text than to retain text are made smaller."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wmdp_fast.prompts.documents import CorpusKind  # noqa: TC001 (hints are looked at as the program runs)
from wmdp_fast.unlearning.training_config import SearchAxis, TrainingConfig, check_number, check_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast.unlearning.method import Method, Setup

# Settings of optimizer steps, of which there are none.
_OF_STEPS = (
    "learning_rate",
    "schedule",
    "warmup",
    "weight_decay",
    "max_steps",
    "epochs",
    "grad_accum",
    "grad_clip",
    "master_weights",
)


@dataclass(frozen=True, kw_only=True)
class SSDConfig(TrainingConfig):
    """SSD: where `I_F > threshold * I_D`, a weight is multiplied by `min(dampening * I_D / I_F, 1)`. No training.

    A weight's importance I is the mean over documents of the square of the gradient of a document's cross-entropy per
    token: I_F over forget documents, those of all topics together, and I_D over retain documents. The paper's I_D is
    over all of the training data, which nobody has of a language model. Its code squares the gradients of means over
    batches, and so has another importance, and other weights dampened, for every batch size and every order of the
    documents: gradients of a batch's documents cancel before they are squared. Here each document's is squared by
    itself, in float32, so that `batch_size` changes nothing.

    Attributes:
        threshold: How many times as important for forget text as for retain text a weight must be to be dampened;
            alpha in the paper, which has 10. Smaller values dampen more weights.
        dampening: How strongly: lambda in the paper, which has 1. Smaller values dampen more, 0 sets weights to 0.
        num_documents: Most documents of each corpus that importances are taken over.
        gradient_checkpointing: Whether layers are run again for their gradients, for less memory and more time.

    Example:
        >>> from wmdp_fast import SSDConfig
        >>> SSDConfig(threshold=5.0, dampening=0.5).one_shot
        True
    """

    method_name: ClassVar[str] = "ssd"
    one_shot: ClassVar[bool] = True
    search_axes: ClassVar[tuple[SearchAxis, ...]] = (
        SearchAxis("threshold", zero_allowed=True),
        SearchAxis("dampening", zero_allowed=True),
    )
    forget_kinds: ClassVar[tuple[CorpusKind, ...]] = ("documents", "answers")
    retain_kinds: ClassVar[tuple[CorpusKind, ...]] = ("documents", "answers")
    activation_metrics: ClassVar[tuple[str, ...]] = ("forget_nll", "retain_nll")

    max_steps: int = 1
    threshold: float = 10.0
    dampening: float = 1.0
    num_documents: int = 512
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("threshold", "dampening"):
            check_number(name, getattr(self, name), zero_allowed=True)
        check_whole("num_documents", self.num_documents, least=1)
        defaults = {one.name: one.default for one in dataclasses.fields(self)}
        for name in _OF_STEPS:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"ssd changes the weights once, without an optimizer: {name} cannot be set")

    def method(self, setup: Setup) -> Method:
        """SSD of a model."""
        from wmdp_fast.unlearning.methods.ssd_method import SSD

        return SSD(
            setup,
            threshold=self.threshold,
            dampening=self.dampening,
            num_documents=self.num_documents,
            gradient_checkpointing=self.gradient_checkpointing,
        )

    def trained_layers(self, num_layers: int, /) -> Sequence[int]:
        """All of them."""
        return range(num_layers)

    def documents_read(self, _num_topics: int, /) -> int:
        """Those that importances are taken over."""
        return self.num_documents

    def what_to_lower(self, *, losses_alone: bool) -> list[str]:  # noqa: ARG002 (there is but one step)
        """The precision, for nothing else makes a gradient infinite."""
        return [f"compute in float32 (dtype is {self.dtype}), in which gradients do not overflow"]
