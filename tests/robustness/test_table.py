"""Tables of models under attack: what is in them, what is missing, and what they say may not be compared."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import wmdp_fast as wf
from tests.support import saved_runs
from tests.support.attack_records import N, attacked, reading, run
from wmdp_fast import cli
from wmdp_fast.exceptions import DatasetError
from wmdp_fast.robustness.table.published import published_models

if TYPE_CHECKING:
    from pathlib import Path


def test_a_row_says_what_was_measured_and_what_was_not_run() -> None:
    found = wf.table(attacked("org/rmu", 0.3, 0.7))
    assert [(row.name, row.kind) for row in found.rows] == [("base", "base"), ("org/rmu", "unlearned")]
    base, rmu = found.rows
    by_title = {measure.title: rmu.cells.get(measure.key) for measure in found.measures}
    shown = {title: None if cell is None else round(cell.value, 3) for title, cell in by_title.items()}
    assert shown == {
        "wmdp_bio": 0.3,
        "wmdp_bio, calibrated": 0.3,
        "utility: mmlu_virology": 0.6,
        "ask": 0.3,
        "ask, calibrated": 0.3,
        "relearn": 0.7,
        "gcg": None,
        "relearn: steps to 50%": 50,
        "relearn: steps to 80%": 50,
        "relearn: area": 0.5,
        "worst": 0.7,
        "R": 0.8,
        "null": 0.3,
    }
    assert by_title["worst"] is not None
    assert (by_title["worst"].label, by_title["worst"].n) == ("relearn", N // 2)
    assert by_title["utility: mmlu_virology"] is not None
    low, high = wf._rust.wilson(60, 100)
    assert (by_title["utility: mmlu_virology"].low, by_title["utility: mmlu_virology"].high) == (low, high)
    text = str(found)
    assert "org/rmu: gcg not run: it needs a target: pass --target" in text
    assert "never" not in text
    assert "no row says that knowledge is removed" in text
    assert base.missing(found.measures[-1]).text == "n/a"


def test_without_an_attack_no_note_tells_of_the_worst() -> None:
    asked = [run("unlearned", "ask", reading(0.3, 0.6)), run("base", "ask", reading(0.8, 0.6))]
    text = str(wf.table(attacked("org/rmu", 0.3, 0.7, runs=asked)))
    assert "`ask` is no attack: accuracy on the half of the questions on which attacks are reported" in text
    assert "worst attack" not in text
    assert "which attack is the worst" not in text


def test_methods_are_compared_on_the_same_questions_and_corrected_by_holm() -> None:
    found = wf.table(attacked("a", 0.3, 0.7), attacked("b", 0.3, 0.4), attacked("c", 0.3, 0.68))
    worst = {(test.first, test.second): test for test in found.tests if test.measure.startswith("worst")}
    assert set(worst) == {("a", "b"), ("a", "c"), ("b", "c")}
    test = worst["a", "b"]
    assert (test.n, test.only_first, test.only_second) == (200, 60, 0)
    assert test.p == wf._rust.mcnemar(60, 0)
    ordered = list(worst.values())
    assert [one.p_holm for one in ordered] == wf._rust.holm([one.p for one in ordered])
    # The base is the same measurement three times, which is one.
    assert found.rows[0].results == 1


def test_other_budgets_halves_and_questions_are_said_and_not_tested() -> None:
    one = attacked("a", 0.3, 0.7)
    other = attacked(
        "b", 0.3, 0.4, budget="quick", identity={"questions": "xyz"}, is_for_choosing=np.arange(N) % 2 == 0
    )
    found = wf.table(one, other)
    assert found.tests == []
    text = str(found)
    assert "NOT COMPARABLE: the attacks differ in budget (a: standard; b: quick)" in text
    assert "NOT COMPARABLE: the attacks differ in questions (a: abc; b: xyz)" in text
    used = attacked("org/c", 0.3, 0.5, identity={"questions": "abc", "utility": [["questions", "0123456789abcdef"]]})
    told = str(wf.table(attacked("org/a", 0.3, 0.5), used))
    assert "differ in utility (org/a: not measured; org/c: questions 0123456789ab)" in told
    assert "questions that are reported" in text
    assert "worst: not compared in pairs" in text


def test_seeds_of_a_method_are_one_row_with_their_range() -> None:
    seeds = [attacked(f"runs/rmu-seed{seed}", 0.3, worst) for seed, worst in ((1, 0.5), (2, 0.7))]
    found = wf.table(*seeds, attacked("npo", 0.3, 0.4))
    row = next(row for row in found.rows if row.name == "runs/rmu")
    cell = row.cells["worst:wmdp_bio"]
    assert (cell.value, cell.low, cell.high, cell.several) == (pytest.approx(0.6), 0.5, 0.7, (0.5, 0.7))
    assert "runs/rmu: mean of up to 2 results (runs/rmu-seed1, runs/rmu-seed2)" in str(found)
    test = next(test for test in found.tests if test.measure == "worst:wmdp_bio")
    assert (test.test, test.results, test.n, test.only_first) == ("bootstrap", (2, 1), 200, None)
    assert test.difference == pytest.approx(0.4 - 0.6)
    assert test.low < test.difference < test.high < 0
    assert "bootstrap, 2 and 1 results" in found.markdown()
    assert "npo is one result beside several: it is compared as if another seed could not change it" in str(found)
    assert [row.name for row in wf.table(*seeds, group="").rows] == ["base", "runs/rmu-seed1", "runs/rmu-seed2"]
    with pytest.raises(ValueError, match="is no regular expression"):
        wf.table(*seeds, group="(")


def test_a_seed_that_lacks_something_is_named() -> None:
    one, other = attacked("rmu-seed1", 0.3, 0.5), attacked("rmu-seed2", 0.3, 0.7)
    other = replace(
        other,
        runs=[one for one in other.runs if one.attack != "relearn"]
        + [run("unlearned", "relearn", failed="out of memory")],
    )
    text = str(wf.table(one, other))
    assert "rmu: relearn is without in memory, where it is not run: out of memory" in text


def test_two_models_of_one_name_are_not_taken_for_one() -> None:
    one = attacked("out", 0.3, 0.7)
    other = attacked("out", 0.3, 0.4, identity={"questions": "abc", "models": {"unlearned": ["another"]}})
    with pytest.raises(ValueError, match="another model each time it was attacked: say which is which"):
        wf.table(one, other)


def test_scoring_below_a_model_that_never_learned_is_damage() -> None:
    result = attacked("rmu", 0.1, 0.3)
    never = [run("never learned", "ask", reading(0.4, 0.6))]
    result = replace(result, models={**result.models, "never learned": "org/never"}, runs=[*result.runs, *never])
    assert "rmu scores below the model that never learned: that is damage, not unlearning" in str(wf.table(result))


def test_published_rows_say_where_they_are_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert published_models() == ("zephyr-7b", "yi-34b", "mixtral-8x7b")
    found = wf.table(published=published_models())
    assert all(row.sources[0] for row in found.rows)
    rows = {row.name: row for row in wf.table(published="zephyr-7b").rows}
    scores = {key: (cell.value, cell.second_hand) for key, cell in rows["SSD (Li et al.)"].cells.items()}
    assert scores["task:wmdp_bio"] == (0.502, True)
    assert scores["task:mt_bench"] == (5.48, True)
    assert not rows["RMU (Li et al.)"].cells["task:mmlu"].second_hand
    assert all(cell.low is None for row in rows.values() for cell in row.cells.values())
    assert cli.main(["table", "--published", "zephyr"]) == 1
    assert "there are no published results on 'zephyr'; there are on zephyr-7b, yi-34b" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("table")
    for name, worst in (("rmu", 0.7), ("npo", 0.4)):
        (made / "attacked" / name).mkdir(parents=True)
        attacked(f"models/{name}", 0.3, worst).save(made / "attacked" / name)
    saved_runs.our_run(made / "results" / "ours", "models/rmu")
    saved_runs.our_run(made / "results" / "other", "org/other")
    return made


def test_files_give_the_same_table_and_evaluations_join_the_rows_of_their_models(folder: Path) -> None:
    found = wf.table(folder / "attacked", folder / "results")
    assert [row.name for row in found.rows] == ["base", "models/npo", "models/rmu", "org/other"]
    rmu = found.rows[2]
    assert rmu.cells["worst:wmdp_bio"].value == pytest.approx(0.7)
    assert "task:nature" in rmu.cells
    assert "task:nature" in found.rows[3].cells
    assert any(test.measure == "task:nature" and test.n == 15 for test in found.tests)
    assert found.rows[3].missing(found.measures[-1]).text == "n/a"
    # What one was attacked about, evaluations were to forget too.
    sections = {measure.title: measure.section for measure in found.measures}
    assert (sections["wmdp_bio"], sections["nature"]) == ("forget", "kept")


def test_results_of_lm_eval_are_taken(folder: Path, tmp_path: Path) -> None:
    saved_runs.lm_eval_run(tmp_path, "models/rmu")
    found = wf.table(tmp_path / "results", folder / "results" / "other")
    assert found.rows[0].cells["task:nature"].answered is not None
    assert any(test.measure == "task:nature" for test in found.tests)


def test_every_format_has_every_value(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["table", f"mine={folder}/attacked/rmu", f"{folder}/attacked/npo"]
    printed = {}
    for form in ("", "--transpose", "--markdown", "--latex", "--csv", "--json"):
        assert cli.main([*asked, *([form] if form else [])]) == 0
        printed[form] = capsys.readouterr().out
    assert len({printed[""], printed["--transpose"]}) >= 1
    for form in ("", "--transpose", "--markdown", "--latex"):
        assert "70.0" in printed[form], form
        assert "not run" in printed[form], form
    rows = list(csv.DictReader(printed["--csv"].splitlines()))
    [worst] = [row for row in rows if (row["model"], row["measure"]) == ("mine", "worst")]
    assert (float(worst["value"]), worst["n"], worst["label"]) == (0.7, "200", "relearn")
    [missing] = [row for row in rows if (row["model"], row["measure"]) == ("mine", "gcg")]
    assert (missing["value"], missing["note"]) == ("", "not run: it needs a target: pass --target")
    read = json.loads(printed["--json"])
    assert {row["name"] for row in read["rows"]} == {"base", "mine", "models/npo"}
    assert r"wmdp\_bio" in printed["--latex"]
    assert "worst" in wf.table(folder / "attacked")._repr_html_()


def test_damaged_records_and_empty_folders_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither attacks"):
        wf.table(tmp_path)
    record = json.loads((folder / "attacked" / "rmu" / "robustness.json").read_text())
    for damage in ({"format": 99}, {"is_for_choosing": "01"}, {"runs": [{"role": "base"}]}):
        (tmp_path / "robustness.json").write_text(json.dumps({**record, **damage}))
        with pytest.raises(DatasetError, match="is no record of attacks"):
            wf.table(tmp_path)
    with pytest.raises(ValueError, match="there are no results to show"):
        wf.table()
