"""The settings with which the embedded model unlearns its made-up hazardous domain."""

from __future__ import annotations

from wmdp_fast.unlearning.config import RMUConfig


def demo_config(seed: int = 0) -> RMUConfig:
    """Settings for `wmdp_fast.demo`'s model and corpora.

    The model is tiny: six layers, of which the lowest two recall facts. So these are steered, all of their matrices are
    trained, and the learning rate is twenty times that of a model with billions of parameters.

    Measured on all 392 questions of each domain, two seeds: forget 0.977 -> 0.29 and 0.31, retain 0.987 -> 0.94 and
    0.95. The corpora are prose and the test is an exam, so the retain loss does not see all that the exam needs.

    Args:
        seed: Of the control vector.
    """
    return RMUConfig(
        layer_id=1,
        update_layer_ids=(0, 1),
        parameters="proj",
        steering_coeff="auto:5",
        alpha=500.0,
        learning_rate=1e-3,
        batch_size=4,
        max_steps=400,
        epochs=3,
        mode="masked",
        dtype="float32",
        seed=seed,
    )
