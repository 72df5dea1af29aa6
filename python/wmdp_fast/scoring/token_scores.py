"""Scores of single tokens, put together to those of choices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wmdp_fast.scoring.scores import NAN_ADVICE, NumbersError, PartialScores, TargetScores

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from wmdp_fast._rust import Requests, TrieBatch


class TokenScores:
    """Scores of single tokens until their choice has all of them; it may be spread over several batches."""

    def __init__(self, requests: Requests) -> None:
        self._offsets = requests.continuation_offsets
        lengths = np.diff(self._offsets)
        self._choices = np.repeat(np.arange(len(lengths)), lengths)
        self._missing = lengths
        self._logprobs = np.full(len(self._choices), np.nan)
        self._greedy = np.zeros(len(self._choices), dtype=np.bool_)

    def needed(self, batches: Iterable[TrieBatch], finished: NDArray[np.bool_]) -> Mapping[int, bool]:
        """Which of a run's batches must be run if some choices are finished.

        Those that have others to score, and those whose tokens such batches hang below: run again in the batch that
        they were in, tokens get the same keys and values bit for bit.
        """
        outlines = [
            (batch.num_carried, batch.keep[:, 1], not finished[self._choices[batch.targets]].all()) for batch in batches
        ]
        needed = {}
        wanted = 0  # tokens that later batches want of what is carried over after the batch at hand
        for index, (num_carried, keep_ends, unfinished) in reversed([*enumerate(outlines)]):
            passed_on = int(keep_ends[keep_ends <= num_carried].max(initial=0))
            needed[index] = unfinished or wanted > passed_on
            wanted = num_carried if needed[index] else wanted
        return needed

    def enter(self, indices: NDArray[np.int64], targets: TargetScores, partial: PartialScores) -> None:
        """Enters tokens, given by their place in the run, and hands on the choices that are complete now.

        Raises:
            ModelError: The model's output is not a number.
        """
        if np.isnan(targets.logprobs).any():
            raise NumbersError(NAN_ADVICE)
        new = indices[np.isnan(self._logprobs[indices])]
        np.subtract.at(self._missing, self._choices[new], 1)
        self._logprobs[indices] = targets.logprobs
        self._greedy[indices] = targets.greedy
        choices = np.unique(self._choices[indices])
        runs = [np.arange(*self._offsets[choice : choice + 2]) for choice in choices[self._missing[choices] == 0]]
        if runs:
            found = np.concatenate(runs)
            scores = TargetScores(self._logprobs[found], self._greedy[found], targets.sum_dtype)
            partial.add(scores, self._choices[found])
