"""Evaluations that several processes share, started as `torchrun` would start them; one may be killed."""

from __future__ import annotations

import json
import os
import socket
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tests.support.killed_ranks import count_scored, kill_at
from tests.support.killed_runs import CHILDREN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.process import BaseProcess
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.support.killed_ranks import Moment


def evaluate(
    size: int, folder: Path, *, killed: Moment | None = None, stop_others: bool = True, **options: Any
) -> list[int | None]:
    """Evaluates with so many ranks, and says how each has ended.

    Args:
        size: How many.
        folder: Where rank N saves as `N.npz` all log-likelihoods of tasks and the perplexities of texts (`scores`), how
            many choices of tasks were there before (`resumed`), and how many choices and windows it scored (`scored`).
            If it has read back what was finished, no scores, and the file's name as `N.read`.
        killed: When a rank is killed.
        stop_others: Whether the others are stopped when one fails, as `torchrun` does.
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
    _wait(children, stop_others=stop_others)
    return [child.exitcode for child in children]


def _wait(children: Sequence[BaseProcess], *, stop_others: bool) -> None:
    """Waits for all to end; stops them when one has failed, if that is wanted, or when they take too long."""
    running = {child.sentinel: child for child in children}
    while running:
        ended = connection.wait(list(running), timeout=120)
        failed = any(child.exitcode for child in children)
        if (failed and stop_others) or not ended:
            for child in running.values():
                child.terminate()
        for sentinel in ended:
            running.pop(sentinel).join()


def scores_in(folder: Path, rank: int = 0) -> tuple[NDArray[np.float64], int]:
    """The log-likelihoods that a rank has saved, and how many were there before."""
    with np.load(folder / f"{rank}.npz") as found:
        return found["scores"], int(found["resumed"])


def scored_by(folder: Path, size: int) -> int:
    """How many choices of tasks and windows of texts so many ranks have scored themselves."""
    found = 0
    for rank in range(size):
        with np.load(folder / f"{rank}.npz") as saved:
            found += int(saved["scored"])
    return found


def _run(environment: dict[str, str], folder: Path, killed: Moment | None, options: dict[str, Any]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    if killed is not None and killed.rank == int(environment["RANK"]):
        kill_at(killed, folder)
    scored = count_scored()
    import wmdp_fast as wf

    result = wf.evaluate(**options, device="cpu", progress=False)
    if isinstance(result, wf.SavedResults):
        np.savez(folder / f"{environment['RANK']}.npz", scores=[], resumed=0, scored=scored[0])
        (folder / f"{environment['RANK']}.read").write_text(str(result.path), encoding="utf-8")
        return
    outcomes = [task.outcome.loglikelihood for task in result.tasks.values()]
    perplexities = [np.array([text["word_perplexity"]]) for text in result.texts.values()]
    np.savez(
        folder / f"{environment['RANK']}.npz",
        scores=np.concatenate([*outcomes, *perplexities]),
        resumed=result.details["choices_resumed"],
        scored=scored[0],
    )


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
