"""Files appear whole or not at all: on a full disk, a kill, a name that cannot be written."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from wmdp_fast import cli
from wmdp_fast.runtime.files import check_file, check_folder, replacing, write_whole

if TYPE_CHECKING:
    from pathlib import Path

# From here on no file can grow beyond 1,000 bytes, which fails as a full disk does. Python would leave bytecode that is
# cut off, which the next process that imports the module trips over.
SMALL_DISK = """
import resource, signal, sys
sys.dont_write_bytecode = True
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
"""


def in_process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=240
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


def unwritable(folder: Path) -> dict[str, tuple[Path, str]]:
    """Places that no folder can be made at, by what is wrong, with what is said of them."""
    (folder / "link").symlink_to(folder / "nowhere")
    (folder / "file").write_text("mine", encoding="utf-8")
    return {
        "link": (folder / "link", "is a link to .*nowhere, which does not exist"),
        "below a link": (folder / "link" / "below" / "it", "is a link to .*nowhere, which does not exist"),
        "file": (folder / "file", "is a file, not a folder"),
        "below a file": (folder / "file" / "below" / "it", "is a file, not a folder"),
    }


@pytest.mark.parametrize("wrong", ["link", "below a link", "file", "below a file"])
def test_a_folder_that_cannot_be_is_found_before_it_is_needed(tmp_path: Path, wrong: str) -> None:
    place, says = unwritable(tmp_path)[wrong]
    with pytest.raises(OSError, match=says):
        check_folder(place)
    if "link" not in wrong:
        with pytest.raises(OSError, match=says):
            check_file(place / "page.html")
    check_folder(tmp_path / "new" / "and" / "deep")
    check_file(tmp_path / "new" / "page.html")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "link"]


def test_a_folder_in_which_nothing_can_be_made_is_found_whatever_permissions_say(tmp_path: Path) -> None:
    # Of root's permissions none is missing here.
    with pytest.raises(OSError, match=r"cannot be written to.*/proc'"):
        check_folder("/proc/new")
    with pytest.raises(OSError, match=r"has 300 bytes, more than the 255 that a file's name may have"):
        check_folder(tmp_path / ("n" * 300))
    with pytest.raises(OSError, match="has 300 bytes"):
        check_folder(tmp_path / ("\u00e9" * 150) / "results")
    check_folder(tmp_path / ("n" * 255))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_found_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(OSError, match=r"cannot be written to \(No space left on device\)") as error:
        check_folder(tmp_path / "results")
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(tmp_path)


def test_a_file_that_cannot_be_is_found_before_it_is_needed(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder, not a file"):
        check_file(tmp_path)
    # These are written through.
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "link", tmp_path / "link" / "page.html"):
        check_file(path)
    write_whole(tmp_path / "link" / "page.html", "new")
    assert (tmp_path / "nowhere" / "page.html").read_text(encoding="utf-8") == "new"
    check_file("/dev/stdout")


# Commands that run for long or read much, each with a place to write to that cannot be, and what must not begin.
BEGUN_TOO_EARLY = {
    "eval": ("wmdp_fast.prompts.prepare.read_tasks", "eval M --tasks wmdp_bio --output {link}"),
    "eval of several": ("wmdp_fast.prompts.prepare.read_tasks", "eval M N --tasks wmdp_bio --output {held}"),
    "eval to a name": ("wmdp_fast.prompts.prepare.read_tasks", "eval M --tasks wmdp_bio --output {link}/r.json"),
    "export": ("wmdp_fast.integrations.inspect_log.read_results", "export {results} --inspect --output {link}"),
    "bench": ("wmdp_fast.bench.data.bench_data", "bench data --tasks t --tokenizer t --report {file}/r.md"),
    "sweep": (
        "wmdp_fast.unlearning.sweep.sweep.sweep",
        "sweep M --forget f --retain r --forget-tasks a --retain-tasks b --output {new} --html {file}/r.html",
    ),
    "attack": ("wmdp_fast.robustness.api._utility", "attack M --tasks t --output {file}/attacked"),
    "attack with a card": ("wmdp_fast.robustness.api._utility", "attack {model} --tasks t --card"),
    "report": ("wmdp_fast.report.sources.find", "report {results} --output {file}/r.html"),
    "compare": ("wmdp_fast.cli.compare.read_runs", "compare {results} {results} --html {file}/r.html"),
    "rescore": ("wmdp_fast.cli.rescore.rescore", "rescore {results} --output {file}/r.json"),
}


@pytest.mark.parametrize("command", BEGUN_TOO_EARLY)
def test_an_output_that_cannot_be_is_found_before_anything_is_read(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs = {"export": "inspect_ai", "sweep": "matplotlib"}
    if command in needs:
        pytest.importorskip(needs[command])
    begun, words = BEGUN_TOO_EARLY[command]
    monkeypatch.setattr(begun, lambda *_, **__: pytest.fail("began before the output was looked at"))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results_2026-11-24T15-00-00.json").write_text("{}", encoding="utf-8")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "N").write_text("mine", encoding="utf-8")
    (tmp_path / "model" / "README.md").mkdir(parents=True)
    places = {name: tmp_path / name for name in ("link", "file", "held", "results", "new", "model")}
    assert cli.main([word.format(**places) for word in words.split()]) == 1
    says = "link is a link to" if "link" in words else "is a file, not a folder to write into"
    says = "README.md" if "--card" in words else says
    assert says in capsys.readouterr().err


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
