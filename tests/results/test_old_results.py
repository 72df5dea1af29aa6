"""Results in the layout of lm-eval 0.4.0 to 0.4.2, and samples as lists in JSON files, give the numbers of today's.

What the real lm-eval saved is written again as those versions did (`__main__.py` of each): `DIR/results.json`, or the
name that was asked for, and beside it for each task `<model_args>_<task>.jsonl` with one indented list.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.support import saved_runs
from wmdp_fast import cli
from wmdp_fast._rust import read_samples
from wmdp_fast.analysis.comparison import compare
from wmdp_fast.analysis.rescoring import rescore
from wmdp_fast.exceptions import DatasetError
from wmdp_fast.results.saved import read_results

if TYPE_CHECKING:
    from pathlib import Path

TASKS = ("birds", "fish", "moss", "clouds")
MODEL_ARGS = "pretrained=org/toy,dtype=float32"
# What today's lm-eval adds to a sample.
_NEWER = ("filter", "metrics", "doc_hash", "prompt_hash", "target_hash")


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_runs.lm_eval_run(tmp_path_factory.mktemp("today"), "org/toy", num_fewshot=2)


def older(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample as 0.4.0 to 0.4.2 had it: arguments in lists, numbers as numbers, no hashes."""
    pairs = [[float(score), greedy == "True"] for score, greedy in sample["filtered_resps"]]
    return {key: value for key, value in sample.items() if key not in _NEWER} | {
        "target": int(sample["target"]),
        "arguments": [[one["arg_0"], one["arg_1"]] for one in sample["arguments"].values()],
        "resps": [[pair] for pair in pairs],
        "filtered_resps": pairs,
    }


def samples_of(today: Path, task: str) -> list[dict[str, Any]]:
    time = today.stem.removeprefix("results_")
    lines = (today.parent / f"samples_{task}_{time}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def save_as_before(today: Path, folder: Path, *, name: str = "results.json", ascii_only: bool = False) -> Path:
    raw = json.loads(today.read_text(encoding="utf-8"))
    results = {
        task: {key: value for key, value in entry.items() if key not in ("name", "sample_len", "sample_count")}
        for task, entry in raw["results"].items()
    }
    for task in ("birds", "fish", "moss"):
        results[task]["alias"] = " - " + results[task]["alias"]
    kept = ("groups", "group_subtasks", "configs", "versions", "n-shot")
    kept_config = ("model", "batch_size", "batch_sizes", "device", "use_cache", "limit", "bootstrap_iters")
    config = {key: raw["config"].get(key) for key in kept_config} | {"model_args": MODEL_ARGS, "gen_kwargs": None}
    old = {"results": results, **{key: raw[key] for key in kept}, "config": config, "git_hash": "bd6e1b1"}
    folder.mkdir(parents=True)
    (folder / name).write_text(json.dumps(old, indent=2, ensure_ascii=ascii_only), encoding="utf-8")
    for task in TASKS:
        stem = re.sub("/|=", "__", MODEL_ARGS)
        text = json.dumps([older(one) for one in samples_of(today, task)], indent=2, ensure_ascii=ascii_only)
        (folder / f"{stem}_{task}.jsonl").write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("version", ["0.4.0", "0.4.2", "0.4.2 to a name"])
def test_results_of_before_are_those_of_today(version: str, today: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "old"
    name = "mine.json" if "name" in version else "results.json"
    file = save_as_before(today, folder, name=name, ascii_only=version == "0.4.0")
    new = read_results(today)
    for given in [file] if "name" in version else [file, folder, folder.parent]:
        old = read_results(given)
        assert old.path == file
        assert old.model_name == "org/toy"
        assert old.made_by == "lm-eval (unknown version)"
        assert [(one.name, one.alias, depth) for one, depth in old.hierarchy()] == [
            (one.name, one.alias, depth) for one, depth in new.hierarchy()
        ]
        for task in TASKS:
            assert old.tasks[task].metrics == new.tasks[task].metrics
            assert old.tasks[task].stderr == new.tasks[task].stderr
            assert old.tasks[task].n == new.tasks[task].n
            assert old.tasks[task].num_fewshot == 2
            mine, theirs = old.tasks[task].samples, new.tasks[task].samples
            assert mine is not None
            assert theirs is not None
            assert mine.loglikelihood.tolist() == theirs.loglikelihood.tolist()
            assert mine.is_greedy.tolist() == theirs.is_greedy.tolist()
            assert mine.gold.tolist() == theirs.gold.tolist()
            assert mine.predicted("acc_norm").tolist() == theirs.predicted("acc_norm").tolist()
            assert mine.continuations(0) == theirs.continuations(0)
    assert rescore(file).mismatches == ()
    assert list(rescore(file).tasks) == list(TASKS)


def test_every_command_reads_them(today: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save_as_before(today, tmp_path / "old")
    assert cli.main(["show", str(tmp_path / "old"), "--ascii"]) == 0
    assert "org/toy" in capsys.readouterr().out
    assert cli.main(["rescore", str(tmp_path / "old")]) == 0
    assert "all as in results.json" in capsys.readouterr().out
    [samples] = (tmp_path / "old").glob("*_birds.jsonl")
    assert cli.main(["rescore", str(samples)]) == 0
    assert "all as in results.json" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert cli.main(["report", str(tmp_path / "old"), "--include-text", "--output", str(page)]) == 0
    assert "What of birds 3?" in page.read_text(encoding="utf-8")
    [contrast] = compare(file, today).contrasts
    assert all("no hashes (lm-eval before 0.4.3)" in reason for reason in contrast.unpaired)


def test_newer_results_in_the_same_folder_go_first(today: Path, tmp_path: Path) -> None:
    save_as_before(today, tmp_path / "old")
    newer = tmp_path / "old" / today.name
    newer.write_bytes(today.read_bytes())
    assert read_results(tmp_path / "old").path == newer


def test_samples_in_json_files_are_samples(today: Path, tmp_path: Path) -> None:
    """As lm-eval wrote them for a while between 0.4.2 and 0.4.3."""
    results = tmp_path / today.name
    results.write_bytes(today.read_bytes())
    time = today.stem.removeprefix("results_")
    for task in TASKS:
        text = json.dumps([older(one) for one in samples_of(today, task)], indent=2, ensure_ascii=False)
        (tmp_path / f"samples_{task}_{time}.json").write_text(text, encoding="utf-8")
    saved = read_results(tmp_path)
    assert saved.path == results
    assert all(task.samples is not None for task in saved.tasks.values())
    assert rescore(tmp_path / f"samples_birds_{time}.json")["birds"].n == 9
    assert rescore(tmp_path).mismatches == ()
    with pytest.raises(DatasetError, match="is a samples file; give the results file"):
        read_results(tmp_path / f"samples_birds_{time}.json")
    results.unlink()
    assert list(rescore(tmp_path).tasks) == sorted(TASKS)


def test_a_list_of_samples_is_a_results_file_of_nobody(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(DatasetError, match="a list is what samples files of lm-eval before"):
        read_results(file)


def doubled(sample: dict[str, Any]) -> dict[str, Any]:
    return sample | {
        "arguments": sample["arguments"] + [["", choice] for _, choice in sample["arguments"]],
        "filtered_resps": sample["filtered_resps"] + [[-0.1, False]] * len(sample["filtered_resps"]),
        "acc_mutual_info": 0.0,
    }


def test_unconditional_choices_are_left_out_where_no_list_of_metrics_tells_of_them(today: Path, tmp_path: Path) -> None:
    samples = [older(one) for one in samples_of(today, "birds")]
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps([doubled(one) for one in samples]), encoding="utf-8")
    assert np.diff(read_samples(file).choice_offsets).tolist() == [4] * 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "row 1: the list of samples has no end"),
        ('[{"doc_id": 0, "target": "]"}', "row 1: the list of samples has no end"),
        ("[] x", "row 1: stands behind the end"),
        ("[]", "the file is empty"),
        ('[\n  {"doc_id": 0}\n]', "row 1, field `target`: is missing"),
        ("[1]", "row 1: "),
        ("[,]", "EOF while parsing a value"),
    ],
)
def test_a_damaged_list_names_its_row(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=re.escape(message)):
        read_samples(file)


def test_brackets_and_quotes_in_texts_do_not_end_a_sample(today: Path, tmp_path: Path) -> None:
    samples = [older(one) for one in samples_of(today, "birds")]
    for one in samples:
        one["doc"] = {"note": 'a "]" and \\", [{'}
    lists, lines = tmp_path / "list.jsonl", tmp_path / "lines.jsonl"
    lists.write_text(json.dumps(samples, indent=2), encoding="utf-8")
    lines.write_text("".join(json.dumps(one) + "\n" for one in samples), encoding="utf-8")
    first, second = read_samples(lists), read_samples(lines)
    assert first.loglikelihood.tolist() == second.loglikelihood.tolist()
    assert first.doc_ids.tolist() == second.doc_ids.tolist()
