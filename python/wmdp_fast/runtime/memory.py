"""How much memory this process has, and how people write an amount of it."""

from __future__ import annotations

import math
import mmap
import re
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of /proc/self/smaps: from where to where, who may do what, and the file.
_MAPPED = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+ *(.*)")

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def resident_bytes() -> int:
    """Bytes of memory that this process has now, in the kernel's count; elsewhere than on Linux, that it ever had."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back() -> None:
    """Gives memory that was freed back to the system, of which the C library (glibc) keeps some for what comes next."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def forget_files() -> None:
    """Forgets what is in memory of files that this process has mapped and not changed: code of libraries, mostly.

    Much of that was needed for imports alone, and counts as the process's memory. What is needed again comes back from
    the page cache, as it would where the kernel had taken the pages. Where there is no list of them that this process
    may read, nothing is done.
    """
    import ctypes

    try:
        smaps = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, PermissionError):
        return
    advise = ctypes.CDLL(None, use_errno=True).madvise
    for start, length in _unchanged(smaps):
        # What cannot be given back, as it is locked, stays.
        advise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _unchanged(smaps: str) -> Iterator[tuple[int, int]]:
    """Start and length of mapped files that cannot be written to and of which no page is the process's own."""
    found: tuple[int, int] | None = None
    for line in smaps.splitlines():
        if (mapped := _MAPPED.match(line)) is not None:
            start, end = int(mapped[1], 16), int(mapped[2], 16)
            found = (start, end - start) if mapped[3] in ("r--p", "r-xp") and mapped[4].startswith("/") else None
        elif line.startswith("Anonymous:") and line.split()[1] == "0" and found is not None:
            yield found


def amount_of_memory(amount: str | int) -> int:
    """Bytes, from a number of them or a text such as `16GB` (of 1,000 MB), `1.5 GiB` (of 1,024 MiB) or `800MB`.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(amount, int) and not isinstance(amount, bool) and amount > 0:
        return amount
    match = _AMOUNT.fullmatch(amount.strip()) if isinstance(amount, str) else None
    unit = 0.0 if match is None else float((1024 if match[3] else 1000) ** _POWERS[match[2].lower()])
    found = 0.0 if match is None else float(match[1]) * unit
    if not 0 < found < math.inf:
        raise ValueError(f"memory must be an amount such as 16GB or 800MB, not {amount!r}")
    return int(found)


def in_gigabytes(amount: float) -> str:
    """Bytes as a message has them, to two digits."""
    return f"{amount / 1e9:.2g} GB" if amount < 99.5e9 else f"{amount / 1e9:.0f} GB"
