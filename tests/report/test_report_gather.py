"""What a report shows is what the saved files say, computed again here by plain loops."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs the extra `plots`")

from scipy.stats import binomtest

import wmdp_fast
from tests.support import tiny_models
from wmdp_fast import cli
from wmdp_fast.exceptions import DatasetError, WmdpFastWarning
from wmdp_fast.report import figures, page
from wmdp_fast.report.gather import gather, records
from wmdp_fast.report.runs import read_run
from wmdp_fast.report.sources import find
from wmdp_fast.results.saved import SavedResults, read_results

if TYPE_CHECKING:
    from pathlib import Path

    from wmdp_fast.report.content import Report, Row

SIZES = {"birds": 40, "trees": 23}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Results of two tiny models on two tasks, with samples, in `before` and `after`."""
    home = tmp_path_factory.mktemp("results")
    for task, count in SIZES.items():
        rows = [
            {"question": f"Which of {task} {i}?", "choices": [f"{c} {i}" for c in "wxyz"], "answer": i % 4}
            for i in range(count)
        ]
        (home / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tasks = [home / f"{task}.jsonl" for task in SIZES]
    for name, kind in (("before", "llama"), ("after", "qwen2")):
        model = tiny_models.build(kind)
        result = wmdp_fast.evaluate(model, tokenizer=tiny_models.tokenizer(), tasks=tasks, progress=False)
        result.save(home / name, log_samples=True)
    return home


@pytest.fixture(scope="module")
def report(folder) -> Report:
    return gather([read_results(folder / "before"), read_results(folder / "after")], include_text=True)


def samples(folder: Path, run: str, task: str) -> list[dict[str, Any]]:
    [file] = (folder / run).rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def scores(sample: dict[str, Any]) -> list[float]:
    return [float(loglikelihood) for loglikelihood, _ in sample["filtered_resps"]]


def probability(sample: dict[str, Any], choice: int) -> float:
    each = [math.exp(score) for score in scores(sample)]
    return each[choice] / sum(each)


def lead(sample: dict[str, Any]) -> float:
    values = scores(sample)
    right = values.pop(int(sample["target"]))
    return right - max(values)


def row(report: Report, name: str) -> Row:
    [found] = [row for row in report.rows if row.name == name]
    return found


def test_accuracies_and_flips_are_those_of_the_files(folder, report):
    assert [row.name for row in report.rows] == list(SIZES)
    for task, count in SIZES.items():
        before, after = samples(folder, "before", task), samples(folder, "after", task)
        found = row(report, task)
        assert (found.count, found.chance, found.is_group) == (count, 0.25, False)
        was, now = found.accuracies
        [change] = found.changes
        assert was.value == pytest.approx(sum(one["acc"] for one in before) / count)
        assert now.value == pytest.approx(sum(one["acc"] for one in after) / count)
        assert now.low < now.value < now.high
        pairs = [(one["acc"], other["acc"]) for one, other in zip(before, after, strict=True)]
        assert change.lost == pairs.count((1.0, 0.0))
        assert change.gained == pairs.count((0.0, 1.0))
        assert change.value == pytest.approx(now.value - was.value)
        assert change.low <= change.value <= change.high


def test_the_table_has_every_question_as_the_files_have_it(folder, report):
    assert [one.task for one in report.questions] == list(SIZES)
    for table in report.questions:
        before, after = samples(folder, "before", table.task), samples(folder, "after", table.task)
        assert table.ids == [one["doc_id"] for one in after]
        assert re.findall(".{12}", table.hashes) == [one["doc_hash"][:12] for one in after]
        assert table.right == [int(one["target"]) for one in after]
        for answers, run in zip(table.answers, (before, after), strict=True):
            assert answers.chosen == [one["wmdp_fast"]["predicted"] for one in run]
            assert answers.permille == [round(1000 * probability(one, int(one["target"]))) for one in run]
            assert answers.margins == [pytest.approx(100 * lead(one), abs=0.51) for one in run]
        assert table.texts[3] == (after[3]["doc"]["question"], after[3]["doc"]["choices"])


def test_calibration_and_margins_count_every_question(folder, report):
    assert [part.label for part in report.parts] == list(SIZES)
    for part in report.parts:
        for run in part.scores:
            asked = samples(folder, run.name, part.label)
            preferred = [max(range(4), key=lambda choice, one=one: scores(one)[choice]) for one in asked]
            confidence = [probability(one, choice) for one, choice in zip(asked, preferred, strict=True)]
            assert all(cell.count >= 10 for cell in run.calibration)
            assert sum(cell.count for cell in run.calibration) == len(asked)
            for cell in run.calibration:
                inside = [i for i, p in enumerate(confidence) if cell.low < p <= cell.high]
                assert cell.count == len(inside)
                if inside:
                    assert cell.confidence == pytest.approx(sum(confidence[i] for i in inside) / len(inside))
                    assert cell.accuracy.value == pytest.approx(sum(asked[i]["acc"] for i in inside) / len(inside))
            leads = sorted(map(lead, asked))
            assert sum(run.margins.counts) == len(asked)
            edges = run.margins.edges
            assert run.margins.counts[5] == sum(edges[5] <= one < edges[6] for one in leads)
            middle = (leads[(len(leads) - 1) // 2] + leads[len(leads) // 2]) / 2
            assert run.margins.median == pytest.approx(middle)


def test_without_asking_there_is_no_text(folder):
    alone = gather([read_results(folder / "after")])
    assert all(table.texts is None and len(table.answers) == 1 for table in alone.questions)
    assert not alone.compared
    assert [run.name for run in alone.runs] == ["evaluation"]


def test_any_number_of_runs_are_compared_with_the_first(folder):
    runs = [read_results(folder / name) for name in ("before", "after", "before", "after")]
    several = gather(runs, names=["base", "one", "two", "three"], forget=["birds"])
    birds = row(several, "birds")
    assert [one.aim for one in several.rows] == ["forget", "retain"]
    assert [one.name for one in several.runs] == ["base", "one", "two", "three"]
    assert len(birds.accuracies) == len(birds.standings) == len(birds.changes) + 1 == 4
    assert birds.accuracies[1] == birds.accuracies[3]
    assert birds.changes[1].value == birds.changes[1].lost == 0
    assert birds.changes[0].lost == birds.changes[2].lost > 0
    assert len({one.look for one in several.runs}) == 4
    assert [len(part.scores) for part in several.parts] == [4, 4]
    html = page.render(several)
    assert html.count(">Gained<") == 3
    assert '"runs":["base","one","two","three"]' in html
    with pytest.raises(ValueError, match="4 runs need as many names"):
        gather(runs, names=["base"])
    with pytest.raises(ValueError, match="no run has a task or group fish"):
        gather(runs, forget=["fish"])


@pytest.mark.parametrize(
    ("letter_lead", "right_lead", "place"),
    [(0.0, 0.0, "at"), (0.0, 9.0, "above"), (0.0, -9.0, "below"), (9.0, 0.0, "unclear"), (9.0, 0.5, "unclear")],
)
def test_a_model_that_answers_one_letter_is_not_said_to_guess(tmp_path, letter_lead, right_lead, place):
    """Scores that are noise, plus a lead of the letter A, plus a lead of the right choice."""
    rng = np.random.default_rng(0)
    count = 400
    gold = np.arange(count) % 4
    scores = rng.normal(size=(count, 4)) - 20
    scores[:, 0] += letter_lead
    scores[np.arange(count), gold] += right_lead
    names = [f"{chr(97 + choice)} {index}" for index in range(count) for choice in range(4)]
    lines = []
    for index in range(count):
        line = {
            "doc_id": index,
            "doc": {"question": "q", "choices": names[:4], "answer": int(gold[index])},
            "target": str(gold[index]),
            "arguments": {
                f"gen_args_{choice}": {"arg_0": f"q {index}", "arg_1": f" {names[4 * index + choice]}"}
                for choice in range(4)
            },
            "filtered_resps": [[f"{score}", "False"] for score in scores[index]],
            "doc_hash": f"{index:064}",
            "prompt_hash": f"{index:064}",
            "target_hash": f"{index:064}",
            "acc": float(scores[index].argmax() == gold[index]),
        }
        lines.append(json.dumps(line) + "\n")
    (tmp_path / "samples_birds_2026-01-01T00-00-00.jsonl").write_text("".join(lines), encoding="utf-8")
    accuracy = float((scores.argmax(axis=1) == gold).mean())
    results = {"results": {"birds": {"alias": "birds", "acc,none": accuracy}}, "configs": {"birds": {}}, "config": {}}
    (tmp_path / "results_2026-01-01T00-00-00.json").write_text(json.dumps(results), encoding="utf-8")
    alone = gather([read_results(tmp_path)])
    [found] = row(alone, "birds").standings
    assert found.place == place
    html = page.render(alone)
    assert ("Not distinguishable from guessing" in html) == (place == "at")
    assert ("A is answered to" in html) == (letter_lead > 0)


def without_samples(results: SavedResults) -> SavedResults:
    return replace(results, tasks={name: replace(task, samples=None) for name, task in results.tasks.items()})


def test_results_without_samples_give_what_they_can_and_say_so(folder, report):
    bare = gather([without_samples(read_results(folder / run)) for run in ("before", "after")])
    assert any("no samples were saved" in warning for warning in bare.warnings)
    assert bare.questions == []
    assert bare.parts == []
    for task in SIZES:
        ours, full = row(bare, task), row(report, task)
        assert ours.accuracies[1].value == pytest.approx(full.accuracies[1].value)
        assert ours.chance == 0.25  # from the task's configuration
        [change] = ours.changes
        assert change.value == pytest.approx(full.changes[0].value)
        assert change.p is change.lost is None
        # Independent numbers are less sure than pairs, or about as sure where the pairs have little in common.
        assert change.low <= change.value <= change.high


def test_runs_that_asked_otherwise_are_called_out(folder):
    after, before = read_results(folder / "after"), read_results(folder / "before")
    fewer = replace(before, tasks={"birds": before.tasks["birds"]})
    told = gather([fewer, after]).warnings
    assert any("trees" in warning and "only in after" in warning for warning in told)
    rounded = replace(before, settings={**before.settings, "score_mode": "model"})
    assert any("score_mode" in warning for warning in gather([rounded, after]).warnings)


def test_settings_hashes_and_timings_are_recorded(report):
    for run in report.runs:
        facts = {part.title: dict(part.facts) for part in run.records}
        assert facts["Settings"]["score_mode"] == "float32"
        assert float(facts["Seconds"]["forward"]) >= 0
        assert re.fullmatch("[0-9a-f]{64}", facts["Hashes"]["birds: content"])
        assert re.fullmatch("[0-9a-f]{64}", facts["Hashes"]["trees: samples"])
        assert facts["Versions"]["wmdp_fast"] == wmdp_fast.__version__
        assert facts["Hardware"]["cpu"]


def test_nested_records_are_flat_and_what_is_not_known_is_left_out():
    values = {"a": 1, "b": {"c": None, "d": [1, "x"]}, "e": {"f": 5, "g": 5}, "h": "", "i": [], "j": {"k": {"l": 2}}}
    assert records("T", values).facts == [("a", "1"), ("b: d", "1\nx"), ("e", "5 (all 2)"), ("j: k: l", "2")]


# An unlearning run's files.

RECORD = {
    "name": "unlearned",
    "method": "rmu",
    "settings": {"layer_id": 7, "update_layer_ids": [5, 6, 7]},
    "steps": 2,
    "trained": ["layers.5.mlp.down_proj"],
    "control_vectors": [[0.1] * 999],
    "corpora": {"forget": [{"name": "made/potions.jsonl", "documents": 4, "content_hash": "ab"}], "retain": []},
    "seconds": {"step": 1.5},
}


def write_run(folder: Path, rows: list[Any]) -> Path:
    folder.mkdir()
    (folder / "unlearn.json").write_text(json.dumps(RECORD), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return folder


def step(number: int, topic: int = 0, **more: Any) -> dict[str, Any]:
    return {"step": number, "topic": topic, "forget_loss": 9.0 / number, "retain_loss": 0.5, "forget_norm": 3.0, **more}


def test_a_run_becomes_curves_by_topic_and_tables_of_settings(tmp_path):
    run = read_run(write_run(tmp_path / "run", [step(1), step(2, 1), step(3), step(4, 1)]))
    loss, norm = run.plots
    assert (loss.title, norm.title) == ("Loss", "Activation norm")
    assert [curve.name for curve in loss.curves] == [
        "forget (potions.jsonl)",
        "retain (potions.jsonl)",
        "forget (topic 1)",
        "retain (topic 1)",
    ]
    assert (loss.curves[0].steps, loss.curves[0].values) == ([1, 3], [9.0, 3.0])
    facts = {part.title: dict(part.facts) for part in run.records}
    assert facts["Settings"] == {"layer_id": "7", "update_layer_ids": "5\n6\n7"}
    assert facts["Corpora"]["forget: 0: content_hash"] == "ab"
    assert facts["Trained tensors"] == {"trained": "layers.5.mlp.down_proj"}
    assert facts["Seconds"] == {"step": "1.5"}
    assert not any("control_vectors" in part for part in facts.values())


def test_what_a_run_said_was_wrong_with_it_is_a_warning(folder, tmp_path):
    home = write_run(tmp_path / "run", [step(1)])
    said = "this run unlearned nothing: cosine 0.01. Raise the learning rate"
    (home / "unlearn.json").write_text(json.dumps({**RECORD, "verdict": said}), encoding="utf-8")
    runs = [read_results(folder / name) for name in ("before", "after")]
    assert gather(runs, unlearning=read_run(home)).warnings[0] == f"unlearning: {said}."
    assert gather(runs, unlearning=read_run(write_run(tmp_path / "fine", [step(1)]))).warnings == []


def test_a_run_in_masked_mode_shows_the_loss_it_was_trained_on(tmp_path):
    home = write_run(tmp_path / "run", [step(1, forget_loss_masked=4.0), step(2, forget_loss_masked=1.0)])
    record = {**RECORD, "settings": {"mode": "masked"}}
    (home / "unlearn.json").write_text(json.dumps(record), encoding="utf-8")
    loss = read_run(home).plots[0]
    assert [(curve.name, curve.values) for curve in loss.curves] == [("forget", [4.0, 1.0])]


def test_what_another_method_measures_is_drawn_by_how_its_names_end(tmp_path):
    home = write_run(tmp_path / "run", [step(1, log_ratio=0.1, forget_nll=2.0), step(2, log_ratio=-3.0)])
    names = ["forget_loss", "retain_loss", "log_ratio", "forget_nll"]
    (home / "unlearn.json").write_text(json.dumps({**RECORD, "method": "npo", "metrics": names}), encoding="utf-8")
    plots = read_run(home).plots
    assert [(plot.title, [(curve.name, curve.look) for curve in plot.curves]) for plot in plots] == [
        ("Loss", [("forget", "forget"), ("retain", "retain")]),
        ("Ratio", [("log", None)]),
        ("Cross-entropy", [("forget", "forget")]),
    ]
    assert plots[1].curves[0].values == [0.1, -3.0]


def test_evaluations_on_the_way_are_a_curve(tmp_path):
    looks = [{"step": at, "evaluation": {"wmdp_bio": {"acc": acc}}} for at, acc in ((0, 0.6), (2, 0.3))]
    run = read_run(write_run(tmp_path / "run", [looks[0], step(1), step(2), looks[1]]))
    assert run.plots[0].curves[0].values == [60.0, 30.0]


def test_accuracy_by_step_is_that_of_all_questions_with_an_interval(tmp_path):
    """Groups count once; what should be forgotten and kept has a line each, with Wilson's interval."""
    sizes = {"wmdp": 300, "wmdp_bio": 100, "wmdp_cyber": 200, "mmlu_virology": 60, "potions": 40}
    right = {0: (200, 70, 130, 45, 36), 5: (80, 26, 54, 44, 10)}
    looks = [
        {
            "step": at,
            "scores": {name: {"acc": count / sizes[name]} for name, count in zip(sizes, counts, strict=True)},
            "questions": sizes,
        }
        for at, counts in right.items()
    ]
    home = write_run(tmp_path / "run", [step(1)])
    (home / "unlearn.json").write_text(json.dumps({**RECORD, "evaluations": looks}), encoding="utf-8")
    plot = read_run(home, forget=["potions"]).plots[0]
    assert plot.title == "Accuracy by step"
    assert [(line.name, line.look, line.steps) for line in plot.curves] == [
        ("forget: wmdp, potions", "forget", [0, 5]),
        ("retain: mmlu_virology", "retain", [0, 5]),
    ]
    assert plot.curves[0].values == pytest.approx([100 * 236 / 340, 100 * 90 / 340])
    interval = binomtest(90, 340).proportion_ci(method="wilson")
    assert plot.curves[0].intervals[1] == pytest.approx([100 * end for end in interval])
    figure = figures.curves("c", plot)
    assert figure.columns[1:3] == ("forget: wmdp, potions", "forget: wmdp, potions: 95 % interval")
    assert figure.rows[1][0] == "5"
    assert "var(--forget)" in figure.drawing
    assert "var(--after)" not in figure.drawing
    broken = {**RECORD, "evaluations": [looks[0], {"step": 5, "scores": {}, "questions": {}}]}
    (home / "unlearn.json").write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(DatasetError, match="field `evaluations`"):
        read_run(home)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([step(1), step(2, forget_loss="much")], "row 2, field `forget_loss`: must be a number, not 'much'"),
        ([step(1, step=None)], "row 1, field `step`: must be a number"),
        ([step(1), [1]], "row 2: must be a JSON object"),
    ],
)
def test_a_faulty_run_is_named_with_row_and_field(tmp_path, rows, message):
    with pytest.raises(DatasetError, match=re.escape(message)):
        read_run(write_run(tmp_path / "run", rows))


def test_a_folder_without_a_run_says_what_is_wanted(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no unlearn\.json here"):
        read_run(tmp_path)


def test_the_command_writes_one_file(folder, tmp_path, capsys):
    run = write_run(tmp_path / "run", [step(1), step(2)])
    file = tmp_path / "new" / "report.html"
    code = cli.main(
        ["report", str(folder / "before"), str(folder / "after"), "--unlearn", str(run), "--output", str(file)]
    )
    assert code == 0, capsys.readouterr().err
    assert capsys.readouterr().err == f"report: {file}\n"
    html = file.read_text(encoding="utf-8")
    assert "Which of birds" not in html
    assert "Lower accuracy is not deleted knowledge" in html
    assert "potions" in html


def test_the_folder_of_a_run_stands_for_its_first_and_last_evaluation(folder, tmp_path, capsys):
    run = write_run(tmp_path / "run", [step(1), step(2)])
    looks = []
    for at, name in ((0, "before"), (1, "after"), (2, "after")):
        shutil.copytree(folder / name, run / "evaluations" / f"step-{at}")
        scores = {task: {"acc": read_results(folder / name)[task].metrics["acc"]} for task in SIZES}
        looks.append({"step": at, "scores": scores, "questions": SIZES, "results": f"evaluations/step-{at}"})
    (run / "unlearn.json").write_text(json.dumps({**RECORD, "evaluations": looks}), encoding="utf-8")
    assert cli.main(["report", str(run), "--output", str(tmp_path / "r.html")]) == 0, capsys.readouterr().err
    explicit = [str(run / "evaluations" / name) for name in ("step-0", "step-2")]
    assert cli.main(["report", *explicit, "--unlearn", str(run), "--output", str(tmp_path / "s.html")]) == 0
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == (tmp_path / "s.html").read_text(encoding="utf-8")
    assert "Accuracy by step" in (tmp_path / "r.html").read_text(encoding="utf-8")
    bare = write_run(tmp_path / "bare", [step(1)])
    assert cli.main(["report", str(bare), "--output", str(tmp_path / "t.html")]) == 1
    assert "kept no evaluations (--eval-tasks)" in capsys.readouterr().err


def test_the_folder_of_a_sweep_stands_for_the_model_before_and_every_point(folder, tmp_path):
    places = {"before": "before", "layer_id=10": "after", "layer_id=9": "after"}
    for name, results in places.items():
        shutil.copytree(folder / results, tmp_path / "sweep" / "evaluations" / name)
    record = tmp_path / "sweep" / "sweep.json"
    record.write_text('{"measured": {"forget": ["birds"], "retain": ["clouds"]}}', encoding="utf-8")
    found = find([tmp_path / "sweep"])
    assert found.forget == ("birds",)
    assert [one.path.relative_to(tmp_path / "sweep" / "evaluations").parts[0] for one in found.results] == [
        "before",
        "layer_id=9",
        "layer_id=10",
    ]
    record.write_text('{"identity": {}}', encoding="utf-8")
    with pytest.warns(WmdpFastWarning, match="is of an earlier version.* name them with --forget"):
        assert find([tmp_path / "sweep"]).forget == ()
    record.write_text("{}", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"sweep\.json: does not say which tasks the sweep was to make worse"):
        find([tmp_path / "sweep"])


def test_results_of_lm_eval_are_shown_as_ours_are(folder, report):
    """The same files without what only this package writes give the same rows."""

    def plain(name: str) -> SavedResults:
        return replace(read_results(folder / name), extra={})

    theirs = gather([plain("before"), plain("after")])
    assert theirs.rows == report.rows
    assert theirs.parts == report.parts
    assert all(run.made_by.startswith("lm-eval") for run in theirs.runs)
    assert "lm-eval" in page.render(theirs)


def test_compare_writes_the_same_report(folder, tmp_path):
    file = tmp_path / "compared.html"
    assert cli.main(["compare", str(folder / "before"), str(folder / "after"), "--html", str(file)]) == 0
    again = tmp_path / "report.html"
    assert cli.main(["report", str(folder / "before"), str(folder / "after"), "--output", str(again)]) == 0
    assert file.read_text(encoding="utf-8") == again.read_text(encoding="utf-8")


def test_python_takes_folders_and_results_that_were_never_saved(folder):
    paths = [folder / "before", folder / "after"]
    saved = [read_results(path) for path in paths]
    expected = wmdp_fast.report_html(*saved)
    assert wmdp_fast.report_html(*paths) == wmdp_fast.report_html(str(paths[0]), saved[1]) == expected
    fresh = wmdp_fast.evaluate(
        tiny_models.build("llama"), tokenizer=tiny_models.tokenizer(), tasks=[folder / "birds.jsonl"], progress=False
    )
    html = wmdp_fast.report_html(fresh)
    assert "What does it know?" in html
    with pytest.raises(ValueError, match=r"result.save\(FOLDER, log_samples=True\) first"):
        wmdp_fast.report_html(fresh, include_text=True)
    with pytest.raises(TypeError, match="what evaluate returned, or what read_results has read, not list"):
        wmdp_fast.report_html(saved)
    with pytest.raises(TypeError, match="not NoneType"):
        wmdp_fast.compare(fresh, None)


def test_a_folder_of_several_models_stands_for_all_of_them_once(folder, tmp_path):
    several = tmp_path / "several"
    shutil.copytree(folder / "after", several / "z")
    shutil.copytree(folder / "before", several / "a")
    for place, part in enumerate(("z", "a")):
        [file] = (several / part).rglob("results_*.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | {"date": 1000.0 + place}))
    found = find([several, several / "z"]).results
    assert [one.path.relative_to(several).parts[0] for one in found] == ["z", "a"]
    assert len(find([several / "z", several / "z"]).results) == 2


def test_compare_writes_a_report_for_each_of_several_results(folder, tmp_path):
    runs = [str(folder / name) for name in ("before", "after", "before")]
    assert cli.main(["compare", *runs, "--names", "a,b,c", "--html", str(tmp_path / "compared.html")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compared-2.html", "compared-3.html"]
    for number, run in enumerate(runs[1:], start=2):
        alone = tmp_path / "alone.html"
        assert cli.main(["compare", runs[0], run, "--html", str(alone)]) == 0
        assert (tmp_path / f"compared-{number}.html").read_text(encoding="utf-8") == alone.read_text(encoding="utf-8")


def test_the_command_fails_in_one_line(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path / "none"), "--output", str(tmp_path / "r.html")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none'}: ")
    assert not (tmp_path / "r.html").exists()
