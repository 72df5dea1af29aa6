"""Result files equal those lm-eval writes for the same scores, and are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support import saved_runs
from tests.support.evaluations import (
    NEAR_TIE,
    SIZES,
    eval_result,
    score,
    task_of,
)
from wmdp_fast._rust import PromptTemplate, QuestionSet
from wmdp_fast.results.lm_eval_files import config_section
from wmdp_fast.results.paths import sanitize_model_name
from wmdp_fast.results.result import TaskResult
from wmdp_fast.runtime import environment


@pytest.fixture(scope="module", params=[(0, None), (2, None), (2, 3)], ids=["0-shot", "2-shot", "limit"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The files that lm-eval and this package write for the same model, questions and settings."""
    num_fewshot, limit = request.param
    folder = tmp_path_factory.mktemp("lm-eval")
    theirs = saved_runs.lm_eval_run(folder, "org/toy", num_fewshot=num_fewshot, limit=limit, says=score)
    ours = eval_result(num_fewshot, limit).save(folder / "ours", log_samples=True)
    return SimpleNamespace(
        theirs=theirs,
        ours=ours,
        their_results=json.loads(theirs.read_text(encoding="utf-8")),
        our_results=json.loads(ours.read_text(encoding="utf-8")),
    )


def without_files(results: dict[str, Any]) -> dict[str, Any]:
    """Results without what only one side can have: where lm-eval's data lies, and our own key."""
    configs = {
        name: {key: value for key, value in config.items() if key != "dataset_kwargs"}
        | {"metadata": {key: value for key, value in config["metadata"].items() if key != "config_source"}}
        for name, config in results["configs"].items()
    }
    return {key: configs if key == "configs" else value for key, value in results.items() if key != "wmdp_fast"}


def key_paths(value: Any, path: str = "") -> list[str]:
    """Every key with where it stands, in order."""
    if not isinstance(value, dict):
        return []
    return [found for key, inner in value.items() for found in (f"{path}/{key}", *key_paths(inner, f"{path}/{key}"))]


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal; floats to the last few bits, for newer Pythons sum them in another way."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-12)
    else:
        assert ours == theirs


def test_results_have_lm_evals_keys_in_lm_evals_order(both: SimpleNamespace) -> None:
    assert list(both.our_results)[-1] == "wmdp_fast"
    assert key_paths(without_files(both.our_results)) == key_paths(without_files(both.their_results))


def test_results_have_lm_evals_values(both: SimpleNamespace) -> None:
    ours, theirs = without_files(both.our_results), without_files(both.their_results)
    # What differs by nature: how each run was made, when and on what.
    for key in ("config", "date", "pretty_env_info", "model_source", "total_evaluation_time_seconds"):
        del ours[key], theirs[key]
    assert_same(ours, theirs)


def test_lm_evals_table_reads_our_results(both: SimpleNamespace) -> None:
    from lm_eval.utils import make_table

    for column in ("results", "groups"):
        assert make_table(both.our_results, column) == make_table(both.their_results, column)


def test_samples_are_lm_evals_byte_for_byte_with_one_key_more(both: SimpleNamespace) -> None:
    def samples(results: Path) -> dict[str, Path]:
        time = results.stem.removeprefix("results_")
        files = results.parent.glob("samples_*.jsonl")
        return {file.name.removeprefix("samples_").removesuffix(f"_{time}.jsonl"): file for file in files}

    theirs, ours = samples(both.theirs), samples(both.ours)
    assert sorted(ours) == sorted(theirs) == sorted(SIZES)
    for task, file in ours.items():
        text = re.sub(r', "wmdp_fast": \{[^{}]*\}\}$', "}", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert text == theirs[task].read_text(encoding="utf-8")


def test_files_are_named_as_lm_eval_names_them(both: SimpleNamespace) -> None:
    assert both.ours.parent.name == both.theirs.parent.name == "org__toy"
    pattern = r"results_\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?\.json"
    assert re.fullmatch(pattern, both.ours.name)
    assert re.fullmatch(pattern, both.theirs.name)


def test_our_own_key_says_what_lm_eval_does_not() -> None:
    result = eval_result(details={"engine": "fastokens"})
    ours = result.to_json()["wmdp_fast"]
    fish = result["fish"]
    assert isinstance(fish, TaskResult)
    assert ours["tasks"]["fish"] == {
        "near_ties": fish.num_near_ties,
        "file": "fish.parquet",
        "dataset_revision": "0" * 40,
        "content_hash": fish.questions.content_hash,
    }
    assert ours["seconds"] == {"forward": 1.5}
    assert ours["tokens"] == 1234
    assert ours["versions"]["numpy"] == np.__version__
    assert ours["hardware"]["cores"] >= 1
    assert ours["engine"] == "fastokens"


def test_metrics_are_read_by_name() -> None:
    result = eval_result()
    birds, nature = result["birds"], result["nature"]
    assert isinstance(birds, TaskResult)
    assert birds["acc"] == birds["acc,none"] == birds.outcome.acc
    assert birds["acc_norm_stderr"] == birds["acc_norm_stderr,none"] == birds.outcome.acc_norm_stderr
    assert nature["acc"] == pytest.approx(
        sum(result[name]["acc"] * SIZES[name] for name in ("birds", "fish", "moss")) / 15
    )
    assert nature["acc_stderr"] is None
    assert list(result) == ["birds", "fish", "moss", "clouds", "nature", "animals", "plants"]
    assert "fish" in result
    assert "dogs" not in result


def test_unknown_names_are_answered_with_known_ones() -> None:
    result = eval_result()
    with pytest.raises(KeyError, match="did you mean fish"):
        result["fihs"]
    with pytest.raises(KeyError, match="birds has no metric 'f1'; it has acc, acc_norm"):
        result["birds"]["f1"]


def test_table_shows_groups_with_their_tasks() -> None:
    result = eval_result(num_fewshot=2)
    lines = str(result).splitlines()

    def numbers(name: str, metric: str = "acc") -> list[str]:
        stderr = result[name][f"{metric}_stderr"]
        return [metric, f"{result[name][metric]:.4f}", "±", "N/A" if stderr is None else f"{stderr:.4f}"]

    assert lines[0].split() == ["task", "n", "shots", "metric", "value", "stderr"]
    assert set(lines[1]) == {"-"}
    assert [re.split(r" {2,}", line.strip(), maxsplit=1)[0] for line in lines[2:10] if "acc_norm" not in line] == [
        *("nature", "living animals", "birds", "about fish", "plants", "moss", "clouds")
    ]
    assert [len(line) - len(line.lstrip()) for line in lines[2:5]] == [0, 2, 4]
    assert lines[2].split() == ["nature", "15", "2", *numbers("nature")]
    assert lines[4].split() == ["birds", "9", "2", *numbers("birds")]
    assert lines[5].split() == numbers("birds", "acc_norm")
    assert lines[9].split() == ["clouds", "4", "2", *numbers("clouds")]
    assert len({line.index(" acc") for line in lines if " acc" in line}) == 1
    near_ties = sum(task.num_near_ties for task in result.tasks.values())
    assert near_ties > 0
    assert lines[-1].startswith(f"{near_ties} of 19 predictions are near-ties")


def test_table_without_near_ties_ends_with_the_numbers() -> None:
    result = eval_result()
    task = result.tasks["fish"]
    clear = replace(task, outcome=_without_ties(task))
    table = replace(result, tasks={"fish": clear}, groups={}).table()
    assert "near-ties" not in table
    assert len(table.splitlines()) == 3


def _without_ties(task: TaskResult) -> Any:
    from wmdp_fast._rust import aggregate

    size = len(task.outcome.loglikelihood)
    return aggregate(task.prompts, -np.arange(size, dtype=np.float64), np.zeros(size, dtype=bool), near_tie=NEAR_TIE)


def test_an_output_ending_in_json_names_the_results_file(tmp_path: Path) -> None:
    results = eval_result().save(tmp_path / "new" / "run.json", log_samples=True)
    assert results.parent == tmp_path / "new"
    assert re.fullmatch(r"run_\d{4}-.*\.json", results.name)
    assert len(list((tmp_path / "new").glob("samples_*.jsonl"))) == 4


def test_without_samples_there_is_one_file_and_no_hashes(tmp_path: Path) -> None:
    results = eval_result(model_name="C:\\models/toy").save(tmp_path)
    assert [file.name for file in results.parent.iterdir()] == [results.name]
    assert results.parent == tmp_path / "C__models__toy"
    assert json.loads(results.read_text(encoding="utf-8"))["task_hashes"] == {}


def test_settings_that_json_has_no_word_for_are_written_as_text(tmp_path: Path) -> None:
    # A path need not be UTF-8: Python shows such bytes as lone surrogates.
    config = config_section("hf", {"pretrained": "toy\udcff", "dtype": np.dtype("float32")})
    results = eval_result(config=config).save(tmp_path)
    written = json.loads(results.read_text(encoding="utf-8"))["config"]["model_args"]
    assert written == {"pretrained": "toy\udcff", "dtype": "float32"}


def test_a_disk_that_fills_up_leaves_nothing_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        eval_result().save(tmp_path, log_samples=True)
    assert re.search(r"org__toy/results_.*\.json", str(caught.value))
    assert list((tmp_path / "org__toy").iterdir()) == []


def test_samples_that_do_not_fit_leave_nothing_and_are_named(tmp_path: Path) -> None:
    """The limit on file size stands in for a full disk; it would hit pytest's own files, hence the process."""
    script = f"""
        import resource
        import sys
        from pathlib import Path
        from tests.support.evaluations import eval_result
        result = eval_result()
        sys.dont_write_bytecode = True  # or modules are left cut off
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        try:
            result.save({str(tmp_path)!r}, log_samples=True)
        except OSError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert re.search(r"no space to write \S+/samples_birds_\S+\.jsonl \(File too large, .* GB free\): ", done.stdout)
    assert list((tmp_path / "org__toy").iterdir()) == []


@pytest.mark.parametrize("name", ["org/model", 'a"<>:b', "C:\\x?*[y]", "plain-name.1", "//"])
def test_model_names_become_folders_as_in_lm_eval(name: str) -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="lm-eval is not installed (extra `lm-eval`)")
    assert sanitize_model_name(name) == utils.sanitize_model_name(name)


def test_outside_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_commit() is None


def test_environment_is_summed_up_in_words() -> None:
    versions, hardware = environment.versions(), environment.hardware()
    text = environment.summary(versions, hardware)
    assert f"wmdp_fast {versions['wmdp_fast']}, python " in text
    assert f"{hardware['cores']} cores" in text
    assert "GPU: " in text


@pytest.mark.parametrize("sizes", [(3,), (2,), (4,), (5,), (3, 4, 26)])
def test_the_recorded_configuration_asks_what_was_asked(sizes: tuple[int, ...], tmp_path: Path) -> None:
    """lm-eval, given a configuration out of a results file, builds the very prompts and choices."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `lm-eval`)")
    from lm_eval.api.task import ConfigurableTask

    rows = [
        {
            "question": f" What of {i}? ",
            "choices": [f"choice {j} of {i}" for j in range(sizes[i % len(sizes)])],
            "answer": i % min(sizes),
        }
        for i in range(7)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    questions = QuestionSet.from_rows(rows, file=str(file))
    prompts = PromptTemplate("mmlu", choices="letters", description="About it.\n\n").render(questions, questions, 0)
    number = sum(len(row["choices"]) for row in rows)
    task = replace(task_of("clouds"), fewshot_split=None, description="About it.\n\n")
    result = TaskResult.from_scores(
        task,
        questions,
        prompts,
        np.arange(float(number)),
        np.zeros(number, dtype=bool),
        near_tie=NEAR_TIE,
        num_available=7,
    )
    config = replace(eval_result(), tasks={"clouds": result}, groups={}).to_json()["configs"]["clouds"]
    if len(sizes) == 1:
        assert config["doc_to_choice"] == list("ABCDE"[: sizes[0]])
    for key in ("dataset_name", "fewshot_config", "unsafe_code"):
        config.pop(key, None)
    theirs = ConfigurableTask(
        config=config
        | {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path / "cache")},
        }
    )
    theirs.build_all_requests()
    asked = [request.args for request in theirs.instances]
    expected = [
        (prompts.context(i), prompts.continuation(i, j)) for i in range(7) for j in range(len(rows[i]["choices"]))
    ]
    assert asked == expected
    assert [theirs.doc_to_target(doc) for doc in theirs.eval_docs] == [row["answer"] for row in rows]
