"""Evaluations that several processes share, started as `torchrun` would start them; one may be killed."""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tests.support.killed_runs import CHILDREN
from wmdp_fast.scoring.scores import PartialScores

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def evaluate(size: int, folder: Path, *, killed: tuple[int, int] | None = None, **options: Any) -> list[int | None]:
    """Evaluates with so many ranks, and says how each has ended.

    Args:
        size: How many.
        folder: Where rank N saves its scores as `N.npz`: all log-likelihoods of tasks (`scores`), how many were there
            before (`resumed`) and where the results are (`saved_to`).
        killed: A rank, and the number of its batches after which it is killed.
        options: Of `wf.evaluate`.
    """
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    places = [{"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)} for rank in range(size)]
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    children = [CHILDREN.Process(target=_run, args=(place | address, folder, killed, options)) for place in places]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    return [child.exitcode for child in children]


def scores_in(folder: Path, rank: int = 0) -> tuple[NDArray[np.float64], int]:
    """The log-likelihoods that a rank has saved, and how many were there before."""
    with np.load(folder / f"{rank}.npz") as found:
        return found["scores"], int(found["resumed"])


def _run(environment: dict[str, str], folder: Path, killed: tuple[int, int] | None, options: dict[str, Any]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    rank = int(environment["RANK"])
    if killed is not None and killed[0] == rank:
        _kill_after(killed[1])
    import wmdp_fast as wf

    result = wf.evaluate(**options, device="cpu", progress=False)
    outcomes = [task.outcome.loglikelihood for task in result.tasks.values()]
    perplexities = [np.array([text["word_perplexity"]]) for text in result.texts.values()]
    np.savez(
        folder / f"{rank}.npz",
        scores=np.concatenate([*outcomes, *perplexities]),
        resumed=result.details["choices_resumed"],
    )


def _kill_after(batches: int) -> None:
    """Has this process kill itself when so many batches of a run with a journal are scored and written down."""
    enter, left = PartialScores.enter, batches

    def entering(self: PartialScores, *arguments: Any, **options: Any) -> None:
        nonlocal left
        enter(self, *arguments, **options)
        left -= self.journal is not None
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    PartialScores.enter = entering  # type: ignore[method-assign]


def questions_and_text(folder: Path, questions: int, texts: int) -> dict[str, Any]:
    """Writes questions and texts, and returns what `evaluate` is asked about them but for the model."""
    names = ["wren", "oak", "ox", "ant"]
    rows = [
        {"question": f"Which is bird {i}?" * (1 + i % 3), "choices": names[i % 4 :] + names[: i % 4], "answer": i % 4}
        for i in range(questions)
    ]
    (folder / "birds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "letters.txt").write_text("\n".join(f"The wren has {i} eggs." for i in range(texts)), encoding="utf-8")
    return {"tasks": folder / "birds.jsonl", "text": folder / "letters.txt", "choices": "texts", "token_budget": 48}
