"""How far a run is: bars in terminals, lines elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
import threading

import pytest

from wmdp_fast.runtime import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_each_half_minute_and_one_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress_bar(what="scoring", unit="input", total=120, done=20) as bar:
        for _ in range(10):
            clock[0] += 10
            bar.set_postfix(forget="0.5", refresh=False)
            bar.update(10)
    assert capsys.readouterr().err.splitlines() == [
        "scoring: 42% (50/120 inputs), 0:30 gone, 1:10 left, forget 0.5",
        "scoring: 67% (80/120 inputs), 1:00 gone, 0:40 left, forget 0.5",
        "scoring: 92% (110/120 inputs), 1:30 gone, 0:10 left, forget 0.5",
        "scoring: 100% (120/120 inputs), 1:40 gone, forget 0.5",
    ]


def test_what_is_not_known_is_left_out_and_nothing_done_is_no_line(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress_bar(what="asking", unit="question") as bar:
        clock[0] += 4000
        bar.update(0)
        bar.update(3)
    assert capsys.readouterr().err.splitlines() == [
        "asking: (0 questions), 1:06:40 gone",
        "asking: (3 questions), 1:06:40 gone",
    ]
    with progress.progress_bar(what="asking", unit="question", total=3, done=3):
        pass
    with progress.progress_bar(what="asking", unit="question", total=3, shown=False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    code = (
        "from wmdp_fast.runtime.progress import progress_bar\n"
        "with progress_bar(what='scoring', unit='input', total=4) as bar: bar.update(4)"
    )
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                shown.append(os.read(ours, 4096))
            except OSError:  # Nobody writes any more.
                return

    reader = threading.Thread(target=read)
    reader.start()
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True, timeout=60)
    os.close(theirs)
    reader.join(timeout=30)
    os.close(ours)
    text = b"".join(shown).decode()
    assert "scoring: 100%|" in text, text
