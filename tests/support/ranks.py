"""Evaluations and runs of unlearning that several processes share, started as `torchrun` would start them."""

from __future__ import annotations

import itertools
import json
import os
import socket
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tests.support import unlearning_runs as runs
from tests.support.killed_ranks import count_scored, kill_at
from tests.support.killed_runs import CHILDREN
from wmdp_fast.unlearning import trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
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
    folder.mkdir(parents=True, exist_ok=True)
    return start(size, _evaluate, folder, killed, options, stop_others=stop_others)


def unlearn(
    size: int, folder: Path, every: dict[str, dict[str, Any]], *, fails: int | None = None, stop_others: bool = True
) -> list[int | None]:
    """Makes runs of unlearning with so many ranks, one after the other, and says how each has ended.

    Args:
        size: How many.
        folder: Where rank N saves the metrics of each run as `NAME.N.json`, and as `NAME.N.error` what was raised. The
            first one writes what comes out as `NAME`.
        every: Arguments of `unlearning_runs.unlearn` by the name of the run.
        fails: After so many steps the last rank fails.
        stop_others: Whether the others are stopped when one fails, as `torchrun` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return start(size, _unlearn, folder, every, fails, stop_others=stop_others)


def start(size: int, target: Callable[..., None], *arguments: Any, stop_others: bool = True) -> list[int | None]:
    """Runs a function of a module in so many ranks, and says how each has ended."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    places = [{"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)} for rank in range(size)]
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    children = [CHILDREN.Process(target=_as_rank, args=(place | address, target, arguments)) for place in places]
    for child in children:
        child.start()
    _wait(children, stop_others=stop_others)
    return [child.exitcode for child in children]


def _as_rank(environment: dict[str, str], target: Callable[..., None], arguments: Sequence[Any]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    target(*arguments)


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


def _evaluate(folder: Path, killed: Moment | None, options: dict[str, Any]) -> None:
    rank = os.environ["RANK"]
    if killed is not None and killed.rank == int(rank):
        kill_at(killed, folder)
    scored = count_scored()
    import wmdp_fast as wf

    result = wf.evaluate(**options, device="cpu", progress=False)
    if isinstance(result, wf.SavedResults):
        np.savez(folder / f"{rank}.npz", scores=[], resumed=0, scored=scored[0])
        (folder / f"{rank}.read").write_text(str(result.path), encoding="utf-8")
        return
    outcomes = [task.outcome.loglikelihood for task in result.tasks.values()]
    perplexities = [np.array([text["word_perplexity"]]) for text in result.texts.values()]
    np.savez(
        folder / f"{rank}.npz",
        scores=np.concatenate([*outcomes, *perplexities]),
        resumed=result.details["choices_resumed"],
        scored=scored[0],
    )


def _unlearn(folder: Path, every: dict[str, dict[str, Any]], fails: int | None) -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if fails is not None and rank == size - 1:
        _fail_after(fails)
    for name, given in every.items():
        try:
            result = runs.unlearn(**given, output=folder / name, parallel="fsdp", device="cpu")
        except Exception as error:
            (folder / f"{name}.{rank}.error").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
            raise
        (folder / f"{name}.{rank}.json").write_text(json.dumps(result.metrics), encoding="utf-8")


def _fail_after(steps: int) -> None:
    """From here on, what changes the weights in a step fails after so many."""
    update, done = trainer.update, itertools.count()

    def failing(*args: Any, **kwargs: Any) -> torch.Tensor:
        if next(done) == steps:
            raise RuntimeError("a fault that was made up")
        return update(*args, **kwargs)

    trainer.update = failing


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
