"""What stdout cannot show, and how many threads wait: the surroundings of a command, set before it begins."""

from __future__ import annotations

import codecs
import os
import sys

# In place of characters that this package prints itself.
_PLAIN = {
    "\u00b1": "+-",
    "\u2013": "-",
    "\u2014": "-",
    "\u2212": "-",
    "\u00d7": "x",
    "\u00b7": ".",
    "\u2026": "...",
    "\u2192": "->",
    "\u2019": "'",
}

# Each is a wish of the user's about how threads of OpenMP wait.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def let_threads_sleep() -> None:
    """Has threads of OpenMP sleep where they would spin, unless the user has said how they wait.

    Beside other busy processes, threads that spin take the time of those that they wait for: a run took 8 times as long
    instead of twice. Alone it makes no difference. OpenMP reads this once, as torch is loaded, so it comes too late
    after that.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def print_anything(*, json: bool) -> None:
    r"""Has stdout print in ASCII what its encoding does not have, instead of raising an error.

    Args:
        json: Whether JSON is printed: then everything is escaped as `\u00b1`, which means the same there.
    """
    name = "wmdp-fast-json" if json else "wmdp-fast-plain"
    codecs.register_error(name, _escape if json else _plain)
    # What stands in for stdout in a test or a notebook need not have an encoding.
    if getattr(sys.stdout, "errors", None) == "strict" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors=name)


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    units = text.encode("utf-16-be", "surrogatepass")
    pairs = zip(units[::2], units[1::2], strict=True)
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in pairs), error.end


def _plain(error: UnicodeError) -> tuple[str, int]:
    if isinstance(error, UnicodeEncodeError) and (text := error.object[error.start]) in _PLAIN:
        return _PLAIN[text], error.start + 1
    return _escape(error)
