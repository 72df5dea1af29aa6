"""The command line: exit codes, where output goes, and that errors are one line."""

from __future__ import annotations

import argparse
import dataclasses
import http.server
import inspect
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

import wmdp_fast
from tests.conftest import CHECKOUT
from tests.support import tiny_models
from wmdp_fast import _rust, cli
from wmdp_fast.cli import doctor
from wmdp_fast.cli import eval as cli_eval
from wmdp_fast.exceptions import DatasetError, WmdpFastWarning
from wmdp_fast.tasks.definitions import GROUPS, TAGS, TASKS


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


def deep():
    return deep()


def too_deep(_arguments):
    deep()


class PanicException(BaseException):
    """What a panic of Rust is in Python."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("a bug"), "RuntimeError: a bug (tests/cli/test_cli.py, line "),
        (RuntimeError("one line\nand another"), "RuntimeError: one line (tests"),
        (KeyError("num_hidden_layers"), "KeyError: 'num_hidden_layers' (tests"),
        (TypeError(), "TypeError (tests"),
        (AttributeError("no attribute"), "AttributeError: no attribute (tests"),
        (AssertionError(), "AssertionError (tests"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError: by zero (tests"),
        (OverflowError("too large"), "OverflowError: too large (tests"),
        (ValueError(), "ValueError (tests"),
        (MemoryError(), "out of memory: smaller batches"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"),
            "out of memory (CUDA out of memory. Tried): smaller",
        ),
        (ImportError("no module named x"), "ImportError: no module named x (tests"),
        (PanicException("a panic"), "PanicException: a panic (tests"),
    ],
)
def test_an_error_nobody_foresaw_is_one_line_too(error, said, monkeypatch, capsys):
    monkeypatch.delenv("WMDP_FAST_DEBUG", raising=False)
    monkeypatch.setattr(doctor, "run", raising(error))
    assert cli.main(["doctor"]) == 1
    line = capsys.readouterr().err
    assert said in line.replace(f"{CHECKOUT}/", "")
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert "; WMDP_FAST_DEBUG=1 shows the traceback" in line
    # Raised here, it is not plausibly a fault of the package; but for a panic, which only its extension can have.
    assert ("please report it" in line) == isinstance(error, PanicException)


def test_what_is_nested_too_deeply_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "run", too_deep)
    assert cli.main(["doctor"]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: something is nested too deeply to be read (")
    assert line.count("\n") == 1


def test_a_fault_of_the_package_asks_to_be_reported(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [None])
    assert cli.main(["doctor"]) == 1
    assert re.fullmatch(
        r"error: AttributeError: .*'name' \(wmdp_fast/cli/doctor\.py, line \d+\); WMDP_FAST_DEBUG=1 shows the"
        r" traceback; please report it with that traceback\n",
        capsys.readouterr().err,
    )


def test_an_error_while_options_are_read_is_one_line_too(monkeypatch, capsys):
    def add_arguments(parser):
        parser.add_argument("--number", type=raising(OverflowError("too large")))

    monkeypatch.setattr(doctor, "add_arguments", add_arguments)
    assert cli.main(["doctor", "--number", "9"]) == 1
    assert capsys.readouterr().err.startswith("error: OverflowError: too large (")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model", "hf"], "wmdp-fast eval MODEL ..."),
        (
            ["--model", "hf", "--model_args", "pretrained=org/m,dtype=float32,trust_remote_code=True"],
            "wmdp-fast eval org/m --dtype float32 --trust-remote-code ...",
        ),
        (["M", "--model_args=peft=a b"], "wmdp-fast eval MODEL --peft 'a b' ..."),
        (["M", "--batch_size", "8"], "--token-budget N"),
        (["M", "--output_path", "x"], "--output DIR"),
        (["M", "--write_out"], "`wmdp-fast lm-eval run` takes it"),
    ],
)
def test_what_lm_eval_calls_otherwise_is_said(given, said, evaluate_calls, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["eval", *given, "--tasks", "wmdp"])
    error = capsys.readouterr().err
    assert "is lm-eval's: " in error
    assert said in error
    assert error.startswith("usage: wmdp-fast eval ")
    assert evaluate_calls == []


def test_underscores_are_as_good_as_dashes(evaluate_calls):
    argv = ["eval", "M", "--tasks", "a_b", "--num_fewshot=2", "--system_instruction", "do_it", "--log_samples"]
    assert cli.main([*argv, "--output", "o_o"]) == 0
    [(_, options)] = evaluate_calls
    del options["progress"]
    expected = {"tasks": ["a_b"], "num_fewshot": 2, "system_instruction": "do_it", "log_samples": True, "output": "o_o"}
    assert options == expected


@pytest.mark.parametrize("command", [("eval", "M", "--tasks", "wmdp"), ("bench", "eval"), ("doctor",)])
def test_an_unknown_option_prints_the_usage_of_its_own_command(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, "--no-such-option", "3"])
    error = capsys.readouterr().err
    own = " ".join(itertools.takewhile(lambda word: word not in ("M",), command))
    assert error.startswith(f"usage: wmdp-fast {own} ")
    assert "unrecognized arguments: --no-such-option" in error


@pytest.mark.parametrize(
    ("encoding", "json_", "expected"),
    [
        ("ascii", False, "0.5 +- 0.1 caf\\u00e9 \\ud83e\\udd89 \\udcff\n"),
        ("latin-1", False, "0.5 \u00b1 0.1 caf\u00e9 \\ud83e\\udd89 \\udcff\n"),
        ("utf-8", False, "0.5 \u00b1 0.1 caf\u00e9 \U0001f989 \\udcff\n"),
        ("ascii:surrogateescape", False, "0.5 +- 0.1 caf\\u00e9 \\ud83e\\udd89 \\udcff\n"),
        ("ascii", True, "0.5 \\u00b1 0.1 caf\\u00e9 \\ud83e\\udd89 \\udcff\n"),
    ],
)
def test_what_stdout_cannot_show_is_written_in_ascii(encoding, json_, expected):
    code = (
        "import sys; from wmdp_fast import cli; from wmdp_fast.cli import doctor\n"
        "doctor.run = lambda _: print('0.5 \\u00b1 0.1 caf\\u00e9 \\U0001f989 \\udcff') or 0\n"
        f"sys.exit(cli.main(['doctor', *{['--json'] if json_ else []}]))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60, env=environment)
    assert done.stdout.decode(encoding.partition(":")[0]) == expected
    if json_:
        text = json.loads(f'"{done.stdout.decode(encoding.partition(":")[0]).strip()}"')
        assert text == "0.5 \u00b1 0.1 caf\u00e9 \U0001f989 \udcff"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000|10000"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "1000"}, {"GOMP_SPINCOUNT": "1000"}),
    ],
)
def test_threads_that_wait_soon_sleep_unless_the_user_has_said_how_they_wait(given, found, tmp_path):
    """OpenMP says itself, as it is loaded with torch, what it was told. This torch brings no more than that."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()}
    openmp = next((path for path in mapped if "libgomp" in path), None)
    if openmp is None:
        pytest.skip("torch comes with another OpenMP than GNU's here")
    torch_with_nothing_else = f"import ctypes, os\nctypes.CDLL({openmp!r})\nos._exit(7)\n"
    (tmp_path / "torch.py").write_text(torch_with_nothing_else, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_WAIT", "GOMP", "KMP"))}
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "wmdp_fast", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**kept, **given, "OMP_DISPLAY_ENV": "verbose", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path},
    )
    assert done.returncode == 7
    for name, value in found.items():
        assert re.search(rf"{name} = '({value})'", done.stderr), done.stderr


def test_doctor_reports_versions_devices_and_the_kind_of_build(capsys):
    code = cli.main(["doctor", "--json"])
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["wmdp-fast"]["value"] == wmdp_fast.__version__
    assert findings["device"]["value"].startswith(("cpu", "cuda"))
    assert findings["extension"]["value"].startswith("release" if _rust.RELEASE_BUILD else "debug")
    assert code == (1 if any(finding["problem"] for finding in findings.values()) else 0)


def hub_line(capsys):
    cli.main(["doctor", "--json"])
    found = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert found["hub"]["problem"] is None
    return found["hub"]["value"]


@pytest.mark.parametrize("status", [200, 403, 500])
def test_doctor_asks_whether_the_hub_answers(status, monkeypatch, capsys):
    asked = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        assert hub_line(capsys).startswith(f"{address} answers; ")
        # Through a proxy, which is not told with its password.
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://hub.invalid")
        line = hub_line(capsys)
        server.shutdown()
    assert line.startswith(f"http://hub.invalid answers through the proxy 127.0.0.1:{server.server_port}; ")
    assert "secret" not in line
    assert [authorization for _, authorization in asked] == [None, None]
    assert asked[1][0].startswith("http://hub.invalid")
    monkeypatch.delenv("http_proxy")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    assert hub_line(capsys).startswith(f"{address} cannot be reached (")


def test_doctor_does_not_wait_for_a_hub_that_is_silent(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(doctor, "_PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        assert hub_line(capsys).startswith(f"{address} cannot be reached (")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub_line(capsys).startswith("offline (HF_HUB_OFFLINE)")


def test_doctor_names_a_wrong_thread_count_and_fails(monkeypatch, capsys):
    monkeypatch.setenv("WMDP_FAST_NUM_THREADS", "many")
    assert cli.main(["doctor"]) == 1
    assert "! WMDP_FAST_NUM_THREADS must be a positive number" in capsys.readouterr().out


def test_python_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "wmdp_fast", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"wmdp-fast {wmdp_fast.__version__}\n"


@pytest.mark.parametrize(("name", "meant"), [("evaluate", "eval"), ("unlaern", "unlearn"), ("xyzzy", None)])
def test_a_command_that_does_not_exist_is_named_with_those_like_it(name, meant, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([name, "model"])
    error = capsys.readouterr().err
    assert f"there is no command {name!r}" in error
    assert ("did you mean" in error) == (meant is not None)
    assert meant is None or f"did you mean {meant}" in error


def test_closed_streams_lead_nowhere(tmp_path):
    """As `>&- 2>&-` closes them; a file that is opened afterwards does not get what is printed."""
    code = (
        "import sys; from wmdp_fast import cli; from wmdp_fast.cli import doctor\n"
        f"doctor.run = lambda _: open({str(tmp_path / 'opened')!r}, 'w') and (print('text') or 0)\n"
        "sys.exit(cli.main(['doctor']))"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" >&- 2>&-', sys.executable, code], check=False, timeout=60
    )
    assert done.returncode == 0
    assert (tmp_path / "opened").read_text(encoding="utf-8") == ""


@pytest.mark.parametrize("argv", [["tasks"], ["tasks", "--json"]])
def test_a_reader_of_stdout_that_leaves_causes_no_traceback(argv):
    """Neither at the first print of much nor at the end of little, which is flushed there."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "wmdp_fast", *argv],
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

    monkeypatch.setattr("wmdp_fast.evaluation.evaluate", evaluate)
    return calls


def test_eval_has_an_option_for_every_parameter_of_evaluate():
    parser = argparse.ArgumentParser()
    cli_eval.add_arguments(parser)
    options = {action.dest for action in parser._actions}
    parameters = set(inspect.signature(wmdp_fast.evaluate).parameters)
    # What describes a server is a `Server` in Python, several models are for `evaluate_many`, and `progress` is the
    # opposite of `--quiet`.
    server = {*cli_eval._OF_SERVER, "api_key_env"}
    own = {"help", "json", "quiet", "show_prompts", "timings", "models", "devices", *cli_eval._SEVERAL}
    assert options - own - server == parameters - {"progress", "model"}
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
        *(
            (["--limit", wrong], f"'{wrong}' is not a finite number above 0")
            for wrong in ("0", "-1", "inf", "nan", "1e999")
        ),
        (["--limit", "9" * 5000], "is not a finite number above 0"),
        (["--max-length", "1" + 30 * "0"], "is larger than 2147483647"),
        (["--num-fewshot", "9" * 5000], "is larger than 2147483647"),
        (["--timeout", "inf"], "'inf' is not a finite number above 0"),
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


_CORPORA = ["M", "--forget", "f", "--retain", "r", "--output", "o"]
_SWEEP = ["sweep", *_CORPORA, "--forget-tasks", "a", "--retain-tasks", "b"]


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", "1e999"])
@pytest.mark.parametrize(
    ("command", "option", "form"),
    [
        *(
            (["unlearn", *_CORPORA], option, form)
            for option, form in [
                *((f"--{name}", "{}") for name in ("retain-noise", "learning-rate", "grad-clip", "cache-limit")),
                *((name, form) for name in ("--alpha", "--steering-coeff") for form in ("{}", "1,{}")),
                ("--steering-coeff", "auto:{}"),
            ]
        ),
        *(
            (_SWEEP, option, form)
            for option, form in [
                *((name, form) for name in ("--alpha", "--learning-rate") for form in ("{}", "1,{}", "1/{}", "1..{}")),
                *(("--steering-coeff", form) for form in ("{}", "auto:{}", "auto:1..{}", "1/auto:{}")),
                *((f"--{name}", "{}") for name in ("max-loss", "retain-noise", "grad-clip", "cache-limit")),
            ]
        ),
        (["layers", "M", "--forget", "f"], "--factor", "{}"),
    ],
)
def test_a_number_that_is_not_finite_is_wrong_usage(command, option, form, number, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, f"{option}={form.format(number)}"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}: " in error
    assert "finite number" in error


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


def test_a_question_file_without_its_extension_is_pointed_at(birds, monkeypatch, capsys):
    file = Path(birds)
    monkeypatch.chdir(file.parent)
    assert cli.main(["eval", "M", "--tasks", file.stem]) == 1
    assert f"unknown task {file.stem!r}; did you mean the file {file.name}?" in capsys.readouterr().err


def test_a_task_that_only_lm_eval_knows_is_pointed_at(capsys):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    assert cli.main(["eval", "M", "--tasks", "hellaswag"]) == 1
    error = capsys.readouterr().err
    assert "unknown task 'hellaswag'" in error
    assert "`wmdp-fast lm-eval run --model wmdp-fast --model_args pretrained=MODEL --tasks hellaswag`" in error
    assert cli.main(["eval", "M", "--tasks", "no_task_at_all"]) == 1
    assert "pretrained=MODEL" not in capsys.readouterr().err


def test_results_are_shown_by_the_name_they_were_to_be_saved_under(tiny_model, birds, tmp_path, capsys):
    output = tmp_path / "r.json"
    argv = ["eval", tiny_model, "--tasks", birds, "--device", "cpu", "--output", str(output), "--quiet"]
    assert cli.main([*argv, "--limit", "3"]) == 0
    assert cli.main(argv) == 0
    capsys.readouterr()
    assert cli.main(["show", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "the newest of 2" in shown
    assert re.search(r"birds +9 ", shown)
    assert cli.main(["show", str(tmp_path / "other.json")]) == 1
    assert "other.json: no such file or folder" in capsys.readouterr().err


def test_bench_data_prints_each_phase(tiny_model, birds, capsys):
    argv = ["bench", "data", "--tasks", birds, "--tokenizer", tiny_model]
    assert cli.main(argv) == 0
    table = capsys.readouterr().out
    assert all(phase in table for phase in ("read", "render", "tokenize", "plan", "total"))
    assert cli.main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"work", "ours", "peers", "ratio", "failures"}
    assert report["ours"]["units"]["questions"] == 9
