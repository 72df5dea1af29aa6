"""The batches of `wmdp_fast.Requests`, cut in plain Python: lm-eval's `Collator` and `HFLM._loglikelihood_tokens`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Question = tuple[list[int], list[list[int]]]
"""Token ids of a context, and those of each choice's continuation."""


@dataclass
class Row:
    """A distinct input, and the choices that are read from it: (choice over the whole run, its continuation)."""

    tokens: list[int]
    choices: list[tuple[int, list[int]]] = field(default_factory=list)


class PaddedBatch:
    """The attributes of `wmdp_fast.PaddedBatch`."""

    def __init__(self, rows: list[Row], stop: int) -> None:
        width = max(len(row.tokens) for row in rows)
        self.input_ids = np.array([row.tokens + [0] * (width - len(row.tokens)) for row in rows])
        self.lengths = np.array([len(row.tokens) for row in rows])
        self.stop = stop
        readouts, targets = [], []
        for index, row in enumerate(rows):
            contlen = len(row.choices[0][1])
            first = len(readouts)
            readouts += [(index, position) for position in range(len(row.tokens) - contlen, len(row.tokens))]
            for choice, continuation in row.choices:
                targets += [(first + at, token, choice) for at, token in enumerate(continuation)]
        self.readouts = np.array(readouts)
        self.target_readouts, self.target_tokens, self.target_choices = np.array(targets).T.copy()


class Requests:
    """The attributes of `wmdp_fast.Requests` that scoring needs."""

    def __init__(self, questions: list[Question], max_length: int) -> None:
        self.num_questions = len(questions)
        self.choice_offsets = np.cumsum([0, *(len(continuations) for _, continuations in questions)])
        self.num_choices = int(self.choice_offsets[-1])
        rows: list[Row] = []
        choice = 0
        for context, continuations in questions:
            of_question: dict[tuple[int, ...], Row] = {}
            for continuation in continuations:
                tokens = (context + continuation)[-(max_length + 1) :][:-1]
                row = of_question.setdefault(tuple(continuation[:-1]), Row(tokens))
                row.choices.append((choice, continuation))
                choice += 1
            rows += of_question.values()
        self.rows = sorted(rows, key=lambda row: -len(row.tokens))
        self.num_rows = len(rows)
        self.num_tokens = sum(len(row.tokens) for row in rows)

    def padded_batch(self, start: int, token_budget: int, cuts: Sequence[int] = ()) -> PaddedBatch | None:
        if start >= len(self.rows):
            return None
        width = len(self.rows[start].tokens)
        stop = min(len(self.rows), start + max(1, token_budget // width))
        # On which side of each cut a row is.
        sides = [[len(row.tokens) < cut for cut in cuts] for row in self.rows]
        stop = next((index for index in range(start, stop) if sides[index] != sides[start]), stop)
        return PaddedBatch(self.rows[start:stop], stop)
