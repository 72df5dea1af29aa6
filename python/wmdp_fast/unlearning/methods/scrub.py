"""SCRUB: away from the original model on forget text, towards it on retain text, in turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wmdp_fast.unlearning.methods.config import LanguageModelConfig
from wmdp_fast.unlearning.training_config import SearchAxis, check_number

if TYPE_CHECKING:
    from wmdp_fast.unlearning.method import Method, Setup


@dataclass(frozen=True, kw_only=True)
class SCRUBConfig(LanguageModelConfig):
    """SCRUB: min steps on retain text and max steps on forget text, with the original model as the teacher.

    A min step has the loss `retain_weight * CE + kl_weight * T^2 KL_T(p0 || p)` on retain documents, a max step
    `-T^2 KL_T(p0 || p)` on forget documents; KL_T is the divergence with both logits divided by the temperature T. All
    are means over documents of means over their tokens.

    The paper is about classifiers of images and takes turns by epochs: a max epoch and then a min epoch at first, min
    epochs alone later (in its code the first 3 of 10). Neither its authors nor those of the WMDP paper released code
    for language models. Read for those here: turns are taken by steps, min and max, each on the batch of its number, in
    the first `forget_share` of the run; after that all steps are min steps. The WMDP paper too has forget text in the
    first 300 of 600 steps. A min step comes first, and there is no warm-up, since a max step at the original weights
    has no gradient but rounding errors, of which AdamW makes a whole step.

    Attributes:
        kl_weight: Weight of the divergence in a min step; alpha in the paper, 0.5 in its code. The WMDP paper tried
            values from 0.0001 to 10.
        retain_weight: Weight of the cross-entropy in a min step; gamma in the paper; 0 for none.
        temperature: What logits are divided by for the divergence.
        forget_share: Share of the run, from its beginning, in which every other step is a max step.

    Example:
        >>> from wmdp_fast import SCRUBConfig
        >>> SCRUBConfig(max_steps=400, forget_share=0.25).max_steps  # the first 100 take turns
        400
    """

    method_name: ClassVar[str] = "scrub"
    source: ClassVar[str] = "SCRUB (Kurmanji et al. 2023, arXiv:2302.09880)"
    summary: ClassVar[str] = (
        "In turns, the model's predictions on the forget corpora were driven away from the original model's, and those"
        " on the retain corpora held to them while their loss was lowered."
    )
    reductions: ClassVar[tuple[str, ...]] = ("sequence_mean",)
    shares_batches: ClassVar[bool] = True
    activation_metrics: ClassVar[tuple[str, ...]] = ("kl", "nll")
    search_axes: ClassVar[tuple[SearchAxis, ...]] = (
        SearchAxis("kl_weight", zero_allowed=True),
        SearchAxis("retain_weight", zero_allowed=True),
        *LanguageModelConfig.search_axes,
    )

    warmup: float = 0.0
    max_steps: int = 600
    kl_weight: float = 0.5
    retain_weight: float = 1.0
    temperature: float = 2.0
    forget_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kl_weight", "retain_weight", "forget_share"):
            check_number(name, getattr(self, name), zero_allowed=True)
        check_number("temperature", self.temperature)
        if self.forget_share > 1:
            raise ValueError(f"forget_share is a share of the steps, from 0 to 1, not {self.forget_share!r}")
        if self.kl_weight == self.retain_weight == 0:
            raise ValueError("kl_weight and retain_weight are both 0, so min steps would do nothing")

    def method(self, setup: Setup) -> Method:
        """SCRUB of a model."""
        from wmdp_fast.unlearning.methods.scrub_method import SCRUB

        return SCRUB(setup, self)

    @property
    def depends_on_total(self) -> bool:
        """It does, since max steps end with a share of them."""
        return self.forget_share > 0 or super().depends_on_total

    def what_to_lower(self, *, losses_alone: bool) -> list[str]:
        """The learning rate, and how long a loss without a lower bound is minimized."""
        advice = super().what_to_lower(losses_alone=losses_alone)
        return [*advice, f"{'then ' if advice else ''}lower forget_share (now {self.forget_share:g})"]
