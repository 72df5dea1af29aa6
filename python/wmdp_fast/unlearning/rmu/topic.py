"""The settings of RMU that are per topic."""

from __future__ import annotations

from dataclasses import dataclass

from wmdp_fast.unlearning.training_config import Topic


@dataclass(frozen=True)
class RMUTopic(Topic):
    """The settings of one forget corpus and its retain corpus.

    Attributes:
        steering_coeff: Length of the control vector, or None where it follows from activations.
        auto_factor: With None above, the control vector is so many times as long as an activation.
        alpha: Weight of the retain loss.
    """

    steering_coeff: float | None
    auto_factor: float
    alpha: float
