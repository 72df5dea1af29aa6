"""How much memory this process has, and how people write an amount of it."""

from __future__ import annotations

import math
import re
import resource
import sys
from pathlib import Path

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
