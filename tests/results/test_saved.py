"""Results are read back as they were: those of the real lm-eval and our own, with every question's scores."""

from __future__ import annotations

import json
import math
import os
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support import saved_runs
from tests.support.damage import cut, delete, flip
from tests.support.evaluations import SIZES, eval_result
from wmdp_fast._rust import read_samples
from wmdp_fast.exceptions import DatasetError
from wmdp_fast.results.result import from_evaluation
from wmdp_fast.results.saved import SavedGroup, SavedTask, read_results

if TYPE_CHECKING:
    from pathlib import Path


# Damaged copies of a samples file.
DAMAGED = int(os.environ.get("WMDP_FAST_MUTATIONS", "500"))


@pytest.fixture(scope="module", params=["lm-eval", "wmdp-fast"])
def saved_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = saved_runs.lm_eval_run if request.param == "lm-eval" else saved_runs.our_run
    return run(tmp_path_factory.mktemp("run"), "org/toy", num_fewshot=2)


def lines_of(results: Path, task: str) -> list[dict[str, Any]]:
    time = results.stem.removeprefix("results_")
    text = (results.parent / f"samples_{task}_{time}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_both_packages_files_are_read_alike(saved_file: Path) -> None:
    saved = read_results(saved_file)
    raw = json.loads(saved_file.read_text(encoding="utf-8"))
    assert saved.path == saved_file
    assert saved.model_name == "org/toy"
    assert list(saved.tasks) == ["birds", "fish", "moss", "clouds"]
    assert next(iter(saved.groups)) == "nature"
    assert saved.settings["model_dtype"] == "torch.float32"
    assert bool(saved.extra) == saved.made_by.startswith("wmdp-fast")
    for name, task in saved.tasks.items():
        assert task.n == SIZES[name]
        assert task.num_fewshot == 2
        assert task.metrics["acc"] == raw["results"][name]["acc,none"]
        said = raw["results"][name]["acc_stderr,none"]
        assert task.stderr["acc"] == (None if said == "N/A" else said)
    fish = saved["fish"]
    assert isinstance(fish, SavedTask)
    assert fish.alias == "about fish"
    nature = saved["nature"]
    assert isinstance(nature, SavedGroup)
    assert nature.children == ("animals", "plants")
    assert nature.leaves == ("birds", "fish", "moss")
    assert nature.n == 15
    assert [(one.name, depth) for one, depth in saved.hierarchy()] == [
        *[("nature", 0), ("animals", 1), ("birds", 2), ("fish", 2), ("plants", 1), ("moss", 2), ("clouds", 0)]
    ]


TOKENS = [
    b'"',
    b",",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"null",
    b"-",
    b"1e999",
    b"NaN",
    b"9" * 30,
    rb"\ud800",
    b"\n",
    b"\xff",
]
TOKENS += [b"[" * 200, b'{"a":' * 200, b'"filtered_resps": []']


def insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice(TOKENS) + content[at:]


def test_damaged_samples_are_refused_or_read_rightly(saved_file: Path, tmp_path: Path) -> None:
    """Whatever is read is what Python's own parser reads in the damaged file."""
    rng = random.Random(0)
    [intact] = saved_file.parent.glob("samples_birds_*.jsonl")
    content, path = intact.read_bytes(), tmp_path / "samples_birds_x.jsonl"
    refused = 0
    for _ in range(DAMAGED):
        path.write_bytes(rng.choice([cut, flip, delete, insert])(content, rng))
        try:
            samples = read_samples(path)
        except DatasetError as error:
            refused += error.file == str(path)
            continue
        try:
            # Prompts are passed over, whatever is in them.
            text = path.read_bytes().decode(errors="replace")
            lines = [json.loads(line, strict=False) for line in text.split("\n") if line.strip()]
        except ValueError:
            continue
        lines.sort(key=lambda line: line["doc_id"])
        assert samples.doc_ids.tolist() == [line["doc_id"] for line in lines]
        pairs = [pair for line in lines for pair in line["filtered_resps"]]
        assert samples.loglikelihood.tolist() == [float(score) for score, _ in pairs]
        assert samples.is_greedy.tolist() == [str(greedy) == "True" for _, greedy in pairs]
        assert samples.doc_hashes == [line.get("doc_hash", "") for line in lines]
    assert DAMAGED / 4 < refused < DAMAGED


def test_samples_hold_what_the_lines_say(saved_file: Path) -> None:
    saved = read_results(saved_file)
    for name, task in saved.tasks.items():
        lines = lines_of(saved_file, name)
        samples = task.samples
        assert samples is not None
        assert len(samples) == len(lines)
        assert samples.doc_ids.tolist() == [line["doc_id"] for line in lines]
        assert samples.gold.tolist() == [int(line["target"]) for line in lines]
        pairs = [pair for line in lines for pair in line["filtered_resps"]]
        assert samples.loglikelihood.tolist() == [float(score) for score, _ in pairs]
        assert samples.is_greedy.tolist() == [greedy == "True" for _, greedy in pairs]
        for field in ("doc", "prompt", "target"):
            assert getattr(samples, f"{field}_hashes") == [line[f"{field}_hash"] for line in lines]
        for index, line in enumerate(lines):
            arguments = line["arguments"].values()
            assert samples.continuations(index) == [argument["arg_1"] for argument in arguments]
        for metric in task.metrics:
            correct = samples.correct(metric)
            assert correct is not None
            # The rule of lm-eval, recorded by lm-eval itself.
            assert correct.tolist() == [line[metric] == 1.0 for line in lines]
            recorded = samples.recorded(metric)
            assert recorded is not None
            assert recorded.tolist() == [line[metric] for line in lines]
        assert samples.recorded("acc_bytes") is None
        matrix = task.loglikelihood_matrix()
        assert matrix.shape == (len(lines), 4)
        assert matrix.ravel().tolist() == samples.loglikelihood.tolist()
        assert task.num_choices == 4


def test_an_evaluation_in_memory_is_as_if_saved_and_read(tmp_path: Path) -> None:
    result = eval_result(2)
    read, direct = read_results(result.save(tmp_path, log_samples=True)), from_evaluation(result)
    assert direct.groups == read.groups
    assert direct.settings == read.settings
    for name, task in read.tasks.items():
        ours, theirs = direct.tasks[name].samples, task.samples
        assert ours is not None
        assert theirs is not None
        for field in ("doc_ids", "choice_offsets", "loglikelihood", "is_greedy", "gold", "margin"):
            assert getattr(ours, field).tolist() == getattr(theirs, field).tolist()
        for metric in ("acc", "acc_norm", "acc_bytes"):
            assert ours.predicted(metric).tolist() == theirs.predicted(metric).tolist()
        assert ours.predicted("acc").tolist() == result.tasks[name].outcome.predicted.tolist()
        assert ours.predicted("acc_norm").tolist() == result.tasks[name].outcome.predicted_norm.tolist()
        for field in ("doc_hashes", "prompt_hashes", "target_hashes"):
            assert getattr(ours, field) == getattr(theirs, field)


def test_results_without_samples_have_none(tmp_path: Path) -> None:
    saved = read_results(eval_result().save(tmp_path))
    assert not saved.has_samples
    birds = saved["birds"]
    assert isinstance(birds, SavedTask)
    with pytest.raises(ValueError, match="birds was saved without samples"):
        birds.loglikelihood_matrix()


def test_of_several_results_in_a_folder_the_newest_is_read(tmp_path: Path) -> None:
    eval_result(0).save(tmp_path)
    newest = eval_result(2).save(tmp_path)
    for given in (tmp_path, newest.parent):
        saved = read_results(given)
        assert saved.path == newest
        assert saved.newest_of == 2


@pytest.mark.parametrize("there", ["2999-10-25T02-59-59.999999", "2999-10-25T02-59-59", "2999-13-77T02-59-59.5"])
def test_results_that_follow_others_are_newer_though_the_clock_was_put_back(tmp_path: Path, there: str) -> None:
    first = saved_runs.our_result("org/toy").save(tmp_path, log_samples=True)
    ahead = first.with_name(f"results_{there}.json")
    first.rename(ahead)
    second = saved_runs.our_result("org/toy").save(tmp_path, log_samples=True)
    third = saved_runs.our_result("org/toy").save(tmp_path, log_samples=True)
    if "-13-" in there:
        # No clock has said so.
        assert second.stem < third.stem < ahead.stem
        return
    assert ahead.stem < second.stem < third.stem
    found = read_results(tmp_path)
    assert (found.path, found.has_samples) == (third, True)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("./toy", "toy"), (".//./a/toy", "a__toy"), ("toy", "toy"), ("../toy", "..__toy"), ("org/toy", "org__toy")],
)
def test_results_of_a_folder_beside_are_not_hidden(tmp_path: Path, name: str, folder: str) -> None:
    result = saved_runs.our_result(name)
    assert result.save(tmp_path / "out").parent == tmp_path / "out" / folder
    assert result.to_json()["model_name"] == name


def test_a_folder_with_several_models_is_refused_and_lists_them(tmp_path: Path) -> None:
    for model in ("org/one", "org/two"):
        eval_result(model_name=model).save(tmp_path)
    with pytest.raises(DatasetError, match=r"results of 2 models; name one of: .*org__one, .*org__two"):
        read_results(tmp_path)


def test_results_saved_under_a_json_name_are_found(tmp_path: Path) -> None:
    written = eval_result().save(tmp_path / "mine.json", log_samples=True)
    assert read_results(tmp_path).path == written
    assert read_results(written).has_samples


def test_what_is_not_there_or_no_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_results(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="no results here"):
        read_results(tmp_path)
    for text, message in (
        ("{", "no JSON"),
        ("[]", "holds no `results`"),
        ('{"results": {"a": 1}}', "field `results.a`"),
        ('{"results": {"a": {"acc,none": "high"}}}', "field `results.a.acc,none`: must be a number, not 'high'"),
    ):
        file = tmp_path / "results_2026-11-24T15-00-00.json"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(DatasetError, match=message):
            read_results(tmp_path)


def line_of(**changes: Any) -> dict[str, Any]:
    line = {
        "doc_id": 0,
        "doc": {"question": "?"},
        "target": "1",
        "arguments": {f"gen_args_{i}": {"arg_0": "?", "arg_1": f" {letter}"} for i, letter in enumerate("AB")},
        "filtered_resps": [["-1.0", "False"], ["-0.5", "True"]],
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": "d",
        "prompt_hash": "p",
        "target_hash": "t",
        "acc": 1.0,
    }
    return {key: value for key, value in (line | changes).items() if value is not ...}


def write(folder: Path, *lines: dict[str, Any]) -> Path:
    path = folder / "samples.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_id": ...}, "row 2, field `doc_id`: is missing"),
        ({"doc_id": "x"}, "row 2, field `doc_id`: invalid type"),
        ({"doc_id": 0}, "row 2, field `doc_id`: question 0 occurs twice, first in row 1"),
        ({"filtered_resps": ["forty-two"]}, 'row 2, field `filtered_resps`: "forty-two" is not a log-likelihood'),
        ({"filtered_resps": [["-1.0", "True"]]}, "row 2, field `filtered_resps`: has 1 responses, but there are 2"),
        ({"arguments": {"gen_args_1": {"arg_1": " A"}}}, "row 2, field `arguments`: expected `gen_args_0`"),
        ({"target": "7", "acc": ...}, "row 2, field `target`: names none of the 2 choices"),
        ({"acc": "high"}, "row 2, field `acc`: invalid type"),
    ],
)
def test_a_faulty_line_names_row_and_field(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        read_samples(write(tmp_path, line_of(), line_of(**({"doc_id": 1} | changes))))


def test_text_that_is_no_json_names_its_row(tmp_path: Path) -> None:
    path = write(tmp_path, line_of())
    with path.open("a", encoding="utf-8") as file:
        file.write('\n{"doc_id": 1, "doc"')
    with pytest.raises(DatasetError, match=r"samples\.jsonl, row 3: EOF"):
        read_samples(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(DatasetError, match="the file is empty"):
        read_samples(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_samples(tmp_path / "nowhere.jsonl")


def test_constants_that_json_lacks_are_read_past(tmp_path: Path) -> None:
    line = line_of(doc={"text": 'a "NaN" \\', "value": math.nan}, likelihood=-math.inf, target=1)
    line["filtered_resps"][0][0] = "-inf"
    samples = read_samples(write(tmp_path, line))
    assert samples.loglikelihood.tolist() == [-math.inf, -0.5]
    assert samples.gold.tolist() == [1]


def test_files_of_older_lm_evals_are_read(tmp_path: Path) -> None:
    older = line_of(
        arguments=[["?", " A"], ["?", " B"]],
        filtered_resps=[[-1.0, False], [-0.5, True]],
        target="B",
        **dict.fromkeys(("doc_hash", "prompt_hash", "target_hash", "filter", "metrics"), ...),
    )
    samples = read_samples(write(tmp_path, older))
    assert samples.continuations(0) == [" A", " B"]
    assert samples.gold.tolist() == [1]
    assert samples.doc_hashes == [""]


def test_lines_in_any_order_and_of_several_filters(tmp_path: Path) -> None:
    lines = [line_of(doc_id=5), line_of(doc_id=5, filter="other"), line_of(doc_id=2, acc=0.0)]
    path = write(tmp_path, *lines, line_of(doc_id=2, filter="other"))
    samples = read_samples(path)
    assert samples.doc_ids.tolist() == [2, 5]
    recorded = samples.recorded("acc")
    assert recorded is not None
    assert recorded.tolist() == [0.0, 1.0]


def test_unconditional_choices_of_mutual_information_are_left_out(tmp_path: Path) -> None:
    doubled = line_of(metrics=["acc", "acc_mutual_info"])
    doubled["arguments"] |= {f"gen_args_{i + 2}": {"arg_0": "", "arg_1": f" {c}"} for i, c in enumerate("AB")}
    doubled["filtered_resps"] = doubled["filtered_resps"] + [["-0.1", "False"], ["-0.1", "False"]]
    samples = read_samples(write(tmp_path, doubled))
    assert samples.loglikelihood.tolist() == [-1.0, -0.5]
    assert samples.predicted("acc").tolist() == [1]


def test_a_target_that_names_several_choices_leaves_the_recorded_metric(tmp_path: Path) -> None:
    samples = read_samples(write(tmp_path, line_of(target="[0, 1]"), line_of(doc_id=1, acc=0.0)))
    assert samples.gold.tolist() == [-1, 1]
    correct = samples.correct("acc")
    assert correct is not None
    assert correct.tolist() == [True, True]
    assert samples.correct("acc_norm") is None


def test_choices_are_measured_without_their_delimiter(tmp_path: Path) -> None:
    line = line_of(filtered_resps=[["-2.0", "False"], ["-2.7", "False"]])
    line["arguments"] = {"gen_args_0": {"arg_0": "?", "arg_1": " éé"}, "gen_args_1": {"arg_0": "?", "arg_1": " abc"}}
    samples = read_samples(write(tmp_path, line))
    assert samples.delimiter == " "
    picked = {metric: samples.predicted(metric).tolist() for metric in ("acc", "acc_norm", "acc_bytes")}
    assert picked == {"acc": [0], "acc_norm": [1], "acc_bytes": [0]}
    # With the space, three characters against four: -0.67 against -0.675.
    assert read_samples(write(tmp_path, line), delimiter="").predicted("acc_norm").tolist() == [0]
    with pytest.raises(ValueError, match="acc, acc_norm, acc_bytes"):
        samples.predicted("f1")
    with pytest.raises(IndexError):
        samples.continuations(1)


def test_ragged_choices_make_a_padded_matrix(tmp_path: Path) -> None:
    three = line_of(doc_id=1, filtered_resps=[["-1.0", "False"]] * 3)
    three["arguments"] = {f"gen_args_{i}": {"arg_0": "?", "arg_1": f" {c}"} for i, c in enumerate("ABC")}
    samples = read_samples(write(tmp_path, line_of(), three))
    task = SavedTask(name="t", alias="t", n=2, metrics={}, stderr={}, samples=samples)
    assert task.num_choices is None
    matrix = task.loglikelihood_matrix()
    assert matrix.shape == (2, 3)
    assert np.isnan(matrix).tolist() == [[False, False, True], [False] * 3]
