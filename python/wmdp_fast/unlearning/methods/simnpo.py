"""SimNPO: NPO without a reference model, on the mean loss of a document's tokens."""

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
class SimNPOConfig(ForgetRetainConfig):
    """SimNPO: `-(2 / beta) * mean log sigmoid(beta * NLL / length - margin)` over forget documents, and a retain loss.

    NLL / length is the mean cross-entropy of a document's tokens.

    Attributes:
        beta: What a document's cross-entropy is multiplied by.
        margin: What is taken off that product; 0 in the paper's runs.

    Example:
        >>> from wmdp_fast import SimNPOConfig
        >>> config = SimNPOConfig(beta=4.5, reduction="sequence_mean", learning_rate=9.5e-6)
        >>> config.margin
        0.0
    """

    method_name: ClassVar[str] = "simnpo"
    source: ClassVar[str] = "SimNPO (Fan et al. 2024, arXiv:2410.07163)"
    summary: ClassVar[str] = (
        "Documents of the forget corpora were made unlikely, each the less the unlikelier it had become; the loss on"
        " the retain corpora was held down."
    )
    reductions: ClassVar[tuple[str, ...]] = ("sequence_mean", "batch_mean_padded")
    search_axes: ClassVar[tuple[SearchAxis, ...]] = (
        SearchAxis("beta"),
        SearchAxis("retain_weight", zero_allowed=True),
        *ForgetRetainConfig.search_axes,
    )

    beta: float = 0.1
    margin: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("beta", self.beta)
        check_number("margin", self.margin, zero_allowed=True)

    def forget_loss(self, losses: Tensor, _reference: Tensor | None, /) -> Tensor:
        """`-(2 / beta) * mean log sigmoid(beta * NLL / length - margin)`."""
        from torch.nn.functional import logsigmoid

        return -2 / self.beta * logsigmoid(self.beta * losses - self.margin).mean()


PRESETS = {
    one.name: one
    for one in (
        Preset(
            "zephyr-7b",
            "HuggingFaceH4/zephyr-7b-beta",
            unlearn_simple(learning_rate=9.5e-6, beta=0.1, margin=0.0),
            UNLEARN_SIMPLE,
            "For bio, with the test split of wikitext-2 as the retain corpus. Padding counted in both losses.",
        ),
    )
}
