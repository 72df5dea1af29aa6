"""How much memory a process has, and what of it goes back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wmdp_fast.runtime.memory import amount_of_memory

# What lies below the last block cannot go back by itself. Arrays, as Python without the global lock has an allocator of
# its own for what is Python's.
_CHILD = """
import numpy as np
from wmdp_fast.runtime.memory import give_back, resident_bytes

blocks = [np.ones(12_500) for _ in range(1_000)]
full = resident_bytes()
del blocks[:-1]
give_back()
print(full, resident_bytes())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the kernel's count is read from /proc")
def test_what_was_freed_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, check=True)
    full, left = map(int, done.stdout.split())
    assert full - left > 90_000_000


@pytest.mark.parametrize(
    ("text", "expected"), [("16GB", 16e9), ("1.5 GiB", 1.5 * 2**30), ("800m", 8e8), ("12", 12), (7, 7)]
)
def test_amounts(text: str | int, expected: float) -> None:
    assert amount_of_memory(text) == expected


@pytest.mark.parametrize("text", ["", "lots", "-1GB", "0", "16 XB", "1" + "0" * 400, True])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="memory must be an amount such as 16GB"):
        amount_of_memory(text)


# Code of numpy that was used once, and is used again.
_FORGETS = """
import numpy as np
from wmdp_fast.runtime.memory import forget_files, resident_bytes

matrix = np.arange(160_000.0).reshape(400, 400)
before = np.linalg.inv(matrix + np.eye(400)).sum(), np.fft.fft(matrix).sum()
full = resident_bytes()
forget_files()
print(full, resident_bytes())
assert before == (np.linalg.inv(matrix + np.eye(400)).sum(), np.fft.fft(matrix).sum())
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="what is mapped is read from /proc")
def test_unchanged_pages_of_files_are_forgotten_and_come_back() -> None:
    done = subprocess.run([sys.executable, "-c", _FORGETS], capture_output=True, text=True, check=True)
    full, left = map(int, done.stdout.split())
    assert full - left > 3_000_000
