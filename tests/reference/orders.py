"""Questions with their choices in other orders, and what the order does to the answers, written out plainly."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def orders_of(n: int, which: str) -> list[tuple[int, ...]]:
    """For each order, which choice stands in each place; the first order changes nothing."""
    if which == "all":
        return list(itertools.permutations(range(n)))
    return [(*range(shift, n), *range(shift)) for shift in range(n)]


def permuted(questions: Sequence[dict[str, Any]], which: str) -> list[dict[str, Any]]:
    return [
        question
        | {"choices": [question["choices"][choice] for choice in order], "answer": order.index(question["answer"])}
        for question in questions
        for order in orders_of(len(question["choices"]), which)[1:]
    ]


@dataclass(frozen=True)
class Effects:
    orders: dict[str, tuple[int, float]]
    mean: float
    sd: float | None
    changed: float
    consistent: float
    letters: dict[str, tuple[float, float, float]]


def effects(questions: Sequence[dict[str, Any]], places: Sequence[Sequence[int]], which: str) -> Effects:
    """`places[q][o]` is the place that the model picks in order o of question q."""
    right_by_order: dict[tuple[int, ...], list[bool]] = {}
    mean, changed, consistent = [], [], []
    for question, picked in zip(questions, places, strict=True):
        choices = question["choices"]
        orders = orders_of(len(choices), which)
        answers = [order[place] for order, place in zip(orders, picked, strict=True)]
        texts = [choices[answer] for answer in answers]
        right = [answer == question["answer"] for answer in answers]
        for order, is_right in zip(orders, right, strict=True):
            right_by_order.setdefault(order, []).append(is_right)
        mean.append(fmean(right))
        changed.append(fmean(text != texts[0] for text in texts[1:]))
        consistent.append(len(set(texts)) == 1)
    by_order = {
        "".join(LETTERS[choice] for choice in order): (len(right_by_order[order]), fmean(right_by_order[order]))
        for order in sorted(right_by_order, key=lambda order: (len(order), order))
    }
    sizes = {len(question["choices"]) for question in questions}
    return Effects(
        orders=by_order,
        mean=fmean(mean),
        sd=stdev(accuracy for _, accuracy in by_order.values()) if len(sizes) == 1 else None,
        changed=fmean(changed),
        consistent=fmean(consistent),
        letters={
            LETTERS[place]: (
                fmean(question["answer"] == place for question in questions),
                fmean(picked[0] == place for picked in places),
                fmean(fmean(pick == place for pick in picked) for picked in places),
            )
            for place in range(max(sizes))
        },
    )
