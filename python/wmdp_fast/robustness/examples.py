"""Answered examples to put before questions: from those for choosing, and never a question's own kind."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import TYPE_CHECKING

from wmdp_fast._rust import QuestionSet
from wmdp_fast.robustness.split import near_duplicates

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from wmdp_fast._rust import Question


def example_sets(
    questions: Sequence[Question], is_for_choosing: NDArray[np.bool_], count: int, seed: int
) -> tuple[list[int], list[int], list[bool]]:
    """Draws two sets of examples, no question of one a near-duplicate of one of the other.

    Args:
        questions: All questions of a task.
        is_for_choosing: Which of them examples may be taken from, `[n]`.
        count: How many examples a set has.
        seed: Of the draw.

    Returns:
        The places of the first set; those of the second; and for each question whether it is asked after the second,
        since it or a near-duplicate is among the first.

    Raises:
        ValueError: There are fewer than `2 * count` questions for choosing that are no near-duplicates.
    """
    groups = near_duplicates(questions)
    first_of: dict[int, int] = {}
    for place in (place for place, flag in enumerate(is_for_choosing.tolist()) if flag):
        first_of.setdefault(groups[place], place)
    places = list(first_of.values())
    if len(places) < 2 * count:
        raise ValueError(
            f"two sets of {count} examples need {2 * count} questions for choosing; there are {len(places)}"
        )
    random.Random(seed).shuffle(places)  # noqa: S311 (no secret)
    drawn = _letters_in_turn(places, questions)
    first, second = drawn[:count], drawn[count : 2 * count]
    taken = {groups[place] for place in first}
    return first, second, [group in taken for group in groups]


def with_other_answers(questions: QuestionSet, seed: int) -> QuestionSet:
    """The same questions, each said to be answered by one of its wrong choices."""
    rng = random.Random(seed)  # noqa: S311 (no secret)
    rows = [
        {
            **one.extra,
            **({} if one.subject is None else {"subject": one.subject}),
            "question": one.question,
            "choices": one.choices,
            "answer": rng.choice([place for place in range(len(one.choices)) if place != one.answer]),
        }
        for one in questions
    ]
    return QuestionSet.from_rows(rows, file=questions.file)


def _letters_in_turn(places: Sequence[int], questions: Sequence[Question]) -> list[int]:
    """Places in an order in which right answers go through the letters, as far as they last: none is preferred."""
    by_letter: dict[int, list[int]] = defaultdict(list)
    for place in places:
        by_letter[questions[place].answer].append(place)
    rounds = max((len(some) for some in by_letter.values()), default=0)
    return [some[turn] for turn in range(rounds) for some in by_letter.values() if turn < len(some)]
