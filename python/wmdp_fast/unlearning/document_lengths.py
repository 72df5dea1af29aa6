"""How long the documents of a run are, and whether the model lets each be itself at that length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmdp_fast.exceptions import ModelError
from wmdp_fast.models.row_length import length_rules
from wmdp_fast.unlearning.batches import lengths_by_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from wmdp_fast.unlearning.source import Corpora
    from wmdp_fast.unlearning.training_config import Topic, TrainingConfig


def longest_document(config: TrainingConfig, topics: Sequence[Topic], corpora: Corpora, model: nn.Module) -> int:
    """Maximum tokens of a document that a run takes.

    Args:
        config: The settings.
        topics: The settings of each topic.
        corpora: The tokens.
        model: What they are for.

    Raises:
        ModelError: What the model makes of documents would depend on which others are in their batch, or came before.
    """
    limits = [
        *((corpus, topic.max_length, "max_length") for corpus, topic in zip(corpora.forget, topics, strict=True)),
        *((corpus, config.retain_max_length, "retain_max_length") for corpus in corpora.retain),
    ]
    longest = 0
    for corpus, max_length, option in limits:
        batches = [one for one in lengths_by_batch(corpus, batch_size=config.batch_size, max_length=max_length) if one]
        longest = max(longest, *map(max, batches))
        for rule in length_rules(model, longest):
            beyond = [lengths for lengths in batches if max(lengths) > rule.limit]
            advice = f"lower {option} to {rule.limit}"
            if beyond and rule.kind == "dynamic":
                raise ModelError(
                    f"{corpus.name}: {rule.what} of documents of more than {rule.limit} tokens"
                    f" depend on those of earlier batches; {advice}"
                )
            cuts = rule.cuts(longest)
            mixed = any(min(lengths) < cut <= max(lengths) for lengths in beyond for cut in cuts)
            if not config.reference and mixed:
                raise ModelError(
                    f"{corpus.name}: one document of more than {rule.limit} tokens changes the {rule.what} of all in"
                    f" its batch; {advice}, or take mode reference, which does so as the original RMU does"
                )
    return longest
