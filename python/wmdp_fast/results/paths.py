"""Where results files lie, what they are called, and which file a path means."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import DatasetError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping


def output_folder(output_path: str | os.PathLike[str], model_name: str) -> Path:
    """The folder that `EvalResult.save` writes to.

    Other than in lm-eval, that of `./model` is that of `model`: a name that begins with a point hides it from `ls`.
    """
    path = Path(output_path)
    return path.parent if names_a_file(path) else path / sanitize_model_name(re.sub(r"^(\./+)+(?=.)", "", model_name))


def results_under(output_path: str | os.PathLike[str], model_name: str) -> list[Path]:
    """The results files that `EvalResult.save` has written for a model under an output path, in time."""
    folder = output_folder(output_path, model_name)
    stem = Path(output_path).stem if names_a_file(output_path) else "results"
    dated = _dated(folder) if folder.is_dir() else []
    return [file for file, begins, _ in sorted(dated, key=lambda one: one[2]) if begins == stem]


def next_time(folder: Path, now: datetime) -> str:
    """The time in the names of results that are saved now, as lm-eval writes it: later than any that is there.

    Where clocks are put back, as they are in autumn, results would else be older than those that they follow.

    Args:
        folder: Where they are saved.
        now: Local time.
    """
    name = _as_named(now)
    latest = max((time for _, _, time in _dated(folder)), default="")
    if name > latest:
        return name
    try:
        there = datetime.fromisoformat(latest[:13] + latest[13:].replace("-", ":"))
    except ValueError:
        return name  # It only looks like a time, and nobody saved results then.
    return _as_named(there + timedelta(microseconds=1))


def _as_named(time: datetime) -> str:
    return time.isoformat().replace(":", "-")


def names_a_file(output_path: str | os.PathLike[str]) -> bool:
    """Whether an output path is that of a results file, and not of a folder."""
    return Path(output_path).suffix == ".json"


def sanitize_model_name(name: str) -> str:
    r"""A model's name as a folder name: each run of `"<>:/\|?*[]` becomes two underscores, as in lm-eval."""
    return re.sub(r'["<>:/|\\?*\[\]]+', "__", name)


# `results_2026-11-24T15-00-00.123456.json`, or with another first part where the output path was a `.json` name.
_RESULTS_NAME = re.compile(r"(?P<stem>.+)_(?P<time>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?)\.json")


# A samples file of that time; lists in one JSON file were written for a while before 0.4.3.
SAMPLES_NAME = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?)\.jsonl?")


# What lm-eval 0.4.0 to 0.4.2 named its results in a folder.
_UNDATED = "results.json"


def find_results(path: str | os.PathLike[str]) -> tuple[Path, int]:
    """The results file that a path means, and how many results there are where it lies.

    Raises:
        FileNotFoundError: There is no such file, or no results in the folder.
        DatasetError: The folder holds results of several models, which it lists, or the file is one of samples.
    """
    given = Path(path)
    if given.is_file():
        if given.suffix == ".jsonl" or SAMPLES_NAME.fullmatch(given.name):
            raise DatasetError(str(given), "is a samples file; give the results file or the folder they are in")
        return given, 1
    found = homes(given, levels=1)
    if len(found) > 1:
        several = ", ".join(f"{folder if stem == 'results' else folder / stem}" for folder, stem in sorted(found))
        raise DatasetError(str(given), f"holds results of {len(found)} models; name one of: {several}")
    [files] = found.values()
    return files[-1], len(files)


def results_below(folder: Path) -> list[Path]:
    """All results files in a folder and the folders below it, at any depth."""
    files = sorted(folder.rglob("*.json"))
    return [
        file
        for file in files
        if file.name == _UNDATED or (_RESULTS_NAME.fullmatch(file.name) and not SAMPLES_NAME.fullmatch(file.name))
    ]


def homes(folder: Path, levels: int) -> dict[tuple[Path, str], list[Path]]:
    """Results files in a folder and so many levels down: by where they lie and what their names begin with, in time.

    What is nearer counts: folders are looked into only if there is nothing beside them.
    """
    if not folder.is_dir():
        # `--output x.json` adds the time to the name, as lm-eval does.
        named = [one for one in _dated(folder.parent) if one[1] == folder.stem] if folder.parent.is_dir() else []
        if folder.suffix != ".json" or not named:
            raise FileNotFoundError(f"{folder}: no such file or folder")
        return {(folder.parent, folder.stem): [file for file, _, _ in sorted(named, key=lambda one: one[2])]}
    level = [folder]
    for _ in range(levels + 1):
        found: dict[tuple[Path, str], list[tuple[str, Path]]] = {}
        for one in level:
            for file, stem, time in _dated(one) or _undated(one):
                found.setdefault((one, stem), []).append((time, file))
        if found:
            return {home: [file for _, file in sorted(files)] for home, files in found.items()}
        level = [inner for one in level for inner in sorted(one.iterdir()) if inner.is_dir()]
    down = "one folder" if levels == 1 else f"{levels} folders"
    raise FileNotFoundError(f"{folder}: no results here (results_*.json), nor {down} down")


def _dated(folder: Path) -> list[tuple[Path, str, str]]:
    """Results files of a folder with what their names begin with and their time."""
    matches = [
        (file, _RESULTS_NAME.fullmatch(file.name))
        for file in sorted(folder.iterdir())
        if file.is_file() and not SAMPLES_NAME.fullmatch(file.name)
    ]
    return [(file, match["stem"], match["time"]) for file, match in matches if match]


def _undated(folder: Path) -> list[tuple[Path, str, str]]:
    """The one results file that lm-eval 0.4.0 to 0.4.2 kept in a folder."""
    file = folder / _UNDATED
    return [(file, "results", "")] if file.is_file() else []


def samples_file(results: Path, task: str, raw: Mapping[str, Any]) -> Path | None:
    """Where the samples of a task are that were saved with a results file; None if there are none.

    Args:
        results: The results file.
        task: The task's name.
        raw: What the results file holds.
    """
    match = _RESULTS_NAME.fullmatch(results.name)
    if match:
        names = [f"samples_{task}_{match['time']}.jsonl", f"samples_{task}_{match['time']}.json"]
    else:
        # lm-eval 0.4.0 to 0.4.2 named them by the model's arguments.
        arguments = (raw.get("config") or {}).get("model_args")
        names = [f"{re.sub('/|=', '__', arguments)}_{task}.jsonl"] if isinstance(arguments, str) else []
    # A name that would lie elsewhere is none that either package writes; nor is one too long to exist.
    beside = [results.parent / name for name in names if "/" not in name and "\0" not in name and len(name) < 256]
    return next((path for path in beside if path.is_file()), None)


def sample_lines(file: Path) -> dict[int, dict[str, Any]]:
    """The lines of a samples file that `read_samples` has read before, by question; of several filters the first one's.

    Raises:
        DatasetError: The file has changed since, or its values are nested too deep.
    """
    text = file.read_text(encoding="utf-8")
    found: dict[int, dict[str, Any]] = {}
    try:
        if text.lstrip().startswith("["):
            lines = json.loads(text)
        else:
            lines = [json.loads(line) for line in text.split("\n") if line.strip()]
        for line in lines:
            found.setdefault(line["doc_id"], line)
    except RecursionError:
        raise DatasetError(str(file), "its values are nested too deep") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(str(file), f"is no samples file ({error})") from error
    return found
