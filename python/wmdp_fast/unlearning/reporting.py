"""Where a run's numbers go while it runs: a file, a progress bar, an experiment tracker."""

from __future__ import annotations

import importlib
import json
import resource
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import torch

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
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    break  # the line that was being written when the run was killed
                if row["step"] <= last_step:
                    self.rows.append(row)
        # Replaced whole, for this too may be cut off.
        fresh = path.with_name(f"{path.name}.new")
        fresh.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        fresh.replace(path)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        """Writes a line."""
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


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


def open_trackers(names: Sequence[str], run_name: str, settings: Mapping[str, Any]) -> list[Tracker]:
    """Starts the named experiment trackers.

    Raises:
        ValueError: There is no such tracker.
        ImportError: Its package is not installed; the message says how to install it.
    """
    if unknown := [name for name in names if name not in TRACKERS]:
        raise ValueError(f"report_to {unknown[0]!r} is not one of {', '.join(TRACKERS)}")
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
