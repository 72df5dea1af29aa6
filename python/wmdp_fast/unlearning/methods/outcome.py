"""What methods over logits find at the end of a run, and how their cards tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from wmdp_fast.models.threads import computing
from wmdp_fast.unlearning.method import CardText, Findings
from wmdp_fast.unlearning.methods.effect import CHANGE, TRAINED, WAYS_BACK, Effect, advice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wmdp_fast.unlearning.batch_reader import BatchReader
    from wmdp_fast.unlearning.language_model import LanguageModel
    from wmdp_fast.unlearning.verdict import Remedies


def effects_after(model: LanguageModel, batches: BatchReader, steps: int) -> tuple[Effect, ...]:
    """What so many steps did to losses, by topic, with the weights as they are.

    Forget documents beyond those of the steps are taken, if there are any.
    """
    places = [batches.after(topic, steps) for topic in range(batches.num_topics)]
    return tuple(effect_at(model, batches, topic, index, unseen=unseen) for topic, (index, unseen) in enumerate(places))


def effect_at(model: LanguageModel, batches: BatchReader, topic: int, index: int, *, unseen: bool) -> Effect:
    """How losses of a topic's batches differ from those of the original model.

    Args:
        model: The model.
        batches: Cuts batches.
        topic: The topic.
        index: The number of the batches.
        unseen: Whether the forget documents were not trained on.
    """
    forget, retain = batches.forget(topic, index), batches.retain(topic, index)
    with computing(), torch.no_grad():
        now = [model.losses(batch).mean() for batch in (forget, retain)]
        divergence = model.kl(retain).mean()
        with model.originals():
            before = [model.losses(batch).mean() for batch in (forget, retain)]
    return Effect(topic, unseen, *torch.stack([*now, *before, divergence]).tolist())


def effects_findings(
    effects: Sequence[Effect], *, forgets: bool, remedies: Remedies = TRAINED, record: Mapping[str, Any] | None = None
) -> Findings:
    """What is recorded of effects, what of it must be finite, and the verdict on it.

    Args:
        effects: Of each topic.
        forgets: Whether the run was to forget anything.
        remedies: What to change if it did not do what it should.
        record: What else is recorded.
    """
    return Findings(
        record={**(record or {}), "effects": [one.to_json() for one in effects]},
        figures={f"{key} {one.topic}": value for one in effects for key, value in one.figures.items()},
        verdict=advice(effects, forgets=forgets, remedies=remedies),
    )


def effects_card(record: Mapping[str, Any], *, source: str, summary: str) -> CardText:
    """What the card of a method says whose record has `effects`.

    Args:
        record: The content of `unlearn.json`.
        source: The method's name with its source.
        summary: What was done to the model, as sentences.
    """
    effects = [Effect.from_json(one) for one in record["effects"]]
    return CardText(
        method=source,
        summary=f"{summary} {' '.join(one.sentence for one in effects)}",
        change=CHANGE,
        ways_back=WAYS_BACK,
    )
