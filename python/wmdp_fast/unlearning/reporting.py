"""Where a run's numbers go while it runs: a file, a progress bar, an experiment tracker."""

from __future__ import annotations

import importlib
import json
import resource
import warnings
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import torch

from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

TRACKERS = ("tensorboard", "wandb", "trackio")


class Tracker(Protocol):
    """Takes numbers by step."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes the numbers of one step."""

    def close(self) -> None:
        """Takes no more."""


class MetricsFile:
    """One JSON object a line: a line for each step, and for each evaluation.

    Args:
        path: The file; what it has of steps after `last_step` is dropped, since they will be done again.
        last_step: The last step that is done.

    Raises:
        ModelError: It lacks a step up to the last one, has one twice, or is damaged; names the line.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        self.rows = _rows_up_to(last_step, path) if path.is_file() else []
        if last_step and not path.is_file():
            warnings.warn(
                f"{path} is gone: the metrics of steps 1 to {last_step} are missing from this run",
                WmdpFastWarning,
                stacklevel=2,
            )
        write_whole(path, "".join(strict_json.dumps(row) + "\n" for row in self.rows))
        self._file: TextIO = path.open("a", encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        """Writes a line."""
        self.rows.append(row)
        self._file.write(strict_json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _rows_up_to(last_step: int, path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file up to those of `last_step`, each of whose steps must be there once and in order."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]  # what follows was being written when the run was killed
    rows: list[dict[str, Any]] = []
    steps, evaluated = 0, -1
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            step, is_evaluation = row["step"], "evaluation" in row
        except (ValueError, KeyError, TypeError, RecursionError):
            raise _damaged(path, f"line {number} is no JSON object with a step") from None
        if not isinstance(step, int) or isinstance(step, bool):
            raise _damaged(path, f"line {number} has no whole number as its step")
        if is_evaluation and not (step == steps and step > evaluated):
            raise _damaged(path, f"line {number} has an evaluation at step {step}, after step {steps}")
        if not is_evaluation and step != steps + 1:
            raise _damaged(path, f"line {number} has step {step}, after step {steps}")
        if is_evaluation:
            evaluated = step
        else:
            steps = step
        if step > last_step:
            return rows
        rows.append(row)
    if steps < last_step:
        raise _damaged(path, f"it ends with step {steps}, but {last_step} are done")
    return rows


def _damaged(path: Path, problem: str) -> ModelError:
    return ModelError(
        f"{path} is damaged: {problem}. The weights do not depend on it: remove it to resume without the metrics of the"
        " steps so far"
    )


class _TensorBoard:
    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        module = _imported("torch.utils.tensorboard", "tensorboard", needs="tensorboard")
        self._writer = module.SummaryWriter(log_dir=f"runs/{name}")
        self._writer.add_text("settings", json.dumps(settings, indent=2))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Run:
    """Weights & Biases, and trackio, which has its interface."""

    def __init__(self, package: str, name: str, settings: Mapping[str, Any]) -> None:
        self._module = _imported(package, package, needs=package)
        self._module.init(project="wmdp-fast", name=name, config=dict(settings))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        self._module.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Makes sure that the named experiment trackers can be started.

    Raises:
        ValueError: There is no such tracker.
        ImportError: Its package is not installed; the message says how to install it.
    """
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"report_to {name!r} is not one of {', '.join(TRACKERS)}")
        _imported("torch.utils.tensorboard" if name == "tensorboard" else name, name, needs=name)


def open_trackers(names: Sequence[str], run_name: str, settings: Mapping[str, Any]) -> list[Tracker]:
    """Starts the named experiment trackers.

    Raises:
        ValueError: There is no such tracker.
        ImportError: Its package is not installed; the message says how to install it.
    """
    check_trackers(names)
    opened: list[Tracker] = []
    try:
        for name in names:
            opened.append(_TensorBoard(run_name, settings) if name == "tensorboard" else _Run(name, run_name, settings))
    except BaseException:
        for tracker in opened:
            tracker.close()
        raise
    return opened


def peak_memory(device: torch.device) -> float:
    """Most memory used so far, in MB: of the GPU, or of the process (its resident set)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _imported(module: str, package: str, *, needs: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"report_to {needs} needs the package {package}: pip install {package}") from error
