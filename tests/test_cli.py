"""The command line: exit codes, where output goes, and that errors are one line."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import subprocess
import sys
import warnings

import pytest

import wmdp_fast
from tests import tiny_models
from wmdp_fast import _rust, cli
from wmdp_fast.cli import doctor
from wmdp_fast.cli import eval as cli_eval
from wmdp_fast.exceptions import DatasetError, WmdpFastWarning
from wmdp_fast.tasks import GROUPS, TAGS, TASKS


def raising(error: BaseException):
    def run(_arguments):
        raise error

    return run


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"wmdp-fast {wmdp_fast.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["no-such-command"], ["doctor", "--no-such-option"]])
def test_wrong_usage_exits_with_2_and_says_how_on_stderr(argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: wmdp-fast" in captured.err


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    assert f"usage: wmdp-fast {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DatasetError("q.jsonl", "is empty", 3, "choices"), "error: q.jsonl, row 3, field `choices`: is empty\n"),
        (
            FileNotFoundError(2, "No such file or directory", "q.csv"),
            "error: [Errno 2] No such file or directory: 'q.csv'\n",
        ),
        (ValueError("limit must be positive"), "error: limit must be positive\n"),
    ],
)
def test_a_failure_is_one_line_on_stderr_and_exit_code_1(error, line, monkeypatch, capsys):
    monkeypatch.delenv("WMDP_FAST_DEBUG", raising=False)
    monkeypatch.setattr(doctor, "run", raising(error))
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr() == ("", line)


def test_the_debug_variable_shows_the_traceback_instead(monkeypatch):
    monkeypatch.setenv("WMDP_FAST_DEBUG", "1")
    monkeypatch.setattr(doctor, "run", raising(DatasetError("q.jsonl", "is empty")))
    with pytest.raises(DatasetError):
        cli.main(["doctor"])


def test_ctrl_c_exits_with_130(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "run", raising(KeyboardInterrupt()))
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_error_nobody_foresaw_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(doctor, "run", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError):
        cli.main(["doctor"])


def test_doctor_reports_versions_devices_and_the_kind_of_build(capsys):
    code = cli.main(["doctor", "--json"])
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["wmdp-fast"]["value"] == wmdp_fast.__version__
    assert findings["device"]["value"].startswith(("cpu", "cuda"))
    assert findings["extension"]["value"].startswith("release" if _rust.RELEASE_BUILD else "debug")
    assert code == (1 if any(finding["problem"] for finding in findings.values()) else 0)


def test_doctor_names_a_wrong_thread_count_and_fails(monkeypatch, capsys):
    monkeypatch.setenv("WMDP_FAST_NUM_THREADS", "many")
    assert cli.main(["doctor"]) == 1
    assert "! WMDP_FAST_NUM_THREADS must be a positive number" in capsys.readouterr().out


def test_python_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "wmdp_fast", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"wmdp-fast {wmdp_fast.__version__}\n"


def test_a_reader_of_stdout_that_leaves_causes_no_traceback():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "wmdp_fast", "doctor", "--json"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_tasks_lists_groups_and_tasks_and_folds_the_large_ones(capsys):
    assert cli.main(["tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  wmdp_bio  cais/wmdp (wmdp-bio)" in lines
    assert "  mmlu_stem  19 tasks" in lines
    assert cli.main(["tasks", "--all"]) == 0
    assert "    mmlu_virology  cais/mmlu (virology)" in capsys.readouterr().out.splitlines()


def test_tasks_as_json_names_everything_that_can_be_asked_for(capsys):
    assert cli.main(["tasks", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed["tasks"]) == set(TASKS)
    assert set(listed["groups"]) == set(GROUPS)
    assert set(listed["tags"]) == set(TAGS)
    assert listed["groups"]["wmdp"] == ["wmdp_bio", "wmdp_chem", "wmdp_cyber"]


def test_our_warnings_are_one_line_and_others_keep_their_place(monkeypatch, capsys):
    def run(_arguments):
        warnings.warn("5 examples were ignored", WmdpFastWarning, stacklevel=1)
        warnings.warn("of someone else", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(doctor, "run", run)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.main(["doctor"]) == 0
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "warning: 5 examples were ignored"
    assert second.endswith("UserWarning: of someone else")


@pytest.fixture
def evaluate_calls(monkeypatch):
    """Calls of `evaluate`, which does nothing else."""
    calls = []

    class Result:
        saved_to = None

        def table(self):
            return "the table"

        def to_json(self):
            return {"results": {}}

    def evaluate(model, **options):
        calls.append((model, options))
        return Result()

    monkeypatch.setattr(wmdp_fast, "evaluate", evaluate)
    return calls


def test_eval_has_an_option_for_every_parameter_of_evaluate():
    parser = argparse.ArgumentParser()
    cli_eval.add_arguments(parser)
    options = {action.dest for action in parser._actions}
    parameters = set(inspect.signature(wmdp_fast.evaluate).parameters)
    # What describes a server is a `Server` in Python; `progress` is the opposite of `--quiet`.
    server = {*cli_eval._OF_SERVER, "api_key_env"}
    assert options - {"help", "json", "quiet"} - server == parameters - {"progress"}
    described = {field.name for field in dataclasses.fields(wmdp_fast.Server)}
    assert set(cli_eval._OF_SERVER.values()) == described - {"model", "protocol", "api_key"}


def test_eval_leaves_the_defaults_to_evaluate(evaluate_calls, capsys):
    assert cli.main(["eval", "M", "--tasks", "wmdp"]) == 0
    assert evaluate_calls == [("M", {"tasks": ["wmdp"], "progress": True})]
    assert capsys.readouterr().out == "the table\n"


def test_eval_passes_what_is_given(evaluate_calls, capsys):
    given = "--tasks wmdp,mmlu --tasks q.jsonl --num-fewshot 5 --limit 0.5 --token-budget 4096 --apply-chat-template"
    assert cli.main(["eval", "M", *given.split(), "--no-fewshot-as-multiturn", "--trust-remote-code", "--quiet"]) == 0
    expected = {
        "tasks": ["wmdp,mmlu", "q.jsonl"],
        "num_fewshot": 5,
        "limit": 0.5,
        "token_budget": 4096,
        "apply_chat_template": True,
        "fewshot_as_multiturn": False,
        "trust_remote_code": True,
        "progress": False,
    }
    assert evaluate_calls == [("M", expected)]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--limit", "many"], "'many' is not a number"),
        (["--num-fewshot", "-1"], "'-1' is not a whole number of at least 0"),
        (["--token-budget", "0"], "'0' is not a whole number of at least 1"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--log-samples"], "--log-samples needs --output"),
        (["--resume"], "--resume needs --output"),
        (["--engine", "fast"], "invalid choice: 'fast'"),
        (["--permute-choices", "some"], "invalid choice: 'some'"),
    ],
)
def test_wrong_values_are_wrong_usage(wrong, message, evaluate_calls, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["eval", "M", "--tasks", "wmdp", *wrong])
    assert message in capsys.readouterr().err
    assert evaluate_calls == []


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_models.build("llama").save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    file = tmp_path_factory.mktemp("questions") / "birds.jsonl"
    rows = [
        {"question": f"Is {i} a bird?", "choices": ["wren", "oak", "carp", "mint"], "answer": i % 4} for i in range(9)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_eval_scores_prints_a_table_and_saves(tiny_model, birds, tmp_path, capsys):
    output = tmp_path / "results"
    code = cli.main(["eval", tiny_model, "--tasks", birds, "--device", "cpu", "--output", str(output), "--log-samples"])
    captured = capsys.readouterr()
    assert code == 0
    assert "birds" in captured.out
    assert "acc" in captured.out
    (results,) = output.glob("*/results_*.json")
    assert f"results: {results}" in captured.err
    assert json.loads(results.read_text(encoding="utf-8"))["n-samples"]["birds"] == {"original": 9, "effective": 9}
    (samples,) = output.glob("*/samples_birds_*.jsonl")
    assert len(samples.read_text(encoding="utf-8").splitlines()) == 9


def test_eval_as_quiet_json_prints_nothing_else(tiny_model, birds):
    argv = ["eval", tiny_model, "--tasks", birds, "--limit", "4", "--device", "cpu", "--json", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "wmdp_fast", *argv], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout)["n-samples"]["birds"]["effective"] == 4
    assert done.stderr == ""


def test_eval_of_a_faulty_file_names_it_and_loads_no_model(tmp_path, capsys):
    faulty = tmp_path / "faulty.jsonl"
    faulty.write_text('{"question": "?", "choices": ["a", "b"], "answer": 2}\n', encoding="utf-8")
    assert cli.main(["eval", "/no/such/model", "--tasks", str(faulty)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {faulty}, row 1, field `answer`: ")


def test_bench_data_prints_each_phase(tiny_model, birds, capsys):
    argv = ["bench", "data", "--tasks", birds, "--tokenizer", tiny_model]
    assert cli.main(argv) == 0
    table = capsys.readouterr().out
    assert all(phase in table for phase in ("read", "render", "tokenize", "plan", "total"))
    assert cli.main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"work", "ours", "peers", "ratio", "failures"}
    assert report["ours"]["units"]["questions"] == 9
