"""Which questions an attack may learn from, and which are reported.

Half of the questions are for choosing settings, for examples and for training on; the other half are those whose
accuracy is reported. Which is which follows from a question's text alone, so that it is the same for everyone, in any
order and beside any other questions; but near-duplicates, of which one would give away the other, are kept together.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from wmdp_fast._rust import Question

# Questions with the same right answer are near-duplicates if of the words of both they share as many as this.
SIMILAR = 0.8


def for_choosing(questions: Sequence[Question]) -> NDArray[np.bool_]:
    """Which of some questions are for choosing: those of about every other group of near-duplicates.

    Args:
        questions: All questions of an evaluation.

    Returns:
        Whether each is, `[n]`.
    """
    groups = near_duplicates(questions)
    hashes = [hashlib.sha256(normalized(one.question).encode()).digest() for one in questions]
    of_group: dict[int, bytes] = {}
    for group, one in zip(groups, hashes, strict=True):
        of_group[group] = min(one, of_group.get(group, one))
    return np.array([of_group[group][0] % 2 == 0 for group in groups], dtype=bool)


def near_duplicates(questions: Sequence[Question]) -> list[int]:
    """Groups of questions that ask nearly the same.

    Two questions are near-duplicates if their right answers are the same and their words are, up to a Jaccard index of
    `SIMILAR`; so are two that are linked by others. Rewordings that share fewer words are not found.

    Returns:
        For each question the place of the first of its group, `[n]`.
    """
    parent = list(range(len(questions)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    words = [frozenset(normalized(one.question).split()) for one in questions]
    by_answer: dict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(questions):
        by_answer[normalized(one.choices[one.answer])].append(place)
    for places in by_answer.values():
        for first, second in _similar_pairs([words[place] for place in places]):
            # The lower place is the group's name.
            low, high = sorted((root(places[first]), root(places[second])))
            parent[high] = low
    return [root(place) for place in range(len(questions))]


def normalized(text: str) -> str:
    """The words of a text in lower case, with single spaces between."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _similar_pairs(sets: Sequence[frozenset[str]]) -> Iterable[tuple[int, int]]:
    """Pairs of sets whose Jaccard index is at least `SIMILAR`.

    Such two share one of their rarest words: of n words, all but `ceil(SIMILAR * n) - 1` of the commonest. So only sets
    with one of those in common are compared (prefix filtering: Bayardo, Ma and Srikant 2007).
    """
    count = Counter(word for words in sets for word in words)
    holders: dict[str, list[int]] = defaultdict(list)
    for place, words in enumerate(sets):
        if not words:
            continue
        rarest = sorted(words, key=lambda word: (count[word], word))
        prefix = rarest[: len(rarest) - math.ceil(SIMILAR * len(rarest)) + 1]
        for other in sorted({other for word in prefix for other in holders[word]}):
            if len(words & sets[other]) >= SIMILAR * len(words | sets[other]):
                yield other, place
        for word in prefix:
            holders[word].append(place)
