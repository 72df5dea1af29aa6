"""NPO, negative preference optimization: gradient ascent that lets go of documents which have become unlikely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wmdp_fast.exceptions import InternalError
from wmdp_fast.unlearning.methods.config import ForgetRetainConfig
from wmdp_fast.unlearning.methods.published import UNLEARN_SIMPLE, unlearn_simple
from wmdp_fast.unlearning.preset import Preset
from wmdp_fast.unlearning.training_config import SearchAxis, check_number

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NPOConfig(ForgetRetainConfig):
    """NPO: `-(2 / beta) * mean log sigmoid(beta * (NLL - NLL0))` over forget documents, and a retain loss.

    NLL is a document's cross-entropy as `reduction` has it, NLL0 that of the original model. A document's gradient is
    that of gradient ascent times `2 p^beta / (p^beta + p0^beta)`, with p its probability: at first 1, and 0 when the
    document has become unlikely. The smaller beta is, the later that is.

    Attributes:
        beta: What a document's rise in cross-entropy is multiplied by. It belongs to a `reduction`: 0.1 with `sum`, on
            documents of hundreds of tokens, is far more than 0.1 with a mean.

    Example:
        >>> from wmdp_fast import NPOConfig
        >>> config = NPOConfig(beta=0.05, retain_weight=2.5, max_steps=125)
        >>> [axis.name for axis in config.search_axes]
        ['beta', 'retain_weight', 'learning_rate', 'max_steps']
    """

    method_name: ClassVar[str] = "npo"
    source: ClassVar[str] = "NPO (Zhang et al. 2024, arXiv:2404.05868)"
    summary: ClassVar[str] = (
        "Documents of the forget corpora were made less likely than the original model has them, each the less the"
        " unlikelier it had become; the loss on the retain corpora was held down."
    )
    needs_reference: ClassVar[bool] = True
    search_axes: ClassVar[tuple[SearchAxis, ...]] = (
        SearchAxis("beta"),
        SearchAxis("retain_weight", zero_allowed=True),
        *ForgetRetainConfig.search_axes,
    )

    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("beta", self.beta)

    def forget_loss(self, losses: Tensor, reference: Tensor | None, /) -> Tensor:
        """`-(2 / beta) * mean log sigmoid(beta * (NLL - NLL0))`."""
        from torch.nn.functional import logsigmoid

        if reference is None:
            raise InternalError("NPO compares with the original model")
        return -2 / self.beta * logsigmoid(self.beta * (losses - reference)).mean()


PRESETS = {
    one.name: one
    for one in (
        Preset(
            "zephyr-7b",
            "HuggingFaceH4/zephyr-7b-beta",
            unlearn_simple(learning_rate=5e-6, beta=0.0225),
            UNLEARN_SIMPLE,
            "For bio, with the test split of wikitext-2 as the retain corpus. Padding counted in both losses. With this"
            " beta and a mean over the batch it is close to gradient difference.",
        ),
    )
}
