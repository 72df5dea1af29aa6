"""What the paths of a table mean: records of attacks, and evaluations of this package or of lm-eval."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wmdp_fast.exceptions import DatasetError
from wmdp_fast.results.result import EvalResult, from_evaluation
from wmdp_fast.results.saved import SavedResults, read_runs
from wmdp_fast.robustness.result import ROBUSTNESS, AttackResult

if TYPE_CHECKING:
    from collections.abc import Iterator

# Folders below the one that is named, in which records are looked for.
_LEVELS = 2


class Source(NamedTuple):
    """A result.

    Attributes:
        name: What its model is to be called, or None.
        result: Attacks, or an evaluation.
        where: The file.
    """

    name: str | None
    result: AttackResult | SavedResults
    where: str


def read_attacks(path: str | os.PathLike[str]) -> AttackResult:
    """Reads a record of attacks.

    Args:
        path: A `robustness.json`, or the folder that `attack` wrote it to.

    Raises:
        FileNotFoundError: There is none.
        DatasetError: The file is damaged, or of another format; says where.
    """
    file = Path(path)
    if file.is_dir():
        file = file / ROBUSTNESS
    text = file.read_bytes()
    try:
        return AttackResult.from_json(json.loads(text))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DatasetError(str(file), f"is no record of attacks ({type(error).__name__}: {error})") from error


def read(source: str | os.PathLike[str] | AttackResult | EvalResult | SavedResults) -> list[Source]:
    """The results that something stands for.

    Args:
        source: Attacks or an evaluation, in memory or saved; or a folder with several of either, in it or up to two
            folders down. Before a path may stand what the model is called, as in `rmu=attacked`.

    Raises:
        FileNotFoundError: There is nothing of the kind.
        DatasetError: A file is not what it should be.
    """
    if isinstance(source, AttackResult):
        return [Source(None, source, "in memory")]
    if isinstance(source, EvalResult):
        source = from_evaluation(source)
    if isinstance(source, SavedResults):
        return [Source(None, source, str(source.path or "in memory"))]
    name, path = named(os.fspath(source))
    return [Source(name, result, where) for result, where in _saved(path)]


def named(text: str) -> tuple[str | None, Path]:
    """A path, and what stands before it and a `=`, unless that is part of a path that there is."""
    name, sign, rest = text.partition("=")
    if sign and name and rest and not Path(text).exists():
        return name, Path(rest)
    return None, Path(text)


def _saved(path: Path) -> Iterator[tuple[AttackResult | SavedResults, str]]:
    if path.name == ROBUSTNESS and path.is_file():
        yield read_attacks(path), str(path)
        return
    attacked = _attacked_below(path) if path.is_dir() else []
    for file in attacked:
        yield read_attacks(file), str(file)
    try:
        evaluations = read_runs(path)
    except FileNotFoundError:
        if not attacked:
            raise FileNotFoundError(f"{path}: neither attacks ({ROBUSTNESS}) nor results (results_*.json)") from None
        return
    yield from ((one, str(one.path)) for one in evaluations)


def _attacked_below(folder: Path) -> list[Path]:
    """Records of attacks in a folder, or else in the folders below it."""
    level = [folder]
    for _ in range(_LEVELS + 1):
        found = [one / ROBUSTNESS for one in level if (one / ROBUSTNESS).is_file()]
        if found:
            return found
        level = [inner for one in level for inner in sorted(one.iterdir()) if inner.is_dir()]
    return []
