"""The settings and data with which the embedded model unlearns its made-up hazardous domain."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from wmdp_fast import demo
from wmdp_fast.demo import world
from wmdp_fast.unlearning.rmu.config import RMUConfig

if TYPE_CHECKING:
    import random


def demo_config(seed: int = 0) -> RMUConfig:
    """Settings for `wmdp_fast.demo`'s model, its forget corpus, and `retain_texts`.

    The model is tiny: six layers, of which the lowest two recall facts. The output of the lowest is steered, so that
    the layers above it, which finish the recall, are given next to nothing of which thing a text is about. All of its
    matrices are trained, and the learning rate is forty times that of a model with billions of parameters.

    The settings were chosen on tuning questions about 84 facts that the test does not ask. On these, with each of three
    seeds, 5 to 10 points more are left than a model gets right that never learned the domain, where texts are compared,
    and at most 2 points of the rest are lost in any way of asking. The figures, and what else was tried, are in
    docs/limits.md.

    Args:
        seed: Of the control vector.
    """
    return RMUConfig(
        layer_id=0,
        update_layer_ids=(0,),
        parameters="proj",
        steering_coeff="auto:5",
        alpha=50.0,
        learning_rate=2e-3,
        batch_size=8,
        max_steps=430,
        epochs=4,
        mode="masked",
        dtype="float32",
        seed=seed,
    )


def retain_texts() -> list[str]:
    """The retain data: the retain corpus, and after every fifth document a quiz or an exam on the domain.

    With the corpus alone the model loses up to a third of the retain test where a prompt has words that no document
    has, such as `Q:`. More of them would be worse for forgetting: a kind of text that only the retain data has is a
    sign by itself. They are worded as in training, which the test's are not.
    """
    lines = demo.corpus_path("retain").read_text(encoding="utf-8").splitlines()
    the_world = world.World(world.SHIPPED_SEED)
    rng = the_world.generator("retain data")
    texts = []
    for index, line in enumerate(lines, 1):
        texts.append(json.loads(line)["text"])
        if index % 5 == 0:
            texts.append((_quiz if index % 2 else _exam)(the_world, rng))
    return texts


def _quiz(the_world: world.World, rng: random.Random) -> str:
    lead = rng.choice(("", world.quiz_description(world.DOMAINS["retain"].subject)))
    return lead + world.quiz(the_world.training_quiz("retain", rng, 2), rng.choice(world.QUIZ_WORDS))


def _exam(the_world: world.World, rng: random.Random) -> str:
    lead = rng.choice(("", world.description(world.DOMAINS["retain"].subject)))
    return world.exam(lead, the_world.training_questions("retain", rng, 1), rng.choice(world.LAYOUTS)).text


def held_out_texts() -> list[str]:
    """Text on the retain domain that no corpus has, to measure how far a model goes from the original."""
    the_world = world.World(world.SHIPPED_SEED)
    rng = the_world.generator("held out")
    kept = set(retain_texts())
    documents = [the_world.training_document("retain", rng) for _ in range(24)]
    documents += [world.quiz(the_world.training_quiz("retain", rng, 4)) for _ in range(12)]
    return [document for document in documents if document not in kept]
