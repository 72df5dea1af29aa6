"""The settings and data with which the embedded model unlearns its made-up hazardous domain."""

from __future__ import annotations

import json
import random

from wmdp_fast import demo
from wmdp_fast.demo import world
from wmdp_fast.unlearning.rmu.config import RMUConfig


def demo_config(seed: int = 0) -> RMUConfig:
    """Settings for `wmdp_fast.demo`'s model, its forget corpus, and `retain_texts`.

    The model is tiny: six layers, of which the lowest two recall facts. So these are steered, all of their matrices are
    trained, and the learning rate is twenty times that of a model with billions of parameters.

    Args:
        seed: Of the control vector.
    """
    return RMUConfig(
        layer_id=1,
        update_layer_ids=(0, 1),
        parameters="proj",
        steering_coeff="auto:5",
        alpha=300.0,
        learning_rate=1e-3,
        batch_size=4,
        max_steps=260,
        epochs=4,
        mode="masked",
        dtype="float32",
        seed=seed,
    )


def retain_texts() -> list[str]:
    """The retain data: documents of the retain corpus, and questions as the model was taught, in turns.

    With prose alone the model loses 3 to 4 points of the retain test, since the loss never sees an exam. The questions
    are worded as in training, which the test's are not.
    """
    lines = demo.corpus_path("retain").read_text(encoding="utf-8").splitlines()
    rng = random.Random(1)  # noqa: S311 (no secret)
    asked = world.World(world.SHIPPED_SEED).training_questions("retain", rng, len(lines) // 2)
    exams = [world.exam(world.DOMAINS["retain"].subject, [question]) for question in asked]
    return [text for line, exam in zip(lines, exams, strict=False) for text in (json.loads(line)["text"], exam)]
