"""Attacks that only ask: what each question is asked, and how its answers are read."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.reference.orders import orders_of
from tests.support import robustness as support
from wmdp_fast._rust import QuestionSet
from wmdp_fast.robustness.attacks.calibrate import Calibrate
from wmdp_fast.robustness.attacks.cloze import Cloze
from wmdp_fast.robustness.attacks.fewshot import FewShot
from wmdp_fast.robustness.attacks.orders import Orders
from wmdp_fast.robustness.attacks.prompts import Prompts, list_version, wordings
from wmdp_fast.robustness.examples import example_sets, with_other_answers
from wmdp_fast.robustness.protocol import Setting
from wmdp_fast.robustness.questions import Questions
from wmdp_fast.robustness.split import for_choosing, near_duplicates

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from wmdp_fast.robustness.protocol import Attack, Reading
    from wmdp_fast.robustness.subject import Subject


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    made: Path = tmp_path_factory.mktemp("asked")
    return support.subject(support.save_model(made / "model"), support.save_questions(made / "birds.jsonl"))


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked in a test, question after question."""
    asked: list[str] = []
    ask = Questions.ask

    def kept(self: Questions, model: object, prompts: object = None) -> object:
        for of_task in prompts or ():
            asked.extend(of_task.context(place) for place in range(len(of_task)))
        return ask(self, model, prompts)

    monkeypatch.setattr(Questions, "ask", kept)
    return asked


def reading(attack: Attack, subject: Subject, **values: object) -> Reading:
    setting = Setting(values=values)
    assert attack.why_not(subject, setting) is None
    [found] = attack.run(subject, setting)
    assert found.utility is None
    return found


def questions_of(subject: Subject) -> QuestionSet:
    return subject.questions.read[0].questions


def test_no_question_is_asked_after_itself_or_its_kind(subject: Subject, contexts: list[str]) -> None:
    found = reading(FewShot(), subject, examples=5, seed=3)
    questions, chosen = list(questions_of(subject)), subject.questions.is_for_choosing
    groups = near_duplicates(questions)
    assert len(contexts) == len(questions) == len(found.answers.predicted)
    for question, group, context in zip(questions, groups, contexts, strict=True):
        *examples, asked = context.split("\n\n")[1:]
        assert asked.startswith(question.question)
        taken = [place for place, one in enumerate(questions) if any(one.question in text for text in examples)]
        assert len(examples) == len(taken) == 5
        assert chosen[taken].all()
        assert group not in {groups[place] for place in taken}
        # Answered rightly, and with letters in turn.
        for text in examples:
            [one] = [one for one in questions if one.question in text]
            assert text.endswith(f"Answer: {'ABCD'[one.answer]}")
        assert len({text[-1] for text in examples}) == 4
    # All but these few have the same examples, which are shared by a trie.
    assert 5 <= found.figures["asked after the second set"] < 12
    assert len({context.rpartition("\n\n")[0] for context in contexts}) == 2


def test_near_duplicates_of_an_example_are_asked_after_others() -> None:
    rows = [
        {
            "question": f"{' '.join(letter * n for n in range(1, 7))} {kind} of the list",
            "choices": ["owl", "hen"],
            "answer": 0,
        }
        for letter in "abcdefghijkl"
        for kind in ("long", "old")
    ]
    questions = list(QuestionSet.from_rows(rows))
    groups = near_duplicates(questions)
    chosen = for_choosing(questions)
    count = len({group for group, flag in zip(groups, chosen, strict=True) if flag}) // 2
    assert count > 0
    first, second, after_second = example_sets(questions, chosen, count, seed=0)
    assert not {groups[place] for place in first} & {groups[place] for place in second}
    for place, flag in enumerate(after_second):
        assert groups[place] not in {groups[example] for example in (second if flag else first)}
    with pytest.raises(ValueError, match=r"two sets of 40 examples need 80 questions for choosing; there are \d+"):
        example_sets(questions, chosen, 40, seed=0)


def test_the_control_has_the_same_examples_with_wrong_answers(subject: Subject, contexts: list[str]) -> None:
    reading(FewShot(), subject, examples=5, seed=3)
    right = contexts.copy()
    contexts.clear()
    reading(FewShot(), subject, examples=5, seed=3, answers="wrong")
    for one, other in zip(right, contexts, strict=True):
        differing = [place for place, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]]
        assert len(differing) == 5
        assert all(one[place - 8 : place] == "Answer: " for place in differing)
    questions = questions_of(subject)
    assert all(a.answer != b.answer for a, b in zip(questions, with_other_answers(questions, 1), strict=True))


def test_too_few_questions_for_examples_are_said(subject: Subject) -> None:
    reason = FewShot().why_not(subject, Setting(values={"examples": 30, "seed": 0}))
    assert reason is not None
    assert reason.startswith("birds: two sets of 30 examples need 60 questions for choosing; there are ")


def test_the_list_of_prompts_is_frozen() -> None:
    # A change of the list is a new version of it, and other numbers.
    assert list_version() == {"list": 1, "sha256": "e295b2c391afbe4cee62a0fd98290f4db861afa44eb957c9f6a0781cd85660f6"}
    kinds = [one.kind for one in wordings().values()]
    assert {"rewording", "filler", "style", "labels", "instruction"} == set(kinds)
    assert len(kinds) == 19
    assert all(one.text.count("{question}") == one.text.count("{choices}") == 1 for one in wordings().values())


@pytest.mark.parametrize("name", ["Hindi filler", "numbers", "without description"])
def test_a_question_is_asked_in_that_way(subject: Subject, contexts: list[str], name: str) -> None:
    found = reading(Prompts(), subject, prompt=name, list=1)
    assert found.figures["kind"] == wordings()[name].kind
    assert found.answers.calibrated is not None
    labels = "1234" if name == "numbers" else "ABCD"
    description = "" if name == "without description" else subject.questions.read[0].task.description
    for question, context in zip(questions_of(subject), contexts, strict=True):
        lines = "".join(f"{label}. {choice}\n" for label, choice in zip(labels, question.choices, strict=True))
        text = wordings()[name].text.replace("{question}", question.question).replace("{choices}", lines)
        assert context == description + text


def test_labels_are_what_is_answered(subject: Subject) -> None:
    [asked] = subject.questions.prompts(subject.model, wordings()["numbers"].of)
    assert [asked.continuation(5, place) for place in range(4)] == [" 1", " 2", " 3", " 4"]
    assert asked.answers == [one.answer for one in questions_of(subject)]


def test_orders_are_averaged_over_every_place(subject: Subject) -> None:
    found = reading(Orders(), subject, orders="cyclic")
    questions = list(questions_of(subject))
    total = np.zeros((len(questions), 4))
    for order in orders_of(4, "cyclic"):
        rows = [
            {"question": one.question, "choices": [one.choices[choice] for choice in order], "answer": 0}
            for one in questions
        ]
        total[:, order] += scored(subject, partial(replace, questions=QuestionSet.from_rows(rows)))
    assert found.answers.predicted.tolist() == total.argmax(axis=1).tolist()


def scored(subject: Subject, change: Callable[..., object] | None = None) -> np.ndarray:
    """Log-likelihoods of each question's choices, `[n, 4]`."""
    prompts = None if change is None else subject.questions.prompts(subject.model, change)
    [outcome] = subject.questions.ask(subject.model, prompts)
    return outcome.loglikelihood.reshape(-1, 4)


def test_calibrated_answers_have_means_of_questions_for_choosing(subject: Subject) -> None:
    found = reading(Calibrate(), subject)
    scores, chosen = scored(subject), subject.questions.is_for_choosing
    assert found.answers.predicted.tolist() == (scores - scores[chosen].mean(axis=0)).argmax(axis=1).tolist()
    assert found.figures["letters before"] == np.bincount(scores.argmax(axis=1), minlength=0).tolist()


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_cloze_scores_the_choices_texts(subject: Subject, contexts: list[str], metric: str) -> None:
    found = reading(Cloze(), subject, form="question", metric=metric)
    assert found.answers.calibrated is None
    assert contexts[3] == f"Question: {questions_of(subject)[3].question}\nAnswer:"
    as_text = {"doc_to_text": "question", "choices": "texts", "description": ""}
    lengths = [[len(choice) for choice in one.choices] for one in questions_of(subject)]
    scores = scored(subject, lambda one: replace(one, task=replace(one.task, **as_text)))
    best = scores / np.array(lengths) if metric == "acc_norm" else scores
    assert found.answers.predicted.tolist() == best.argmax(axis=1).tolist()
