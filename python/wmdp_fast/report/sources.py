"""Which evaluations a path given to a report means: its own, or those that an unlearning run or a sweep kept."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast.exceptions import DatasetError, WmdpFastWarning
from wmdp_fast.report.runs import RECORD
from wmdp_fast.results.saved import each_once, read_results, read_runs
from wmdp_fast.robustness.result import ROBUSTNESS
from wmdp_fast.robustness.table.sources import read_attacks

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from wmdp_fast.results.saved import SavedResults
    from wmdp_fast.robustness.result import AttackResult

# Below the folder of a run or a sweep; `before` is a sweep's model before unlearning.
_EVALUATIONS = "evaluations"
_BEFORE = "before"

# The record of a sweep.
_SWEEP = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a report is made of.

    Attributes:
        results: The evaluations in order.
        unlearn: The folder of the unlearning run, if one was named.
        forget: The tasks whose accuracy a sweep wanted to fall, if the folder of one was named, and those that models
            were attacked about.
        attacked: The attacks on models.
    """

    results: list[SavedResults]
    unlearn: Path | None
    forget: tuple[str, ...] = ()
    attacked: tuple[AttackResult, ...] = ()


def find(paths: Sequence[str | os.PathLike[str]]) -> Sources:
    """Reads what the paths mean.

    Args:
        paths: Each a results file or a folder of results, which of several models stands for all, the first evaluated
            first; or the folder of an unlearning run, which stands for its first and its last evaluation; or that of a
            sweep, which stands for the model before and every point; or that of attacks.

    Raises:
        FileNotFoundError: There is nothing of the kind.
        DatasetError: A file is not what it should be, or a run kept no evaluations.
    """
    read: list[list[SavedResults]] = []
    unlearn = None
    forget: tuple[str, ...] = ()
    attacked: list[AttackResult] = []
    for path in map(Path, paths):
        if path.name == ROBUSTNESS or (path / ROBUSTNESS).is_file():
            attacked.append(read_attacks(path))
        elif (path / RECORD).is_file():
            unlearn = path
            read += ([read_results(end)] for end in _ends(path))
        elif (path / _EVALUATIONS / _BEFORE).is_dir():
            points = sorted(one for one in (path / _EVALUATIONS).iterdir() if one.is_dir() and one.name != _BEFORE)
            every = [path / _EVALUATIONS / _BEFORE, *sorted(points, key=_by_numbers)]
            read += ([read_results(one)] for one in every)
            forget = (*forget, *_forgotten(path))
        else:
            read.append(read_runs(path))
    results = each_once(read)
    known = {name for one in results for name in one}
    forget = (*forget, *(task for one in attacked for task in one.tasks if task in known))
    return Sources(results=results, unlearn=unlearn, forget=forget, attacked=tuple(attacked))


def _ends(run: Path) -> list[Path]:
    """The folders of a run's first and last evaluation."""
    try:
        looks = json.loads((run / RECORD).read_text(encoding="utf-8")).get("evaluations") or []
        kept = [run / str(look["results"]) for look in looks if "results" in look]
    except (ValueError, TypeError, AttributeError) as error:
        raise DatasetError(str(run / RECORD), f"is no record of an unlearning run: {error}") from error
    if len(kept) < 2:
        raise DatasetError(
            str(run),
            "this unlearning run kept no evaluations (--eval-tasks); give the results of `wmdp-fast eval` before and"
            " after, and this folder with --unlearn",
        )
    return [kept[0], kept[-1]]


def _forgotten(sweep: Path) -> list[str]:
    """The tasks of a sweep whose accuracy should fall, by its own record."""
    record = sweep / _SWEEP
    try:
        said = json.loads(record.read_text(encoding="utf-8"))
        if "measured" not in said and "identity" in said:
            warnings.warn(
                f"{record} is of an earlier version, which did not record the tasks to forget: name them with --forget",
                WmdpFastWarning,
                stacklevel=2,
            )
            return []
        return list(map(str, said["measured"]["forget"]))
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(
            str(record), f"does not say which tasks the sweep was to make worse ({error!r}); is it damaged?"
        ) from error


def _by_numbers(folder: Path) -> list[str | int]:
    """A name's parts, its numbers as such: 9 comes before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", folder.name)]
