"""Metrics computed from samples are those in the results files of both packages; what was tampered with is found."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.reference import statistics as reference
from tests.support import saved_runs
from tests.support.saved_runs import changed
from wmdp_fast import cli
from wmdp_fast.analysis.rescoring import rescore
from wmdp_fast.cli.show import bar, plain_terminal
from wmdp_fast.results.saved import read_results

if TYPE_CHECKING:
    from pathlib import Path

scipy_stats = pytest.importorskip("scipy.stats")


@pytest.fixture(scope="module", params=["lm-eval", "wmdp-fast"])
def saved_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = saved_runs.lm_eval_run if request.param == "lm-eval" else saved_runs.our_run
    return run(tmp_path_factory.mktemp("run"), "org/toy", num_fewshot=2)


def samples_file(results: Path, task: str) -> Path:
    return results.parent / f"samples_{task}_{results.stem.removeprefix('results_')}.jsonl"


def test_every_number_of_the_results_file_comes_out_again(saved_file: Path) -> None:
    saved, rescored = read_results(saved_file), rescore(saved_file.parent)
    assert rescored.mismatches == ()
    assert rescored.unchecked == ()
    assert list(rescored.tasks) == list(saved.tasks)
    assert list(rescored.groups) == list(saved.groups)
    for name in saved:
        one, found = saved[name], rescored[name]
        assert found.n == one.n
        assert set(found.metrics) >= set(one.metrics)
        for metric, value in one.metrics.items():
            estimate = found.metrics[metric]
            assert estimate.value == pytest.approx(value, rel=1e-12)
            if one.stderr[metric] is None:
                assert estimate.stderr is None
            else:
                assert estimate.stderr == pytest.approx(one.stderr[metric], rel=1e-12)
            count = scipy_stats.binomtest(round(value * found.n), found.n).proportion_ci(method="wilson")
            assert (estimate.low, estimate.high) == pytest.approx((count.low, count.high))


def test_what_no_results_file_says(saved_file: Path) -> None:
    found = rescore(saved_file, near_tie=0.15)["birds"]
    lines = [json.loads(line) for line in samples_file(saved_file, "birds").read_text(encoding="utf-8").splitlines()]
    scores = [[float(pair[0]) for pair in line["filtered_resps"]] for line in lines]
    gold = [int(line["target"]) for line in lines]
    predicted = [int(np.argmax(one)) for one in scores]
    margins = [sorted(one)[-1] - sorted(one)[-2] for one in scores]
    probabilities = [reference.softmax(one) for one in scores]
    assert found.near_ties == sum(margin <= 0.15 for margin in margins)
    assert found.ties == sum(margin == 0 for margin in margins)
    assert found.chance is not None
    assert found.chance.share == 0.25
    assert found.chance.p == pytest.approx(scipy_stats.binomtest(sum(map(int.__eq__, predicted, gold)), 9, 0.25).pvalue)
    assert found.letter_bias is not None
    assert found.letter_bias.predicted == tuple(predicted.count(choice) for choice in range(4))
    assert found.letter_bias.right == tuple(gold.count(choice) for choice in range(4))
    assert found.calibration is not None
    one_hot = np.eye(4)[gold]
    assert found.calibration.brier == pytest.approx(((np.array(probabilities) - one_hot) ** 2).sum(axis=1).mean())


def test_one_samples_file_is_checked_against_the_results_beside_it(saved_file: Path, tmp_path: Path) -> None:
    alone = rescore(samples_file(saved_file, "birds"))
    assert list(alone.tasks) == ["birds"]
    assert alone.groups == {}
    assert alone.results.path == saved_file
    assert alone.tasks["birds"].to_json() == rescore(saved_file)["birds"].to_json()
    # And without any: the metrics are those its lines record.
    copy = tmp_path / samples_file(saved_file, "birds").name
    copy.write_bytes(samples_file(saved_file, "birds").read_bytes())
    for given in (copy, tmp_path):
        bare = rescore(given)
        assert bare.results.path is None
        assert bare["birds"].metrics == alone["birds"].metrics


def test_a_tampered_line_and_a_tampered_result_are_reported(
    saved_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(saved_file, tmp_path / "line", "birds", lambda line: line.update(acc=1 - line["acc"]))
    assert rescore(folder).mismatches == (
        "birds: 1 of 9 lines record another acc than their log-likelihoods give, question 1 first",
    )
    results = folder / saved_file.name
    raw = json.loads(results.read_text(encoding="utf-8"))
    raw["results"]["nature"]["acc,none"] += 0.25
    results.write_text(json.dumps(raw), encoding="utf-8")
    assert cli.main(["rescore", str(folder)]) == 1
    captured = capsys.readouterr()
    assert "mismatch: nature: the results file says acc = " in captured.err
    assert "all as in" not in captured.out


def test_results_without_samples_cannot_be_rescored(tmp_path: Path) -> None:
    saved_runs.our_result("org/toy").save(tmp_path)
    with pytest.raises(ValueError, match="no samples beside it; evaluate with --log-samples"):
        rescore(tmp_path)


def test_the_command_prints_a_table_or_json_and_writes_it(
    saved_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["rescore", str(saved_file)]) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[-1] == f"all as in {saved_file.name}"
    assert "birds" in table
    output = tmp_path / "rescored.json"
    assert cli.main(["rescore", str(saved_file), "--json", "--output", str(output)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (
        printed
        == json.loads(output.read_text(encoding="utf-8"))
        == json.loads(json.dumps(rescore(saved_file).to_json()))
    )
    assert printed["groups"]["animals"]["metrics"]["acc"]["clustered_stderr"] > 0


def test_show_prints_intervals_bars_and_how_the_model_was_run(
    saved_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", str(saved_file.parent)]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0].startswith("org/toy  (")
    fish = next(line for line in lines if line.startswith("    about fish"))
    assert " to " in fish
    assert "0.25" in fish
    assert "near-ties: " in text
    assert "repeated" not in text
    assert "clouds: calibration error" in text
    assert "p against equal shares" in text
    assert "settings: 2-shot, dtype float32, batch 8" in text
    assert "seconds: " in text
    assert "│" in text
    assert cli.main(["show", str(saved_file.parent), "--ascii"]) == 0
    plain = capsys.readouterr().out
    assert plain.isascii()
    assert "|" in plain


def test_show_says_how_many_questions_are_there_twice(
    saved_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(saved_file, tmp_path / "twice", "birds", lambda _line: None)
    samples = samples_file(folder / saved_file.name, "birds")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    for earlier, later in ((0, 4), (0, 6), (1, 2)):
        lines[later] |= {key: lines[earlier][key] for key in ("prompt_hash", "target_hash")}
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert cli.main(["show", str(folder)]) == 0
    assert "repeated: 3 of " in capsys.readouterr().out


def test_show_without_samples_has_intervals_from_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = saved_runs.our_result("org/toy")
    result.save(tmp_path)
    assert cli.main(["show", str(tmp_path), "--ascii"]) == 0
    text = capsys.readouterr().out
    interval = scipy_stats.binomtest(int(result["birds"].outcome.correct.sum()), 9).proportion_ci(method="wilson")
    assert f"{interval.low:.4f} to {interval.high:.4f}" in text
    assert "no samples were saved" in text


def test_bars_are_drawn_in_eighths_with_a_mark_at_chance() -> None:
    assert bar(0.5, None, 8) == "████    "
    assert bar(0.5 + 3 / 64, None, 8) == "████▍   "
    assert bar(0.25, 0.5, 8) == "██  │   "
    assert bar(1.0, 0.25, 8) == "██│█████"
    assert bar(0.0, None, 8) == " " * 8
    assert bar(0.5, 0.25, 8, ascii_only=True) == "##|#    "


def test_blocks_are_left_out_where_a_terminal_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    class Terminal:
        encoding = "utf-8"

    monkeypatch.setattr("sys.stdout", Terminal)
    assert not plain_terminal()
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert plain_terminal()
    monkeypatch.setattr(Terminal, "encoding", "latin-1")
    assert plain_terminal()
