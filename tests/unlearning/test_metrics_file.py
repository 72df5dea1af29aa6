"""The metrics of a run that goes on: every step once, or an error that names the line."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmdp_fast.exceptions import ModelError, WmdpFastWarning
from wmdp_fast.results.runs_file import RunsFile
from wmdp_fast.unlearning.reporting import MetricsFile

ROWS = [
    {"step": 0, "evaluation": {"birds": {"acc": 0.5}}},
    *({"step": step, "forget_loss": 1.0 / step} for step in range(1, 7)),
    {"step": 6, "evaluation": {"birds": {"acc": 0.25}}},
]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def opened(path, last_step):
    file = MetricsFile(path, last_step)
    file.close()
    return file.rows


def test_what_comes_after_the_saved_step_is_dropped_and_a_line_cut_short_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for content in (TEXT, TEXT + b'{"step": 7, "forget_l'):
        path.write_bytes(content)
        assert opened(path, 6) == ROWS
        assert path.read_bytes() == TEXT
        assert opened(path, 3) == ROWS[:4]
        assert len(path.read_text().splitlines()) == 4
    path.write_bytes(TEXT)
    assert opened(path, 0) == ROWS[:1]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([0, 1, 3, 4, 5, 6], "line 3 has step 3, after step 1"),
        ([0, 1, 2, 2, 3, 4, 5, 6], "line 4 has step 2, after step 2"),
        ([0, 2, 1, 3, 4, 5, 6], "line 2 has step 2, after step 0"),
        ([0, 1, 2], "ends with step 2, but 6 are done"),
        ([0, 0, 1], "line 2 has an evaluation at step 0"),
    ],
)
def test_a_step_that_is_lost_or_there_twice_is_an_error(tmp_path, lines, says):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(ROWS[line]) + "\n" for line in lines))
    before = path.read_bytes()
    with pytest.raises(ModelError, match=rf"metrics.jsonl is damaged: .*{says}.*remove it to resume"):
        MetricsFile(path, 6)
    assert path.read_bytes() == before


def test_a_file_that_is_gone_is_told(tmp_path):
    with pytest.warns(WmdpFastWarning, match="metrics of steps 1 to 6 are missing"):
        assert opened(tmp_path / "metrics.jsonl", 6) == []


@given(st.integers(0, len(TEXT) - 1), st.integers(0, 255), st.sampled_from(["replace", "delete", "insert", "cut"]))
def test_no_damage_loses_or_doubles_a_step_in_silence(tmp_path_factory, at, byte, how):
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    parts = {"replace": (bytes([byte]), 1), "delete": (b"", 1), "insert": (bytes([byte]), 0), "cut": (b"", len(TEXT))}
    put, skip = parts[how]
    path.write_bytes(TEXT[:at] + put + TEXT[at + skip :])
    rows = []
    with contextlib.suppress(ModelError):
        rows = opened(path, 6)
    assert [row["step"] for row in rows if "evaluation" not in row] in ([], [1, 2, 3, 4, 5, 6])


def test_a_full_disk_names_the_file_of_a_sweep(tmp_path):
    def child():
        said = "no error"
        sys.dont_write_bytecode = True  # or modules are left cut off
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with RunsFile(tmp_path / "runs.jsonl") as file:
            file.add({"a": 1})
            try:
                file.add({"b": "x" * 1000})
            except OSError as error:
                said = str(error)
        return said

    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        os.write(write, child().encode())
        os._exit(0)
    os.close(write)
    said = os.read(read, 10_000).decode()
    os.waitpid(pid, 0)
    assert "no space to write" in said
    assert str(tmp_path / "runs.jsonl") in said
    with RunsFile(tmp_path / "runs.jsonl") as file:
        assert file.lines == [{"a": 1}]
