"""The prompts of a benchmark as tokens in a file, for engines that run in environments of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast._rust import Requests


def save_tokens(requests: Requests, path: Path) -> None:
    """Writes all prompts as tokens, for peers to read: an `.npz` of int64 arrays.

    Raises:
        ValueError: A prompt is longer than the model takes: engines cut such prompts each in its own way.
    """
    contexts = [requests.context(question) for question in range(requests.num_questions)]
    continuations = [requests.continuation(choice) for choice in range(requests.num_choices)]
    offsets = requests.choice_offsets
    for question, context in enumerate(contexts):
        longest = max(len(continuations[choice]) for choice in range(*offsets[question : question + 2].tolist()))
        # One more is sampled by engines that cannot do without.
        if len(context) + longest + 1 > requests.max_length:
            raise ValueError(
                f"question {question} has {len(context)} tokens and a choice of {longest}, and the model takes"
                f" {requests.max_length}: engines cut these each in its own way; take fewer examples"
            )
    np.savez(
        path,
        contexts=np.concatenate(contexts),
        context_offsets=np.cumsum([0, *map(len, contexts)]),
        continuations=np.concatenate(continuations),
        continuation_offsets=requests.continuation_offsets,
        choice_offsets=offsets,
    )
