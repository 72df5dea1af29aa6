"""What stdout cannot show: the surroundings of a command, set before it begins."""

from __future__ import annotations

import codecs
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
