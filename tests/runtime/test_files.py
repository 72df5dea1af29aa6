"""Files appear whole or not at all: on a full disk, a kill, a name that cannot be written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from wmdp_fast.runtime.files import replacing, write_whole

if TYPE_CHECKING:
    from pathlib import Path

# From here on no file can grow beyond 1,000 bytes, which fails as a full disk does.
SMALL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
"""


def in_process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def test_what_is_written_is_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_whole(path, "é\udcff\n")
    assert path.read_bytes() == "é".encode() + b"\\udcff\n"
    write_whole(str(path), b"\x00bytes")
    assert path.read_bytes() == b"\x00bytes"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("the old one", encoding="utf-8")
    code = (
        SMALL_DISK + "import sys; from wmdp_fast.runtime.files import write_whole; write_whole(sys.argv[1], 'x' * 5000)"
    )
    ran = in_process(code, path)
    assert ran.returncode == 1
    assert f"File too large: '{path}'" in ran.stderr
    assert path.read_text(encoding="utf-8") == "the old one"
    assert list(tmp_path.iterdir()) == [path]


# Commands whose page or report is long enough not to fit; what they measure is made up.
COMMANDS = {
    "sweep": """
from tests.support import sweep_examples
from wmdp_fast.unlearning.sweep import sweep as module
module.sweep = lambda *_, **__: sweep_examples.result()
arguments = ["sweep", "M", "--forget", "f", "--retain", "r", "--forget-tasks", "a", "--retain-tasks", "b",
             "--output", "O", "--html", sys.argv[1]]
""",
    "bench": """
from wmdp_fast.bench import data
from wmdp_fast.bench.report import BenchReport, Measurement, machine
ours = Measurement(seconds={f"phase {i}": 1.0 for i in range(100)}, units={}, per_second={})
data.bench_data = lambda **_: BenchReport(work={"benchmark": "data", "machine": machine()}, ours=ours)
arguments = ["bench", "data", "--tasks", "t", "--tokenizer", "t", "--report", sys.argv[1]]
""",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_page_does_not_destroy_the_old_one_on_a_full_disk(tmp_path: Path, command: str) -> None:
    if command == "sweep":
        pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    path = tmp_path / "page"
    path.write_text("the old one", encoding="utf-8")
    # What draws caches its fonts: before the disk is full.
    begin = "import sys; from wmdp_fast import cli\nfrom wmdp_fast.report import sweep\n" + COMMANDS[command]
    ran = in_process(f"{begin}\n{SMALL_DISK}\nsys.exit(cli.main(arguments))", path)
    assert ran.returncode == 1
    assert f"File too large: '{path}'" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert path.read_text(encoding="utf-8") == "the old one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("the old one", encoding="utf-8")
    code = """
import os, signal, sys
from wmdp_fast.runtime.files import replacing
with replacing(sys.argv[1]) as fresh:
    fresh.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert in_process(code, path).returncode < 0
    assert path.read_text(encoding="utf-8") == "the old one"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_a_block_raises_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")

    def stopped() -> None:
        with replacing(path) as fresh:
            fresh.write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(error):
        stopped()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_links_and_permissions_stay(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    path.write_text("old", encoding="utf-8")
    path.chmod(0o640)
    link.symlink_to(path)
    write_whole(link, "new")
    assert link.is_symlink()
    assert path.read_text(encoding="utf-8") == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_pipe_and_devices_are_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text(encoding="utf-8")))
    reader.start()
    write_whole(pipe, "through")
    reader.join(timeout=20)
    assert read == ["through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_long_name_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 120 + ".html")
    write_whole(path, "text")
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_error_of_something_else_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not_there"), replacing(tmp_path / "file"):
        (tmp_path / "not_there").read_text(encoding="utf-8")
