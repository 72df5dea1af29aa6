"""The logit lens: the answers that each layer would give if it were the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting
from wmdp_fast.robustness.residual_stream import residual_stream
from wmdp_fast.robustness.unembedding import Targets, Unembedding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wmdp_fast.robustness.subject import Subject


class Lens(Attack):
    """Reads answers off every layer."""

    name: ClassVar[str] = "lens"
    summary: ClassVar[str] = "the answers of each layer as if it were the last, through the final norm and the head"
    access: ClassVar[Access] = "activations"
    about: ClassVar[str] = (
        "The logit lens (nostalgebraist 2020), used on unlearned models by Lucki et al. 2024. It finds what is"
        " suppressed in the last layers alone. RMU disturbs layers in which no letter can be read yet, so that a low"
        " number says nothing about it. One forward pass over padded rows; the activations of each layer at the"
        " positions of the answers are kept in memory, in the model's dtype. It has no null: nothing is learned."
    )

    def settings(self, _budget: Budget, _seed: int) -> Sequence[Setting]:
        """One."""
        return [Setting(values={})]

    def cost(self, _subject: Subject, _setting: Setting) -> float:
        """A pass without the trie, and the head for each layer."""
        return 2.0

    def run(self, subject: Subject, _setting: Setting) -> Iterator[Reading]:
        """A reading for each layer; figures have the accuracies of all of them."""
        model, questions = subject.model, subject.questions
        unembedding = Unembedding.of(model)
        requests = questions.own(model)[1]
        targets = Targets.of(requests)
        streams = residual_stream(model, targets.rows, targets.from_end)
        answers = [
            questions.answers_by(model, unembedding.scores(stream, targets, requests.num_choices)) for stream in streams
        ]
        chosen = questions.is_for_choosing
        by_layer = {
            "choosing": [float(one.correct[chosen].mean()) for one in answers],
            "reported": [float(one.correct[~chosen].mean()) for one in answers],
        }
        for layer, one in enumerate(answers):
            yield Reading(answers=one, figures={"layer": layer, "by_layer": by_layer})
