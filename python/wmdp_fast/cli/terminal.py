"""What stdout cannot show: the surroundings of a command, set before it begins."""

from __future__ import annotations

import codecs
import os
import shutil
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


def open_closed() -> None:
    """Has stdout and stderr lead nowhere where they are closed (`>&-`, some job schedulers): Python has None there.

    Their numbers are taken as well: the next file that is opened would have one, and libraries would print into it.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def print_anything(*, json: bool) -> None:
    r"""Has stdout print in ASCII what its encoding does not have, instead of raising an error.

    Args:
        json: Whether JSON is printed: then everything is escaped as `\u00b1`, which means the same there.
    """
    name = "wmdp-fast-json" if json else "wmdp-fast-plain"
    codecs.register_error(name, _escape if json else _plain)
    # What stands in for stdout in a test or a notebook need not have an encoding. In the locales C and POSIX Python has
    # `surrogateescape` there, which raises at other characters.
    if getattr(sys.stdout, "errors", None) in ("strict", "surrogateescape") and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors=name)


def width() -> int | None:
    """Characters of a line of the terminal that stdout is; None if it is none."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


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
