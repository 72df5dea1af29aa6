"""Cuts a run into parts with alike work, each of which is scored as a run of its own.

A shard is a run of questions in the order of the trie's paths, so what neighbors have in common is still run once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wmdp_fast._rust import Requests


@dataclass(frozen=True)
class Shard:
    """A part of a run.

    Attributes:
        number: Which, from 0.
        of: How many there are.
        choices: Its choices, by their numbers in the whole run: int64 `[N]`.
        requests: Its questions as a run of their own, whose choices are these in the same order.
    """

    number: int
    of: int
    choices: NDArray[np.int64]
    requests: Requests


def shards_of(requests: Requests, count: int, finished: NDArray[np.bool_]) -> list[Shard]:
    """The shards of what is not finished; those without a question are left out.

    Args:
        requests: The whole run.
        count: How many shards.
        finished: Which choices need no score: bool `[num_choices]`. A question without others is in no shard.
    """
    offsets = requests.choice_offsets
    wanted = [q for q in range(requests.num_questions) if not finished[offsets[q] : offsets[q + 1]].all()]
    order, tokens = _in_order(requests, wanted)
    ends = np.cumsum(tokens)
    total = max(int(tokens.sum()), 1)
    # A question is where its middle is: no shard is off its share by more than half a question at either end.
    shard = np.minimum((2 * ends - tokens) * count // (2 * total), count - 1)
    found = []
    for number in range(count):
        questions = np.sort(order[shard == number])
        if len(questions):
            choices = np.concatenate([np.arange(*offsets[q : q + 2]) for q in questions])
            found.append(Shard(number, count, choices, requests.part(questions.tolist())))
    return found


def _in_order(requests: Requests, questions: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Questions in the order of their tokens, and for each the tokens that it adds to those before it."""
    offsets = requests.choice_offsets
    inputs, lengths = {}, {}
    for question in questions:
        own = [len(requests.continuation(choice)) for choice in range(*offsets[question : question + 2])]
        # Of a long prompt the model reads the end, after which it has room for the choice.
        room = requests.max_length + 1 - max(own, default=1)
        inputs[question] = requests.context(question)[-room:]
        lengths[question] = sum(own) - len(own)
    # Bytes in this order compare as the numbers do.
    order = sorted(questions, key=lambda question: (inputs[question].astype(">u4").tobytes(), question))
    tokens, before = [], np.empty(0, dtype=np.int64)
    for question in order:
        here = inputs[question]
        tokens.append(len(here) - _shared(before, here) + lengths[question])
        before = here
    return np.array(order, dtype=np.int64), np.array(tokens, dtype=np.int64)


def _shared(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many tokens two inputs begin with alike."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    return int(differ.argmax()) if differ.any() else length
