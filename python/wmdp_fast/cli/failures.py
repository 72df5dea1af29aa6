"""What a command that failed says: one line, whatever was raised."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path

from wmdp_fast.exceptions import WmdpFastError

_HOME = Path(__file__).resolve().parent.parent
_ISSUES = "please report it with that traceback"


def line(error: BaseException) -> str:
    """The failure in one line: what is wrong and, where nobody foresaw it, where it came from."""
    if isinstance(error, WmdpFastError | OSError | ValueError) and str(error):
        return str(error)
    if isinstance(error, RecursionError):
        return f"something is nested too deeply to be read{_where(error)}{_HINT}"
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        what = f" ({_first_line(error)})" if str(error) else ""
        return (
            f"out of memory{what}: smaller batches (--token-budget, --batch-size), a smaller dtype or another --device"
            f" may help{_HINT}"
        )
    said = f": {_first_line(error)}" if str(error) else ""
    report = f"; {_ISSUES}" if _is_ours(error) else ""
    return f"{type(error).__name__}{said}{_where(error)}{_HINT}{report}"


_HINT = "; WMDP_FAST_DEBUG=1 shows the traceback"


def _first_line(error: BaseException) -> str:
    """The first line of a message that has something in it, cut where it is longer than one reads."""
    text = next((one.strip() for one in str(error).splitlines() if one.strip()), "")
    return text if len(text) <= 300 else f"{text[:300]}..."


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return traceback.extract_tb(error.__traceback__, limit=-1)


def _where(error: BaseException) -> str:
    """The file and line that raised it, as short as it can be said."""
    if not (frames := _frames(error)):
        return ""
    file = frames[-1].filename
    for folder in (str(_HOME.parent), sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")):
        if file.startswith(folder):
            file = file.removeprefix(folder).lstrip("/")
            break
    return f" ({file}, line {frames[-1].lineno})"


def _is_ours(error: BaseException) -> bool:
    """Whether it was raised in a file of this package, or in its extension: then it is plausibly our fault."""
    frames = _frames(error)
    return type(error).__name__ == "PanicException" or bool(frames and Path(frames[-1].filename).is_relative_to(_HOME))
