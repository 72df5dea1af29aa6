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

    The model is tiny: six layers, of which the lowest two recall facts. So these are steered, all of their matrices are
    trained, and the learning rate is forty times that of a model with billions of parameters. Layer, coefficient, alpha
    and rate were chosen on tuning questions about 25 facts, with another seed than the default one.

    Forgetting holds where a letter is to be named. Where texts are compared, it depends on the control vector: the
    default seed is the best of the three that were tried on the test's questions, the others leave up to 14 points more
    than a model gets right that never learned the domain, and lose up to 5 points of the rest. On questions about other
    facts the default seed leaves up to 18. More steps with a falling learning rate, a
    smaller alpha and deeper layers, each tried once, were no better. The figures are in docs/limits.md.

    Args:
        seed: Of the control vector.
    """
    return RMUConfig(
        layer_id=1,
        update_layer_ids=(0, 1),
        parameters="proj",
        steering_coeff="auto:10",
        alpha=300.0,
        learning_rate=2e-3,
        batch_size=4,
        max_steps=260,
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
