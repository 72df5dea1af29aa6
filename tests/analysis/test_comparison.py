"""Runs of the real lm-eval and of this package are compared in pairs, and only where they asked the same."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import wmdp_fast as wf
from tests.reference import statistics as reference
from tests.support import saved_runs
from tests.support.expected_warnings import ONE_LETTER
from tests.support.saved_runs import changed
from wmdp_fast import _rust, cli
from wmdp_fast.analysis.comparison import Comparison, compare
from wmdp_fast.analysis.contrast import Contrast, Difference, section_of
from wmdp_fast.analysis.run_order import order_doubt
from wmdp_fast.results.saved import SavedResults, read_results

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

scipy_stats = pytest.importorskip("scipy.stats")

RUNS: dict[str, Callable[..., Path]] = {"lm-eval": saved_runs.lm_eval_run, "wmdp-fast": saved_runs.our_run}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Results of two models by two packages."""
    found = {}
    for package, run in RUNS.items():
        for model in ("base", "unlearned"):
            folder = tmp_path_factory.mktemp(f"{package}-{model}")
            found[package, model] = run(folder, f"org/{model}", num_fewshot=2)
    return found


def correct_lines(results: Path, task: str) -> np.ndarray:
    time = results.stem.removeprefix("results_")
    lines = (results.parent / f"samples_{task}_{time}.jsonl").read_text(encoding="utf-8").splitlines()
    return np.array([json.loads(line)["acc"] == 1.0 for line in lines])


def row_of(contrast: Contrast, name: str, metric: str = "acc") -> Difference:
    [row] = [row for row in contrast.rows if (row.name, row.metric) == (name, metric)]
    return row


@pytest.mark.parametrize("before", RUNS)
@pytest.mark.parametrize("after", RUNS)
def test_every_pair_of_packages_is_compared_in_pairs(
    before: str, after: str, runs: dict[tuple[str, str], Path]
) -> None:
    first, second = runs[before, "base"], runs[after, "unlearned"]
    # A file, and a folder above it.
    comparison = compare(first, second.parent)
    [contrast] = comparison.contrasts
    assert comparison.names == ("org/base", "org/unlearned")
    assert not contrast.unpaired
    assert contrast.settings.keys() <= {"score_mode"}
    leaves = {"nature": ["birds", "fish", "moss"], "animals": ["birds", "fish"], "plants": ["moss"]}
    for name in ("birds", "fish", "moss", "clouds", *leaves):
        row = row_of(contrast, name)
        tasks = leaves.get(name, [name])
        mine = np.concatenate([correct_lines(first, task) for task in tasks])
        other = np.concatenate([correct_lines(second, task) for task in tasks])
        assert row.before == pytest.approx(mine.mean())
        assert row.difference == pytest.approx(other.mean() - mine.mean())
        lost, won = int((mine & ~other).sum()), int((~mine & other).sum())
        assert (row.right_to_wrong, row.wrong_to_right) == (lost, won)
        expected = scipy_stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
        assert row.p == pytest.approx(expected)
        assert row.low is not None
        assert row.high is not None
        assert row.low <= row.difference <= row.high
        interval = reference.paired_interval(lost, won, len(mine), 0.95)
        assert (row.low, row.high) == pytest.approx(interval, rel=1e-6, abs=1e-7)
        assert (row.low > 0 or row.high < 0) == (row.p is not None and row.p < 0.05)
        assert (row.clustered_stderr is not None) == (len(tasks) > 1)
    tested = [row for row in contrast.rows if row.metric == "acc" and not row.is_group]
    assert [row.p_holm for row in tested] == pytest.approx(_rust.holm([row.p for row in tested if row.p is not None]))
    assert any("made by" in note for note in contrast.notes) == (before != after)


def test_the_same_run_twice_differs_in_nothing(runs: dict[tuple[str, str], Path]) -> None:
    [contrast] = compare(runs["lm-eval", "base"], runs["wmdp-fast", "base"]).contrasts
    for row in contrast.rows:
        assert row.difference == pytest.approx(0)
        assert row.p == 1
        # Nothing changed, which of few questions says little.
        assert row.low is not None
        assert row.high == pytest.approx(-row.low)
        assert row.high > 0.1
        assert row.right_to_wrong == row.wrong_to_right == 0


def test_a_run_beside_itself_is_noted(runs: dict[tuple[str, str], Path]) -> None:
    same = runs["wmdp-fast", "base"]
    [contrast] = compare(same, same).contrasts
    assert [note for note in contrast.notes if note.startswith("before and after are the same file")]
    [contrast] = compare(same, runs["lm-eval", "base"]).contrasts
    assert not [note for note in contrast.notes if "same file" in note]


def test_other_prompts_are_not_compared_in_pairs(runs: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    zero_shot = saved_runs.our_run(tmp_path, "org/unlearned")
    comparison = compare(runs["lm-eval", "base"], zero_shot)
    [contrast] = comparison.contrasts
    assert contrast.settings["num_fewshot"] == (2, 0)
    assert list(contrast.unpaired.values()) == [["birds"], ["fish"], ["moss"], ["clouds"]]
    assert next(iter(contrast.unpaired)) == "the prompts of 9 of 9 questions differ, question 0 first"
    for row in contrast.rows:
        assert row.p is row.p_holm is row.low is row.right_to_wrong is None
        assert row.why_unpaired
    assert row_of(contrast, "nature").why_unpaired == "3 of its 3 tasks cannot be compared in pairs"
    assert "no paired statistics for birds: the prompts of 9 of 9" in comparison.table()


@pytest.mark.parametrize("limited_first", [False, True])
def test_of_runs_with_other_limits_the_common_questions_are_compared(
    limited_first: bool, runs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    limited = saved_runs.our_run(tmp_path, "org/unlearned", num_fewshot=2, limit=3)
    given = [runs["wmdp-fast", "base"], limited]
    comparison = compare(*(given[::-1] if limited_first else given))
    [contrast] = comparison.contrasts
    for name, tasks in (("birds", ["birds"]), ("nature", ["birds", "fish", "moss"])):
        first, second = (np.concatenate([correct_lines(run, task)[:3] for task in tasks]) for run in given)
        before, after = (second, first) if limited_first else (first, second)
        row = row_of(contrast, name)
        assert row.why_unpaired is None
        assert row.n == len(before)
        assert (row.before, row.after) == pytest.approx((before.mean(), after.mean()))
        assert (row.right_to_wrong, row.wrong_to_right) == ((before & ~after).sum(), (~before & after).sum())
    assert row_of(contrast, "birds").asked == ((3, 9) if limited_first else (9, 3))
    assert row_of(contrast, "birds").stderr_before == pytest.approx(
        (second if limited_first else first)[:3].std(ddof=1) / 3**0.5
    )
    assert contrast.settings["limit"] == ((3, None) if limited_first else (None, 3))
    told = "birds 3 (of 3 before and 9 after)" if limited_first else "birds 3 (of 9 before and 3 after)"
    assert any(note.startswith(f"only questions that both runs asked are compared: {told}") for note in contrast.notes)
    assert re.search(r"^ {4}birds +3 of 9 ", comparison.table(), re.MULTILINE)


def test_runs_that_share_no_question_are_not_compared_in_pairs(
    runs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    def renumbered(line: dict[str, Any]) -> None:
        line["doc_id"] += 100

    folder = changed(runs["wmdp-fast", "base"], tmp_path / "copy", "birds", renumbered, every=True)
    [contrast] = compare(runs["wmdp-fast", "base"], folder).contrasts
    reason = "9 and 9 questions, none in common"
    assert row_of(contrast, "birds").why_unpaired == reason


def test_a_folder_of_runs_is_compared_with_its_first(
    runs: dict[tuple[str, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, (model, name) in enumerate((("base", "z"), ("unlearned", "a"))):
        copy = tmp_path / "runs" / name / "model"
        copy.mkdir(parents=True)
        for file in runs["wmdp-fast", model].parent.iterdir():
            text = file.read_text(encoding="utf-8")
            if file.name.startswith("results_"):
                text = json.dumps(json.loads(text) | {"date": 1000.0 + place})
            (copy / file.name).write_text(text, encoding="utf-8")
    comparison = compare(tmp_path / "runs")
    # By when they were made, not by their names.
    assert comparison.names == ("org/base", "org/unlearned")
    assert cli.main(["compare", str(tmp_path / "runs")]) == 0
    assert "before: org/base\nafter:  org/unlearned\n" in capsys.readouterr().out
    assert cli.main(["show", str(tmp_path / "runs"), "--ascii"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("org/base") < shown.index("org/unlearned")
    # What a folder holds is there once, also if it is named beside it; numbers belong to the whole of it.
    inner = tmp_path / "runs" / "a"
    assert compare(tmp_path / "runs", inner).names == comparison.names
    assert compare(inner, tmp_path / "runs").names == comparison.names[::-1]
    assert cli.main(["compare", str(tmp_path / "runs"), str(inner), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["contrasts"]) == 1
    # One model is not two.
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare", str(tmp_path / "runs" / "z")])
    assert "two results or more" in capsys.readouterr().err


def dated(run: SavedResults, date: float, **changes: Any) -> SavedResults:
    return replace(run, raw={**run.raw, "date": date}, **changes)


def test_the_wrong_order_is_doubted(
    runs: dict[tuple[str, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, unlearned = (replace(read_results(runs["wmdp-fast", model]), path=None) for model in ("base", "unlearned"))
    # By name, whenever they were evaluated.
    assert order_doubt(dated(base, 2.0), dated(unlearned, 1.0)) is None
    assert "is called org/unlearned" in str(order_doubt(dated(unlearned, 1.0), dated(base, 2.0)))
    # By when they were evaluated, unless it is the same model.
    one, two = (dated(base, date, model_name=name) for date, name in ((1.0, "org/x"), (2.0, "org/y")))
    assert order_doubt(one, two) is None
    assert order_doubt(two, one) == "org/y, which is taken as before, was evaluated later than org/x"
    assert order_doubt(replace(two, model_name="org/x"), one) is None
    # By what unlearning left, whatever the rest says.
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "unlearn.json").write_text('{"model": "org/x"}', encoding="utf-8")
    made = replace(one, model_name=str(folder))
    assert order_doubt(two, made) is None
    assert order_doubt(made, two) == f"{folder}, which is taken as before, was made by unlearning (from org/x)"
    # The command says so and goes on.
    given = [str(runs["wmdp-fast", model]) for model in ("unlearned", "base")]
    assert cli.main(["compare", *given]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("the order is BEFORE AFTER") == 1
    assert captured.err == ""
    assert cli.main(["compare", *given, "--json"]) == 0
    told = capsys.readouterr().err
    assert told.startswith("warning: org/unlearned and org/base: the run taken as before is called")
    assert cli.main(["compare", *given[::-1]]) == 0
    assert capsys.readouterr().err == ""


def test_rows_say_where_shots_differ_and_what_is_to_be_forgotten(runs: dict[tuple[str, str], Path]) -> None:
    base = read_results(runs["wmdp-fast", "base"])
    tasks = {name: replace(task, num_fewshot=0) for name, task in base.tasks.items()}
    other = replace(base, tasks={**base.tasks, "fish": replace(tasks["fish"], alias="fish (forget)")})
    before = replace(base, tasks={**base.tasks, "fish": replace(base.tasks["fish"], alias="fish (forget)")})
    comparison = compare(before, other)
    [contrast] = comparison.contrasts
    assert {row.name for row in contrast.section("forget")} == {"fish"}
    assert row_of(contrast, "fish").caveat == "2-shot before, 0-shot after"
    assert row_of(contrast, "animals").caveat == "2-shot before, 0/2-shot after"
    assert row_of(contrast, "birds").caveat is None
    assert "fish (forget) (2-shot before, 0-shot after)" in comparison.table()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target_hash": "x"}, "the answers of 1 of 9 questions differ, question 1 first"),
        ({"prompt_hash": "x"}, "the prompts of 1 of 9 questions differ, question 1 first"),
        ({"prompt_hash": ""}, "the samples have no hashes (lm-eval before 0.4.3), so that it cannot be checked"),
    ],
)
def test_one_changed_question_is_found(
    change: dict[str, str], reason: str, runs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    results = runs["lm-eval", "base"]
    other = changed(results, tmp_path / "other", "birds", lambda line: line.update(change))
    [contrast] = compare(results, other).contrasts
    assert (row_of(contrast, "birds").why_unpaired or "").startswith(reason)
    assert row_of(contrast, "clouds").why_unpaired is None


def test_other_choices_are_found_and_other_documents_noted(runs: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    results = runs["wmdp-fast", "base"]

    def another_choice(line: dict[str, Any]) -> None:
        line["arguments"]["gen_args_2"]["arg_1"] = " else"

    [contrast] = compare(results, changed(results, tmp_path / "choice", "birds", another_choice)).contrasts
    assert row_of(contrast, "birds").why_unpaired == "the choices of 1 of 9 questions differ, question 1 first"
    other = changed(results, tmp_path / "document", "birds", lambda line: line.update(doc_hash="x"))
    [contrast] = compare(results, other).contrasts
    assert row_of(contrast, "birds").why_unpaired is None
    assert any(note.startswith("birds: 1 of 9 documents differ") for note in contrast.notes)


def test_without_samples_the_values_stand_alone(runs: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    bare = saved_runs.our_result("org/unlearned", num_fewshot=2).save(tmp_path)
    [contrast] = compare(runs["lm-eval", "base"], bare).contrasts
    row = row_of(contrast, "birds")
    assert row.why_unpaired == "one of the runs has no samples of it"
    assert row.p is None
    assert row.difference == row.after - row.before


def test_evaluations_in_memory_and_several_at_once(runs: dict[tuple[str, str], Path]) -> None:
    base, unlearned = (saved_runs.our_result(f"org/{model}", num_fewshot=2) for model in ("base", "unlearned"))
    comparison = wf.compare(base, unlearned, runs["wmdp-fast", "base"], read_results(runs["lm-eval", "unlearned"]))
    assert isinstance(comparison, Comparison)
    assert comparison.names == ("org/base (1)", "org/unlearned (2)", "org/base (3)", "org/unlearned (4)")
    first, second, third = comparison.contrasts
    assert first.rows == third.rows
    assert all(row.difference == 0 for row in second.rows)
    assert first == wf.compare(base, unlearned, names=comparison.names[:2]).contrasts[0]


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("wmdp", "forget"),
        ("wmdp_bio", "forget"),
        ("wmdp_bio_robust", "forget"),
        ("mmlu_virology", "near"),
        ("mmlu_college_biology_continuation", "near"),
        ("mmlu_computer_security", "near"),
        ("mmlu", "general"),
        ("mmlu_stem", "general"),
        ("mmlu_high_school_biology", "general"),
        ("birds", "other"),
        ("virology", "other"),
    ],
)
def test_tasks_belong_to_sections(name: str, section: str) -> None:
    assert section_of(name) == section


def test_local_tasks_can_be_put_into_sections(runs: dict[tuple[str, str], Path]) -> None:
    comparison = compare(runs["lm-eval", "base"], runs["lm-eval", "unlearned"], forget=["clouds"], near=["plants"])
    [contrast] = comparison.contrasts
    assert [row.name for row in contrast.section("forget")] == ["clouds"]
    assert [row.name for row in contrast.section("near")] == ["plants"]
    titles = ["forget targets", "near domains", "other"]
    assert [line for line in comparison.table().splitlines() if line in titles] == titles


def test_wrong_calls_are_refused(runs: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    base, other = runs["lm-eval", "base"], runs["lm-eval", "unlearned"]
    with pytest.raises(ValueError, match="two runs or more"):
        compare(base)
    with pytest.raises(ValueError, match="need as many names, unlike each other, not a, a"):
        compare(base, other, names=["a", "a"])
    with pytest.raises(ValueError, match="no run has a task or group wmdp; they have nature"):
        compare(base, other, forget=["wmdp"])
    with pytest.raises(ValueError, match="confidence must lie between"):
        compare(base, other, confidence=2.0)
    raw = json.loads(other.read_text(encoding="utf-8"))
    raw |= {"results": {"rain": {"acc,none": 0.5}}, "group_subtasks": {}}
    strange = tmp_path / "results_2026-11-24T15-00-00.json"
    strange.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ValueError, match="no task in common: one has birds, fish, moss, clouds, the other rain"):
        compare(base, strange)


def test_the_command_prints_a_table_markdown_or_json(
    runs: dict[tuple[str, str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "compare",
        str(runs["lm-eval", "base"]),
        str(runs["wmdp-fast", "unlearned"]),
        "--names",
        "before it,after|it",
    ]
    assert cli.main(given) == 0
    table = capsys.readouterr().out
    assert "before: before it\nafter:  after|it\n" in table
    header = next(line for line in table.splitlines() if line.startswith("task"))
    assert header.split()[:6] == ["task", "n", "metric", "before", "after", "change"]
    assert re.search(r"^ {4}birds +9 +acc +0\.\d{4} +0\.\d{4} +[+-]0\.\d{4} +[+-]0\.\d{4} to ", table, re.MULTILINE)
    assert "exact McNemar test" in table

    assert cli.main([*given, "--markdown"]) == 0
    markdown = capsys.readouterr().out.splitlines()
    rows = [line for line in markdown if line.startswith("|")]
    # The second table tells what is left without preferred letters.
    second = next(place for place, line in enumerate(rows) if line.startswith("| without preferred letters"))
    for table_rows in (rows[:second], rows[second:]):
        assert len({line.replace("\\|", "").count("|") for line in table_rows}) == 1
    assert any(line.startswith("| birds | 9 | acc |") for line in rows)

    assert cli.main([*given, "--json", "--confidence", "0.9"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["confidence"] == 0.9
    expected = compare(*given[1:3], names=["before it", "after|it"], confidence=0.9)
    assert document == json.loads(json.dumps(expected.to_json()))


def test_wrong_usage_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, message in (
        (["one"], "two results or more"),
        (["one", "two", "--confidence", "95"], "'95' is not a number between 0 and 1"),
        (["one", "two", "--json", "--markdown"], "not allowed with argument"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["compare", *wrong])
        assert message in capsys.readouterr().err
    assert cli.main(["compare", "/no/such/one", "/no/such/two"]) == 1
    assert capsys.readouterr().err == "error: /no/such/one: no such file or folder\n"


@ONE_LETTER
@pytest.mark.slow
def test_a_real_model_scored_by_both_packages_has_no_difference(tmp_path: Path) -> None:
    """One torch model, evaluated and saved by lm-eval's `hf` backend and by `evaluate`."""
    from tests.support import tiny_models
    from wmdp_fast.bench.lm_eval_baseline import quiet_lm_eval, task_configs
    from wmdp_fast.tasks.resolve import resolve

    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `lm-eval`)")
    model = tmp_path / "model"
    tiny_models.build("llama").save_pretrained(model)
    tiny_models.tokenizer().save_pretrained(model)
    rows = [
        {"question": f"Is {i} a bird?", "choices": ["wren", "oak", "carp", f"mint {i}"], "answer": i % 4}
        for i in range(25)
    ]
    questions = tmp_path / "birds.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    ours = wf.evaluate(str(model), tasks=str(questions), device="cpu", progress=False)
    ours.save(tmp_path / "ours", log_samples=True)
    with quiet_lm_eval() as lm_eval, pytest.MonkeyPatch.context() as patch:
        from lm_eval.loggers import EvaluationTracker
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        patch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")
        tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
        results = lm_eval.simple_evaluate(
            model=HFLM(pretrained=str(model), device="cpu"),
            tasks=task_configs(resolve(str(questions)).tasks, None),
            task_manager=TaskManager(include_defaults=False),
            log_samples=True,
            evaluation_tracker=tracker,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results, samples)
        tracker.save_results_samples("birds", samples["birds"])

    [contrast] = compare(tmp_path / "theirs", tmp_path / "ours").contrasts
    row = row_of(contrast, "birds")
    assert row.why_unpaired is None
    assert (row.n, row.difference, row.right_to_wrong, row.wrong_to_right) == (25, 0, 0, 0)
    scores = [read_results(tmp_path / side).tasks["birds"].loglikelihood_matrix() for side in ("ours", "theirs")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_json_has_null_where_a_metric_is_no_number(
    runs: dict[tuple[str, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other metrics than accuracy may be NaN, which JSON does not have."""
    given = []
    for model in ("base", "unlearned"):
        shutil.copytree(runs["lm-eval", model].parent, tmp_path / model)
        [file] = (tmp_path / model).glob("results_*.json")
        raw = json.loads(file.read_text(encoding="utf-8"))
        raw["results"]["nature"]["f1,none"] = float("nan") if model == "base" else 0.5
        raw["results"]["nature"]["f1_stderr,none"] = 0.1
        file.write_text(json.dumps(raw), encoding="utf-8")
        given.append(str(file))
    assert cli.main(["compare", *given, "--json"]) == 0
    out = capsys.readouterr().out
    document = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    [row] = [row for row in document["contrasts"][0]["rows"] if row["metric"] == "f1"]
    assert row["before"] is None


def test_a_file_whose_numbers_are_not_those_of_its_samples_is_noted(
    runs: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    results = runs["wmdp-fast", "base"]
    folder = changed(results, tmp_path / "edited", "birds", lambda _line: None)
    raw = json.loads((folder / results.name).read_text(encoding="utf-8"))
    raw["results"]["birds"]["acc,none"] = 0.125
    (folder / results.name).write_text(json.dumps(raw), encoding="utf-8")
    [contrast] = compare(runs["lm-eval", "base"], folder).contrasts
    [note] = [note for note in contrast.notes if "its samples give" in note]
    assert note.startswith(f"{folder / results.name}, birds: the results file says acc = 0.125, its samples give")
    for before, after in (("lm-eval", "wmdp-fast"), ("wmdp-fast", "lm-eval")):
        [contrast] = compare(runs[before, "base"], runs[after, "unlearned"]).contrasts
        assert not [note for note in contrast.notes if "its samples give" in note]


@pytest.mark.parametrize("with_samples", [True, False])
@pytest.mark.parametrize("program", ["wmdp-fast", "lm-eval"])
def test_a_group_whose_number_is_no_mean_of_its_tasks_is_noted(
    runs: dict[tuple[str, str], Path], tmp_path: Path, program: str, with_samples: bool
) -> None:
    results = runs[program, "base"]
    folder = changed(results, tmp_path / "edited", "birds", lambda _line: None)
    for samples in () if with_samples else list(folder.glob("samples_*")):
        samples.unlink()
    raw = json.loads((folder / results.name).read_text(encoding="utf-8"))
    [contrast] = compare(folder, runs["wmdp-fast", "unlearned"]).contrasts
    assert not [note for note in contrast.notes if "its tasks give" in note]
    true = raw["results"]["animals"]["acc,none"]
    raw["results"]["animals"]["acc,none"] = 0.0625
    (folder / results.name).write_text(json.dumps(raw), encoding="utf-8")
    [contrast] = compare(folder, runs["wmdp-fast", "unlearned"]).contrasts
    [note] = [note for note in contrast.notes if "its tasks give" in note]
    assert note == f"{folder / results.name}, animals: the results file says acc = 0.0625, its tasks give {true!r}"


def test_runs_of_two_versions_are_told(runs: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    results = runs["wmdp-fast", "base"]
    folder = changed(results, tmp_path / "older", "birds", lambda _line: None)
    raw = json.loads((folder / results.name).read_text(encoding="utf-8"))
    now = raw["wmdp_fast"]["versions"]["wmdp_fast"]
    raw["wmdp_fast"]["versions"]["wmdp_fast"] = "0.0.9"
    (folder / results.name).write_text(json.dumps(raw), encoding="utf-8")
    [contrast] = compare(folder, runs["wmdp-fast", "unlearned"]).contrasts
    assert f"the runs were made by wmdp-fast 0.0.9 and wmdp-fast {now}" in contrast.notes
    [contrast] = compare(results, runs["wmdp-fast", "unlearned"]).contrasts
    assert not [note for note in contrast.notes if "were made by" in note]
