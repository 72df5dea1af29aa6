"""Command lines in a process of their own, with the most memory that each had."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_RUN = """
import sys
from wmdp_fast.cli import main

code = main(sys.argv[1:])
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print("peak", int(peak) * 1024, "code", code)
"""

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's count is read from /proc")


def peak_of(*arguments: str) -> tuple[int, str]:
    """Runs `wmdp-fast`, which must succeed.

    Returns:
        The most bytes that it had in memory, by the kernel's count, and its stderr.
    """
    done = subprocess.run([sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, code = (int(word) for word in done.stdout.split()[-3::2])
    assert code == 0, done.stderr
    return peak, done.stderr
