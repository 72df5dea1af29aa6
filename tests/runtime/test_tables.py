"""Results show themselves as tables, in a notebook too, and become pandas frames."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support.evaluations import SIZES, eval_result
from wmdp_fast import cli
from wmdp_fast.analysis.comparison import compare
from wmdp_fast.exceptions import WmdpFastError
from wmdp_fast.results.result import from_evaluation
from wmdp_fast.runtime.tables import aligned, fitted_to, html_table

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.results.saved import SavedResults


class Cells(HTMLParser):
    """The cells of a table, and all tags that occur."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def hostile() -> SavedResults:
    saved = from_evaluation(eval_result(model_name="<script>alert(1)</script>"))
    fish = replace(saved.tasks["fish"], alias='"><img src=x onerror=alert(1)>')
    return replace(saved, tasks={**saved.tasks, "fish": fish})


def test_a_representation_is_the_table() -> None:
    result = eval_result()
    assert repr(result) == str(result) == result.table()
    comparison = compare(result, result, names=["one", "two"])
    assert repr(comparison) == comparison.table()
    saved = from_evaluation(result)
    lines = repr(saved).splitlines()
    assert lines[0] == "org/toy"
    assert lines[1:] == [line.replace("± N/A", "N/A") for line in result.table().splitlines()[: len(lines) - 1]]
    assert len(lines) == 3 + sum(len(saved[name].metrics) for name in saved)
    assert any(line.startswith("  living animals") for line in lines)


def test_a_notebook_shows_the_same_cells() -> None:
    result = eval_result()
    text = [line.split() for line in result.table().splitlines()]
    found = Cells(result._repr_html_()).rows
    assert [" ".join(row).split() for row in found] == [text[0], *text[2 : 1 + len(found)]]
    assert found[2][0] == "  living animals"


def test_what_a_notebook_shows_is_escaped() -> None:
    saved = hostile()
    shown = [saved, compare(saved, saved, names=["<b>", "</p><script>"])]
    for one in shown:
        html = one._repr_html_()
        assert Cells(html).tags <= {"table", "thead", "tbody", "tr", "th", "td", "p", "br"}
        assert "&lt;" in html


def test_cells_are_moved_to_their_sides() -> None:
    assert aligned([("a", "b"), ("long", "1"), ("x", "22")], "lr") == ["a      b", "--------", "long   1", "x     22"]
    assert "text-align: right" in html_table([("a",), ("1",)], "r", ["<note>"])


def test_a_table_that_is_wider_than_the_terminal_has_cells_below_each_other() -> None:
    rows = [
        ("task", "n", "metric", "value", "95 % interval", ""),
        ("birds", "308", "acc", "0.9838", "0.9626 to 0.9931", "####|"),
        ("", "", "acc_norm", "0.9", "", ""),
        ("  sea birds", "20", "acc", "0.5", "0.2993 to 0.7007", "##|"),
    ]
    wide = aligned(rows, "lrlrrl")
    with fitted_to(max(map(len, wide))):
        assert aligned(rows, "lrlrrl") == wide
    with fitted_to(40):
        texts = aligned(rows, "lrlrrl")
        assert len(texts) == len(rows) + 1
        lines = "\n".join(texts).split("\n")
    assert lines == [
        "task",
        "-" * 40,
        "birds",
        "  n: 308  metric: acc  value: 0.9838",
        "  95 % interval: 0.9626 to 0.9931  ####|",
        "  metric: acc_norm  value: 0.9",
        "  sea birds",
        "    n: 20  metric: acc  value: 0.5",
        "    95 % interval: 0.2993 to 0.7007  ##|",
    ]
    assert max(map(len, lines)) <= 40
    assert aligned(rows, "lrlrrl") == wide


def test_what_a_command_prints_fits_the_terminal_and_what_it_writes_to_a_file_is_as_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = eval_result()
    saved = result.save(tmp_path, log_samples=True)
    shown = {}
    for width, is_terminal in (("40", True), ("200", True), ("40", False)):
        out = io.StringIO()
        monkeypatch.setattr(out, "isatty", lambda is_terminal=is_terminal: is_terminal, raising=False)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setenv("COLUMNS", width)
        for command in (["show", str(saved)], ["compare", str(saved), str(saved)]):
            assert cli.main(command) == 0
            shown[command[0], width, is_terminal] = out.getvalue()
            out.truncate(0)
            out.seek(0)
    monkeypatch.undo()
    for command in ("show", "compare"):
        wide = shown[command, "200", True]
        assert shown[command, "40", False] == wide
        narrow = shown[command, "40", True]
        assert narrow != wide
        assert "metric: acc" in narrow
        # Every number is there.
        assert sorted(re.findall(r"\d\.\d{4}", narrow)) == sorted(re.findall(r"\d\.\d{4}", wide))


def test_frames_hold_every_number() -> None:
    pandas = pytest.importorskip("pandas")
    result = eval_result(2)
    frame = result.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    for row in frame.itertuples():
        assert row.value == result[row.name].metrics[row.metric]
        expected = result[row.name].stderr[row.metric]
        assert (expected is None and np.isnan(row.stderr)) or row.stderr == expected
        assert row.group == (row.name in result.groups)
    assert len(frame) == sum(len(result[name].metrics) for name in result)

    samples = result.samples_frame()
    assert samples.groupby("task").size().to_dict() == SIZES
    for name, task in result.tasks.items():
        of_task = samples[samples.task == name]
        assert of_task.doc_id.tolist() == list(range(SIZES[name]))
        assert of_task.gold.tolist() == task.outcome.answers.tolist()
        assert of_task.predicted.tolist() == task.outcome.predicted.tolist()
        assert of_task.correct.mean() == pytest.approx(task["acc"])
        assert np.concatenate(of_task.loglikelihood.tolist()).tolist() == task.outcome.loglikelihood.tolist()
        assert of_task.margin.tolist() == task.outcome.margin.tolist()


def test_frames_of_comparisons_hold_rows_and_pairs() -> None:
    pytest.importorskip("pandas")
    runs = [eval_result(2), eval_result(2, 3), eval_result(2)]
    comparison = compare(*runs, names=["one", "two", "three"])
    frame = comparison.to_frame()
    assert len(frame) == sum(len(contrast.rows) for contrast in comparison.contrasts)
    assert set(frame.before_run) == {"one"}
    birds = frame[(frame.name == "birds") & (frame.metric == "acc")]
    assert birds.n.tolist() == [3, 9]
    assert birds.difference.tolist() == [0.0, 0.0]
    pairs = comparison.samples_frame()
    assert pairs.groupby("after_run").size().to_dict() == {"two": 3 + 3 + 1 + 3, "three": sum(SIZES.values())}
    assert (pairs.predicted_before == pairs.predicted_after).all()
    assert (pairs.correct_before == (pairs.predicted_before == pairs.gold)).all()


def test_without_samples_or_pandas_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = from_evaluation(eval_result())
    bare = replace(saved, tasks={name: replace(task, samples=None) for name, task in saved.tasks.items()})
    with pytest.raises(ValueError, match="no samples were saved"):
        bare.samples_frame()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(WmdpFastError, match="pandas, which makes frames, is not installed; pip install pandas"):
        saved.to_frame()
