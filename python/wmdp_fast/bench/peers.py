"""Engines that `wmdp-fast bench eval` runs in environments of their own: which there are, and the prompts they get."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from wmdp_fast._rust import Requests
    from wmdp_fast.bench.worker import Job

PEERS = ("vllm", "evalution")


def check_peers(job: Job, against: Collection[str], pythons: Collection[tuple[str, str]]) -> None:
    """Refuses what peers cannot do.

    Raises:
        ValueError: The model has no folder, or an interpreter is not there or of no baseline that is run.
    """
    peers = [name for name in against if name in PEERS]
    if peers and job.shape is not None:
        raise ValueError(f"{peers[0]} reads a model's folder: give one in place of a shape")
    for name, python in pythons:
        if name not in peers:
            raise ValueError(f"--peer-python {name}={python}: it is for {' and '.join(PEERS)}, named in --against")
        if shutil.which(python) is None:
            raise ValueError(f"--peer-python {name}={python}: there is no such program")


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
