"""Commands that `torchrun` has started several times: those that would collide are refused, in one line."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from wmdp_fast import cli
from wmdp_fast.cli import one_process

if TYPE_CHECKING:
    from pathlib import Path

UNLEARN = ["unlearn", "model", "--forget", "f.jsonl", "--retain", "r.jsonl", "--output"]

# Of each the way out.
REFUSED = {
    "unlearn": ([*UNLEARN, "out"], "start it without torchrun, or with --parallel fsdp, which has them hold one model"),
    "sweep": (
        [
            *("sweep", "model", "--forget", "f", "--retain", "r", "--forget-tasks", "a", "--retain-tasks", "b"),
            *("--output", "out", "--devices", "all"),
        ],
        "start it without torchrun; with --devices all it starts a process for each GPU itself",
    ),
    "attack": (["attack", "model", "--tasks", "a"], "with --devices all it starts a process for each GPU itself"),
    "demo": (["demo"], "start it without torchrun"),
    "apply-delta": (["apply-delta", "base", "delta", "out"], "start it without torchrun"),
}


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("command", REFUSED)
def test_the_first_process_says_what_to_do(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(one_process, "_FIRST_SPEAKS", 0.0)
    argv, says = REFUSED[command]
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        assert cli.main(argv) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        if rank:
            assert printed.err == ""
        else:
            [line] = printed.err.splitlines()
            assert line.startswith(f"error: torchrun has started 2 processes of {command} (WORLD_SIZE), and each would")
            assert says in line
    assert not list(tmp_path.iterdir())


def test_one_process_is_as_without_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_rank(monkeypatch, 0, 1)
    assert cli.main(["apply-delta", "base", "delta", "out"]) == 1
    assert "torchrun" not in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_itself(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "wmdp_fast"]
    done = subprocess.run(
        [sys.executable, *launch, *UNLEARN, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("error: ") == done.stderr.count("error: torchrun has started 2 processes of unlearn") == 1
    assert not list(tmp_path.iterdir())
