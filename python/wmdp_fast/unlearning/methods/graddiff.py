"""Gradient difference: ascent on forget documents, descent on retain documents; without the latter, gradient ascent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wmdp_fast.unlearning.methods.config import ForgetRetainConfig
from wmdp_fast.unlearning.methods.published import UNLEARN_SIMPLE, unlearn_simple
from wmdp_fast.unlearning.preset import Preset
from wmdp_fast.unlearning.training_config import SearchAxis, check_number

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GradDiffConfig(ForgetRetainConfig):
    """Gradient difference: `-forget_weight * CE(forget) + retain_weight * CE(retain)`, CE being the cross-entropy.

    The forget loss has no lower bound: many steps or a high learning rate ruin the model. With a `retain_weight` of 0
    it is gradient ascent.

    Attributes:
        ceiling: Nats per token above which the loss of a document counts no more, or None. A model that knows nothing
            has the logarithm of its vocabulary's size.

    Example:
        >>> from wmdp_fast import GradDiffConfig
        >>> ascent = GradDiffConfig(retain_weight=0.0, ceiling=8.0, lora="r=16")
        >>> ascent.lora.alpha
        32
    """

    method_name: ClassVar[str] = "graddiff"
    source: ClassVar[str] = "gradient difference (Liu et al. 2022, arXiv:2203.12817)"
    summary: ClassVar[str] = "The loss on the forget corpora was raised, while that on the retain corpora was lowered."
    reductions: ClassVar[tuple[str, ...]] = ("sequence_mean", "batch_mean_padded")
    search_axes: ClassVar[tuple[SearchAxis, ...]] = (
        SearchAxis("forget_weight"),
        SearchAxis("retain_weight", zero_allowed=True),
        *ForgetRetainConfig.search_axes,
    )

    ceiling: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ceiling is not None:
            check_number("ceiling", self.ceiling)

    def forget_loss(self, losses: Tensor, _reference: Tensor | None, /) -> Tensor:
        """`-CE`, of documents below the ceiling."""
        return -(losses if self.ceiling is None else losses.clamp_max(self.ceiling)).mean()


PRESETS = {
    one.name: one
    for one in (
        Preset(
            "zephyr-7b",
            "HuggingFaceH4/zephyr-7b-beta",
            unlearn_simple(learning_rate=5e-6),
            UNLEARN_SIMPLE,
            "For bio, with the test split of wikitext-2 as the retain corpus. Padding counted in both losses.",
        ),
    )
}
