"""A damaged results file is one line that names the file, in every command that reads one: never a traceback.

`WMDP_FAST_DAMAGED_RESULTS=3000` tries so many files in place of a few.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import random
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import damage, saved_runs
from wmdp_fast import cli
from wmdp_fast.exceptions import DatasetError
from wmdp_fast.results import checks
from wmdp_fast.results.saved import read_results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COUNT = int(os.environ.get("WMDP_FAST_DAMAGED_RESULTS", "40"))


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


# What a field may be damaged to.
VALUES: list[Any] = [
    *("", "x", "N/A", " ", "none", "\x1b[31m", "y" * 5000),
    *(None, True, False, 0, 1, -1, 3, 0.5, -0.5, 2**63, 10**400, 1e308, math.nan, math.inf, -math.inf),
    *([], {}, [[]], [{}], {"x": {}}, {"": ""}, ["x"], ["x", "x"], [None], {"x": [1, {"y": None}]}, nested(150)),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def damaged(raw: dict[str, Any], rng: random.Random) -> str:
    """The file's text with one to three fields changed, or with other bytes."""
    text = json.dumps(raw)
    if rng.random() < 0.15:
        way = rng.choice([damage.cut, damage.flip, damage.delete])
        return way(text.encode(), rng).decode("utf-8", "surrogateescape")
    changed = copy.deepcopy(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        every = list(places(changed))
        # Fields near the top are few, and more depends on them.
        path = rng.choice([one for one in every if len(one) <= rng.choice([1, 2, 3, 9])])
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        kind = rng.random()
        if kind < 0.12:
            del holder[path[-1]]
        elif kind < 0.2 and isinstance(holder, dict):
            holder[rng.choice(["", "x", "acc,none", "birds", "../x", "a\nb", "\x00"])] = holder.pop(path[-1])
        elif kind < 0.3 and isinstance(holder[path[-1]], (dict, list)):
            # A group in itself, for instance.
            of = holder[path[-1]]
            more = rng.choice(["nature", "animals", "birds", "x"])
            of.append(more) if isinstance(of, list) else of.update({more: rng.choice(VALUES)})
        else:
            holder[path[-1]] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(changed)


@pytest.fixture(scope="module", params=["lm-eval", "wmdp-fast"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = saved_runs.lm_eval_run if request.param == "lm-eval" else saved_runs.our_run
    return run(tmp_path_factory.mktemp("run"), "org/toy", num_fewshot=2)


# What stops a command and is no fault of the file.
PLAIN = re.compile(
    r"no samples beside it|have no task in common|has no samples|needs two runs|no such file|nothing was exported"
)


def attempt(command: list[str], file: Path) -> str:
    """Runs a command; what it said if it failed, which must name the file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WMDP_FAST_DEBUG", "1")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                cli.main(command)
            except DatasetError as error:
                told = str(error)
                assert file.stem in told, told
            except OSError as error:
                told = str(error)
            except ValueError as error:
                told = str(error)
                assert PLAIN.search(told), told
            else:
                return ""
    assert "\n" not in told
    assert "\x1b" not in told
    assert len(told) < 2000
    return told


def commands(file: Path, good: Path, out: Path) -> list[list[str]]:
    found = [
        ["show", str(file)],
        ["rescore", str(file)],
        ["compare", str(good), str(file)],
        ["compare", str(file), str(good), "--json"],
        ["report", str(good), str(file), "--output", str(out / "report.html")],
        ["report", str(file), "--output", str(out / "report.html")],
    ]
    with contextlib.suppress(ImportError):
        import inspect_ai

        assert inspect_ai
        found.append(["export", str(file.parent), "--inspect", "--output", str(out / "logs")])
    return found


@pytest.mark.timeout(24 * 3600)
def test_a_damaged_results_file_is_one_line(results: Path, tmp_path: Path) -> None:
    raw = json.loads(results.read_text(encoding="utf-8"))
    folder = tmp_path / "damaged"
    folder.mkdir()
    for beside in results.parent.glob("samples_*"):
        (folder / beside.name).write_bytes(beside.read_bytes())
    file = folder / results.name
    refused = 0
    for seed in range(COUNT // 2):
        rng = random.Random(f"{seed} {raw.get('lm_eval_version')}")
        file.write_text(damaged(raw, rng), encoding="utf-8", errors="surrogateescape")
        chosen = commands(file, results, tmp_path)
        # All of them now and then, else two; reports and logs take longest and have their turn where there is time.
        two = rng.sample(chosen if COUNT > 1000 else chosen[:4], 2)
        for command in chosen if seed % 10 == 0 else two:
            try:
                refused += bool(attempt(command, file))
            except Exception as error:
                kept = tmp_path / "kept.json"
                kept.write_bytes(file.read_bytes())
                raise AssertionError(f"seed {seed}, {' '.join(command)}: see {kept}") from error
    assert refused > COUNT / 10


def test_null_is_as_if_a_field_were_not_there(results: Path, tmp_path: Path) -> None:
    """In every field that is checked, of which some reader may ask more."""
    raw = json.loads(results.read_text(encoding="utf-8"))
    folder = tmp_path / "nulls"
    folder.mkdir()
    for beside in results.parent.glob("samples_*"):
        (folder / beside.name).write_bytes(beside.read_bytes())
    file = folder / results.name
    tried = 0
    turn = 0
    for rule, _ in checks._RULES:
        if rule == "results":
            continue
        changed = copy.deepcopy(raw)
        for holder, name, _ in list(checks._fields(changed, rule.split("."))):
            holder[name] = None
            tried += 1
        file.write_text(json.dumps(changed), encoding="utf-8")
        # Reports and logs take longest, and have their turn rule by rule.
        every, turn = commands(file, results, tmp_path), turn + 1
        for command in (*every[:4], every[4 + turn % len(every[4:])]):
            assert attempt(command, file) == "", (rule, command)
    assert tried > 20


def in_itself(raw: dict[str, Any]) -> None:
    raw["group_subtasks"]["animals"].append("nature")


def a_long_chain(raw: dict[str, Any]) -> None:
    raw["group_subtasks"] |= {f"g{i}": [f"g{i + 1}"] for i in range(3000)} | {"g3000": ["birds"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"configs": "x"}, "field `configs`: must be an object, not 'x'"),
        ({"config": []}, "field `config`: must be an object, not []"),
        ({"n-shot": ""}, "field `n-shot`: must be an object, not ''"),
        ({"n-shot": {"birds": "2"}}, "field `n-shot.birds`: must be a whole number of at least 0, not '2'"),
        ({"n-samples": {"birds": []}}, "field `n-samples.birds`: must be an object, not []"),
        ({"date": 1e20}, "field `date`: must be seconds since 1970, not 1e+20"),
        (
            {"total_evaluation_time_seconds": "soon"},
            "field `total_evaluation_time_seconds`: must be a number of seconds",
        ),
        ({"model_name": ["x"]}, "field `model_name`: must be text, not ['x']"),
        ({"wmdp_fast": {"tasks": {"birds": 3}}}, "field `wmdp_fast.tasks.birds`: must be an object, not 3"),
        ({"wmdp_fast": {"near_tie": math.nan}}, "field `wmdp_fast.near_tie`: must be a number of at least 0, not nan"),
        ({"wmdp_fast": {"seconds": {"load": 10**400}}}, "field `wmdp_fast.seconds.load`: must be a finite number"),
        (
            {"group_subtasks": {"nature": ["moths"]}},
            "field `group_subtasks.nature`: names 'moths', of which there are no",
        ),
        (in_itself, "field `group_subtasks.nature`: contains itself"),
        (a_long_chain, "field `group_subtasks`: nests groups deeper than 100 levels"),
        ({"x": nested(150)}, "its values are nested deeper than 100 levels"),
        (
            lambda raw: raw["results"]["birds"].update({"acc,none": 1.5}),
            "`results.birds.acc,none`: must be a share",
        ),
        (
            lambda raw: raw["results"]["birds"].update({"acc,none": 10**400}),
            "must be a share between 0 and 1",
        ),
        (lambda raw: raw["results"]["birds"].update({"acc_stderr,none": -1}), "must be a standard error of at least 0"),
        (
            lambda raw: raw["results"]["birds"].update({"alias": {}}),
            "`results.birds.alias`: must be text, not {}",
        ),
        (lambda raw: raw["results"].update({"a\n\x1b[31mb": 3}), r"field `results.a\n\x1b[31mb`: must hold metrics"),
    ],
)
def test_a_damaged_field_is_named(
    change: dict[str, Any] | Callable[[dict[str, Any]], None], message: str, results: Path, tmp_path: Path
) -> None:
    raw = json.loads(results.read_text(encoding="utf-8"))
    if isinstance(change, dict):
        raw |= change
    else:
        change(raw)
    file = tmp_path / "results_2026-11-24T15-00-00.json"
    file.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(DatasetError, match=re.escape(message)) as caught:
        read_results(file)
    assert str(caught.value).startswith(str(file))


def test_text_nested_beyond_pythons_stack_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(DatasetError, match="nested deeper than 100 levels"):
        read_results(file)


def test_what_nobody_reads_may_be_anything(results: Path, tmp_path: Path) -> None:
    raw = json.loads(results.read_text(encoding="utf-8"))
    raw |= {"higher_is_better": 3, "groups": "x", "upper_git_hash": [1], "date": None, "n-shot": None, "config": None}
    file = tmp_path / results.name
    file.write_text(json.dumps(raw), encoding="utf-8")
    assert read_results(file).tasks.keys() == read_results(results).tasks.keys()
