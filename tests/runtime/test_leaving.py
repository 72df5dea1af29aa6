"""The end of the process: nothing that was written or registered is lost, and what needs longer gets it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# What the interpreter takes apart after the code has ended says so.
_START = """
import atexit, sys, threading, time
sys.modules.setdefault("torch", sys)
from wmdp_fast.runtime import leaving

class Kept:
    def __del__(self):
        print("taken apart", file=sys.__stderr__)

kept = Kept()
"""


def _run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _START + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_what_was_written_and_registered_is_there_and_nothing_is_taken_apart(tmp_path: Path) -> None:
    path = tmp_path / "open.txt"
    done = _run(
        """
class Opened:
    def __init__(self):
        self.file = open(sys.argv[1], "w")
        self.bytes = open(sys.argv[1] + ".bytes", "wb")

opened = Opened()
opened.file.write("a line")
opened.bytes.write(b"bytes")
atexit.register(lambda: print("registered"))
print("printed", end=" ")
leaving.leave(3)
print("came back")
""",
        path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "printed registered\n", "")
    assert path.read_text(encoding="utf-8") == "a line"
    assert path.with_name("open.txt.bytes").read_bytes() == b"bytes"


@pytest.mark.parametrize(
    "needed",
    ['threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()', 'del sys.modules["torch"]'],
)
def test_threads_that_run_and_small_commands_are_left_to_the_interpreter(needed: str) -> None:
    done = _run(f"{needed}\nleaving.leave(3)\nprint('came back', flush=True)\nsys.exit(4)")
    assert (done.returncode, done.stdout.split("\n")[0], done.stderr) == (4, "came back", "taken apart\n")
    assert ("thread" in done.stdout) == ("Thread" in needed)


def test_stdout_that_cannot_be_written_is_no_success() -> None:
    code = f"{_START}\nprint('held back')\nleaving.leave(0)"
    # Unbuffered, the line would fail where it is printed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, env=environment, check=False, timeout=60
        )
    assert done.returncode == 120  # the interpreter's code for it
    assert b"No space left on device" in done.stderr
