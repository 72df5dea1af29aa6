"""The end of the process.

Taking apart what torch and transformers have made takes the interpreter one to two seconds: it looks through a million
objects several times before it gives back memory that the operating system takes back anyway.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
import threading


def leave(code: int) -> None:
    """Ends the process at once, if nothing needs more than that; else it returns, for the interpreter to end it.

    What was registered for the exit has run by then, and what was written is flushed. Threads that the interpreter
    would wait for are left to it, and so are failures of stdout.
    """
    if "torch" not in sys.modules or _others_are_running():
        return
    atexit._run_exitfuncs()
    try:
        _flush()
    except (OSError, ValueError):
        return
    os._exit(code)


def _others_are_running() -> bool:
    return any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate())


def _flush() -> None:
    """Writes what files hold back that nobody has closed, and at last the standard streams."""
    for one in gc.get_objects():
        # Some objects import or warn when they are asked for their class, as isinstance does.
        if issubclass(type(one), (io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)) and not one.closed:
            one.flush()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
