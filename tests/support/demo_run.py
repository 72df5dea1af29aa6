"""A run of `wmdp-fast demo` that all processes of a test run share."""

from __future__ import annotations

import contextlib
import fcntl
import io
import warnings
from typing import TYPE_CHECKING

from wmdp_fast import cli
from wmdp_fast.exceptions import WmdpFastWarning

if TYPE_CHECKING:
    from pathlib import Path


def run_once(base: Path) -> tuple[Path, str]:
    """The folder and the report of a run, made by whoever asks first; others wait for it.

    Args:
        base: Folder of this test run, made if missing.
    """
    base.mkdir(exist_ok=True)
    folder, report = base / "demo", base / "report.txt"
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not report.exists():
            report.write_text(_run(folder), encoding="utf-8")
    return folder, report.read_text(encoding="utf-8")


def _run(folder: Path) -> str:
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        # A steered model prefers one letter, and the command says so.
        warnings.simplefilter("default", WmdpFastWarning)
        assert cli.main(["demo", "--output", str(folder), "--quiet"]) == 0
    return printed.getvalue()
