"""What a results file must be: one reading and one check for every command that takes one.

Fields that this package reads are looked at here and nowhere else, so that a damaged file is one line which names the
file and the field. What nobody reads may be anything.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

# Deeper than any results file is by far; code that goes down a value calls itself once a level.
_MOST_LEVELS = 100
# The year 10000, in seconds since 1970.
_END_OF_TIME = 253402300800.0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _is_seconds(value: Any) -> bool:
    """lm-eval writes the seconds of a run as text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return False
    return _is_number(value)


_OBJECT: tuple[str, Callable[[Any], bool]] = ("an object", lambda value: isinstance(value, dict))
_TEXT: tuple[str, Callable[[Any], bool]] = ("text", lambda value: isinstance(value, str))
_NUMBER: tuple[str, Callable[[Any], bool]] = ("a finite number", _is_number)
_COUNT: tuple[str, Callable[[Any], bool]] = ("a whole number of at least 0", _is_count)
_SECONDS: tuple[str, Callable[[Any], bool]] = ("a number of seconds", _is_seconds)
_TEXTS: tuple[str, Callable[[Any], bool]] = (
    "a list of texts",
    lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
)
_NAMES: tuple[str, Callable[[Any], bool]] = (
    "a list of names, unlike each other",
    lambda value: _TEXTS[1](value) and len(set(value)) == len(value),
)

_ONE_LETTER: tuple[str, Callable[[Any], bool]] = (
    "a letter with the numbers `predicted`, `right` and `n`",
    lambda value: (
        isinstance(value, dict)
        and value.keys() == {"letter", "predicted", "right", "n"}
        and isinstance(value["letter"], str)
        and all(_is_count(value[name]) for name in ("predicted", "right", "n"))
    ),
)

# What a field must be unless it is absent or null; a star stands for every name. Parents come before what they hold.
_RULES: tuple[tuple[str, tuple[str, Callable[[Any], bool]]], ...] = (
    ("results", _OBJECT),
    ("results.*.alias", _TEXT),
    ("results.*.sample_len", _COUNT),
    ("group_subtasks", _OBJECT),
    ("group_subtasks.*", _NAMES),
    ("configs", _OBJECT),
    ("configs.*", _OBJECT),
    ("configs.*.output_type", _TEXT),
    ("configs.*.target_delimiter", _TEXT),
    ("configs.*.dataset_path", _TEXT),
    ("configs.*.dataset_name", _TEXT),
    ("versions", _OBJECT),
    ("n-shot", _OBJECT),
    ("n-shot.*", _COUNT),
    ("n-samples", _OBJECT),
    ("n-samples.*", _OBJECT),
    ("n-samples.*.effective", _COUNT),
    ("config", _OBJECT),
    ("config.model", _TEXT),
    ("config.model_args", ("text or an object", lambda value: isinstance(value, (str, dict)))),
    ("date", ("seconds since 1970", lambda value: _is_number(value) and 0 <= value < _END_OF_TIME)),
    ("total_evaluation_time_seconds", _SECONDS),
    ("task_hashes", _OBJECT),
    ("task_hashes.*", _TEXT),
    ("model_name", _TEXT),
    ("lm_eval_version", _TEXT),
    ("transformers_version", _TEXT),
    ("git_hash", _TEXT),
    ("wmdp_fast", _OBJECT),
    ("wmdp_fast.near_tie", ("a number of at least 0", lambda value: _is_number(value) and value >= 0)),
    ("wmdp_fast.tasks", _OBJECT),
    ("wmdp_fast.tasks.*", _OBJECT),
    ("wmdp_fast.tasks.*.near_ties", _COUNT),
    ("wmdp_fast.tasks.*.one_letter", _ONE_LETTER),
    ("wmdp_fast.seconds", _OBJECT),
    ("wmdp_fast.seconds.*", _NUMBER),
    ("wmdp_fast.versions", _OBJECT),
    ("wmdp_fast.hardware", _OBJECT),
    ("wmdp_fast.warnings", _TEXTS),
    ("wmdp_fast.journals", _TEXTS),
)


def read_results_file(path: Path) -> dict[str, Any]:
    """Reads a results file of this package or of lm-eval.

    Returns:
        Its contents. What `_RULES` names is of that kind or absent, also where the file has null; every entry of
        `results` is an object, and no group contains itself or what there is nothing of.

    Raises:
        OSError: It cannot be read.
        DatasetError: It is no results file; names file and field.
    """
    where = str(path)
    raw = _read_json(path)
    for name, entry in raw["results"].items():
        if not isinstance(entry, dict):
            raise DatasetError(
                where, f"must hold metrics by name, not {_short(entry)}", field=_field(f"results.{name}")
            )
    for rule, (what, holds) in _RULES:
        for holder, name, field in list(_fields(raw, rule.split("."))):
            value = holder[name]
            if value is None:
                # So that nobody has to tell the two apart.
                del holder[name]
            elif not holds(value):
                raise DatasetError(where, f"must be {what}, not {_short(value)}", field=_field(field))
    _check_groups(where, raw["results"], raw.get("group_subtasks") or {})
    return raw


def metric_number(where: str, field: str, value: Any, *, share: bool = False, error: bool = False) -> float | None:
    """A metric or its standard error as a number; None where the file says that there is none.

    Args:
        where: The file.
        field: Which of its fields.
        value: What stands there.
        share: Whether it is a share of questions, and so must lie between 0 and 1.
        error: Whether it is a standard error, and so must not be negative.

    Raises:
        DatasetError: It is no such number; names file and field.
    """
    if value in ("N/A", None):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DatasetError(where, f"must be a number, not {_short(value)}", field=_field(field))
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if error and math.isnan(number):
        return None
    if share and not 0 <= number <= 1:
        raise DatasetError(where, f"must be a share between 0 and 1, not {_short(value)}", field=_field(field))
    if error and not 0 <= number < math.inf:
        raise DatasetError(where, f"must be a standard error of at least 0, not {_short(value)}", field=_field(field))
    return number


def _read_json(path: Path) -> dict[str, Any]:
    where = str(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DatasetError(where, f"is not a results file: no JSON ({error})") from error
    except RecursionError:
        raise DatasetError(where, _too_deep()) from None
    if not isinstance(raw, dict) or not isinstance(raw.get("results"), dict):
        samples = "; a list is what samples files of lm-eval before 0.4.3 hold" if isinstance(raw, list) else ""
        raise DatasetError(where, f"is not a results file: it holds no `results`{samples}", field="results")
    if not _is_shallow(raw):
        raise DatasetError(where, _too_deep())
    return raw


def _too_deep() -> str:
    return f"is not a results file: its values are nested deeper than {_MOST_LEVELS} levels"


def _is_shallow(value: Any) -> bool:
    level = [value]
    for _ in range(_MOST_LEVELS):
        inner = [child for one in level for child in (one.values() if isinstance(one, dict) else one)]
        level = [child for child in inner if isinstance(child, (dict, list))]
        if not level:
            return True
    return False


def _fields(value: Any, path: list[str], lead: str = "") -> Iterator[tuple[dict[str, Any], str, str]]:
    """The fields that a rule is about: the object that holds each, its key there and its name in the file."""
    if not isinstance(value, dict):
        return  # Its own rule tells of that.
    for name in value if path[0] == "*" else path[:1]:
        if name in value and path[1:]:
            yield from _fields(value[name], path[1:], f"{lead}{name}.")
        elif name in value:
            yield value, name, f"{lead}{name}"


def _check_groups(where: str, results: Mapping[str, Any], below: Mapping[str, list[str] | None]) -> None:
    for name, children in below.items():
        for child in children or ():
            if child not in results and child not in below:
                raise DatasetError(
                    where, f"names {child!r}, of which there are no results", field=f"group_subtasks.{name}"
                )
    # A group is done once everything below it is; what is never done goes in a circle.
    left = {name: {child for child in children or () if below.get(child)} for name, children in below.items()}
    for level in range(len(left) + 1):
        done = {name for name, children in left.items() if not children}
        if not done:
            break
        if level > _MOST_LEVELS:
            raise DatasetError(where, f"nests groups deeper than {_MOST_LEVELS} levels", field="group_subtasks")
        left = {name: children - done for name, children in left.items() if name not in done}
    if left:
        raise DatasetError(where, "contains itself", field=_field(f"group_subtasks.{next(iter(left))}"))


def _field(name: str) -> str:
    """A field's name as a message shows it: names in a file may be of any length and hold anything."""
    shown = name if name.isprintable() else name.encode("unicode_escape").decode()
    return shown if len(shown) <= 120 else f"{shown[:117]}..."


def _short(value: Any) -> str:
    """A value as a message shows it."""
    try:
        text = repr(value)
    except ValueError:  # An integer of more digits than Python prints.
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
