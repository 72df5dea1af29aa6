"""Linear probes: whether a layer's activations tell right answers from wrong ones, whatever the model says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from wmdp_fast.robustness.answers import Answers
from wmdp_fast.robustness.nested_cv import SLOTS, Examples, Probed, probe
from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting
from wmdp_fast.robustness.residual_stream import residual_stream
from wmdp_fast.robustness.split import near_duplicates

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from wmdp_fast._rust import Question
    from wmdp_fast.prompts.prepare import TaskQuestions
    from wmdp_fast.robustness.questions import Questions
    from wmdp_fast.robustness.subject import Subject

# How many layers are probed, spread evenly; the last always.
_LAYERS: dict[Budget, int] = {"quick": 4, "standard": 1000, "full": 1000}

# What is probed: each choice as the answer to its question, at its last token; each letter after the question's own
# prompt; or the prompt's end, for which letter is right.
_FORMS: dict[Budget, tuple[str, ...]] = {
    "quick": ("claims",),
    "standard": ("claims", "letters", "prompts"),
    "full": ("claims", "letters", "prompts"),
}


class Probe(Attack):
    """Fits linear probes to the activations of every layer."""

    name: ClassVar[str] = "probe"
    summary: ClassVar[str] = "linear probes of every layer for which choice is right, by nested cross-validation"
    access: ClassVar[Access] = "activations"
    about: ClassVar[str] = (
        "Logistic regression on standardized activations, layer and penalty chosen inside each fold, so that no probe"
        " has seen the questions that it answers, nor near-duplicates of them. Probes learn from questions of both"
        " halves. Much of what one finds may be how questions are worded, not what the model knows: compare with the"
        " null (shuffled answers), the base and a model that never learned. Activations of each layer at every choice"
        " are kept in memory, in the model's dtype: a gigabyte for 1,000 questions on a 7B model in bfloat16."
    )

    def settings(self, budget: Budget, seed: int) -> Sequence[Setting]:
        """Each form, with the right answers and with shuffled ones."""
        return [
            Setting(values={"form": form, "answers": answers, "layers": _LAYERS[budget], "seed": seed}, null=null)
            for form in _FORMS[budget]
            for answers, null in (("right", False), ("shuffled", True))
        ]

    def why_not(self, subject: Subject, _setting: Setting) -> str | None:
        """There may be too few questions to part."""
        found = len(set(near_duplicates(_asked(subject.questions))))
        return None if found >= SLOTS else f"{found} questions are too few to part into folds; it takes {SLOTS}"

    def cost(self, _subject: Subject, setting: Setting) -> float:
        """Passes without the trie over a row for each choice or question, and the fits."""
        return 4.0 if setting.values["form"] == "prompts" else 10.0

    def run(self, subject: Subject, setting: Setting) -> Iterator[Reading]:
        """One reading: what the probes answer to the questions of the folds that they were not fitted on.

        With shuffled answers, an answer is right that is the shuffled one.
        """
        values = setting.values
        form, most, seed = values["form"], int(values["layers"]), int(values["seed"])
        # What probes learn from is not kept, which may be gigabytes; what they answer is, for the other setting.
        answered = subject.once(("probes", form, most, seed), lambda: _answered(subject, form, most, seed))
        layers, shuffled = answered.layers, answered.shuffled
        found = shuffled if setting.null else answered.right
        reported = ~subject.questions.is_for_choosing
        figures: dict[str, Any] = {
            "layers": layers,
            "accuracy_by_layer": list(found.accuracy_by_layer),
            "ranked_by_layer": list(found.ranked_by_layer),
            "ranked": float(found.ranked[reported].mean()),
            "ranked_over_shuffled": float((found.ranked - shuffled.ranked)[reported].mean()),
            "chosen": [[layers[layer], strength] for layer, strength in found.chosen],
        }
        if layers == list(range(layers[-1] + 1)):  # as a curve it begins at layer 0 and leaves none out
            by_layer = {"probe": list(found.accuracy_by_layer), "shuffled": list(shuffled.accuracy_by_layer)}
            figures["by_layer"] = by_layer
        gold = answered.shuffled_gold if setting.null else subject.questions.gold
        yield Reading(answers=Answers.from_predictions(found.predicted, gold), figures=figures)


@dataclass(frozen=True, kw_only=True)
class _Answered:
    """What probes answered.

    Attributes:
        layers: The numbers of the layers that were probed.
        right: Probes that were taught the right answers.
        shuffled: Those that were taught shuffled ones.
        shuffled_gold: The shuffled answers, `[n]`.
    """

    layers: list[int]
    right: Probed
    shuffled: Probed
    shuffled_gold: NDArray[np.int64]


def _answered(subject: Subject, form: str, most: int, seed: int) -> _Answered:
    examples, layers = _examples(subject, form, most)
    control, groups = examples.shuffled(seed), near_duplicates(_asked(subject.questions))
    right, shuffled = (probe(one, groups, seed=seed, device=subject.model.loaded.device) for one in (examples, control))
    return _Answered(layers=layers, right=right, shuffled=shuffled, shuffled_gold=control.gold)


def _examples(subject: Subject, form: str, most: int) -> tuple[Examples, list[int]]:
    """What probes learn from, and the numbers of the layers that it is from."""
    questions = subject.questions
    rows = _rows(subject, form)
    streams = residual_stream(subject.model, rows, [[1]] * len(rows))
    count = min(most, len(streams))
    layers = sorted({len(streams) - 1 - place * len(streams) // count for place in range(count)})
    examples = Examples(
        layers=[streams[layer] for layer in layers],
        num_choices=np.array([len(question.choices) for question in _asked(questions)]),
        gold=questions.gold,
        per_choice=form != "prompts",
    )
    return examples, layers


def _asked(questions: Questions) -> list[Question]:
    return [question for one in questions.read for question in one.questions]


def _rows(subject: Subject, form: str) -> list[list[int]]:
    model, questions = subject.model, subject.questions
    if form == "claims":
        requests = questions.requests(model, questions.prompts(model, _as_claims))
    else:
        requests = questions.own(model)[1]
    if form == "prompts":
        return [requests.context(question).tolist() for question in range(len(questions))]
    return [
        requests.context(question).tolist() + requests.continuation(choice).tolist()
        for question in range(len(questions))
        for choice in range(*requests.choice_offsets[question : question + 2].tolist())
    ]


def _as_claims(one: TaskQuestions) -> TaskQuestions:
    """A task whose prompts show no choices and end in one."""
    task = replace(one.task, doc_to_text="question", choices="texts", num_fewshot=0)
    return replace(one, task=task)
