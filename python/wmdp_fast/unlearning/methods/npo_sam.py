"""NPO with sharpness-aware minimization: the forget loss is lowered around the weights, not just at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wmdp_fast.unlearning.methods.npo import NPOConfig
from wmdp_fast.unlearning.preset import Preset
from wmdp_fast.unlearning.training_config import SearchAxis, check_number

if TYPE_CHECKING:
    from wmdp_fast.unlearning.method import Method, Setup


@dataclass(frozen=True, kw_only=True)
class NPOSAMConfig(NPOConfig):
    """NPO whose forget gradient is taken at `weights + rho * g / |g|`, g being the forget gradient at the weights.

    The norm is that over all trained parameters together; the retain gradient is taken at the weights. Such a step is
    far below what 16 bits resolve, so what is trained must be float32.

    Attributes:
        rho: How far the weights are moved, as a Euclidean distance.

    Example:
        >>> from wmdp_fast import NPOSAMConfig
        >>> NPOSAMConfig(rho=0.01, dtype="float32", batch_size=8).to_json()["rho"]
        0.01
    """

    method_name: ClassVar[str] = "npo_sam"
    source: ClassVar[str] = "NPO with sharpness-aware minimization (Fan et al. 2025, arXiv:2502.05374)"
    summary: ClassVar[str] = (
        f"{NPOConfig.summary} The forget loss was lowered where a small change of the weights raises it most, so that"
        " training on related text undoes it less easily."
    )
    search_axes: ClassVar[tuple[SearchAxis, ...]] = (SearchAxis("rho"), *NPOConfig.search_axes)

    rho: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rho", self.rho)
        if self.grad_accum > 1:
            raise ValueError(
                "npo_sam moves the weights along the gradient of a whole step, so grad_accum must be 1; raise"
                " batch_size, with gradient_checkpointing if memory is short"
            )

    def method(self, setup: Setup) -> Method:
        """The method on a model."""
        from wmdp_fast.unlearning.methods.sharpness_aware import SharpnessAware

        return SharpnessAware(setup, self, self.rho)


PRESETS = {
    one.name: one
    for one in (
        Preset(
            "zephyr-7b",
            "HuggingFaceH4/zephyr-7b-beta",
            {
                "parameters": "all",
                "reduction": "batch_mean_padded",
                "learning_rate": 5e-6,
                "beta": 0.015,
                "retain_weight": 2.25,
                "rho": 0.01,
                "max_steps": 125,
                "dtype": "float32",
            },
            "Fan et al. 2025 (arXiv:2502.05374), experiment script of OPTML-Group/Unlearn-Smooth",
            "For bio. Its weights were bfloat16 alone, in which most of the perturbation was rounded away; here they"
            " are float32. The configuration files there hold other values than the script.",
        ),
    )
}
