"""Jinja templates that Rust does not render: jinja2 does, in a process of its own (`wmdp_fast.prompts.jinja_process`).

A template may come from a stranger, and jinja2's sandbox bounds neither time nor memory: `{{ 'x' * 10 ** 12 }}` or two
nested loops end or stop the process they run in. Here that is a process that can be ended: Ctrl-C does it at any time,
and too much memory or processor time are errors like any other.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wmdp_fast.exceptions import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Processor time for each question, in seconds; a usual template takes less than a thousandth of one.
SECONDS = 5.0

# Address space of the process, in bytes, some 50 MB of which are Python's.
MEMORY = 1 << 30

# Most characters for one question, and for all questions of a file.
LONGEST = 1 << 24
LONGEST_TOGETHER = 1 << 29

# Questions in one job: few enough for the memory of the process, enough that waiting for each other costs nothing.
_QUESTIONS_AT_ONCE = 1000

_PROCESS = Path(__file__).with_name("jinja_process.py")


@functools.lru_cache(maxsize=64)
def check(source: str) -> None:
    """Compiles a template.

    Args:
        source: A Jinja template.

    Raises:
        TemplateError: It does not compile, or not within the bounds.
        OSError: The process cannot be started.
    """
    render(source, b"", None)


def render(source: str, documents: bytes, file: str | None) -> list[str]:
    """Renders a template for each document, as lm-eval does.

    Args:
        source: A Jinja template.
        documents: One JSON object a line, each the columns of a question.
        file: Where the questions come from, for error messages.

    Returns:
        A text for each document.

    Raises:
        TemplateError: The template does not compile, or fails on a document, which is named; or it takes more than
            `SECONDS` of processor time for one, or more than `MEMORY`; or what it makes is too long, only digits, or
            not the same each time.
        OSError: The process cannot be started.
    """
    return _answers("texts", source, documents, file)


def names(source: str) -> set[str]:
    """The names that a template looks up in a document.

    Args:
        source: A Jinja template.

    Raises:
        TemplateError: It does not compile.
        OSError: The process cannot be started.
    """
    return set(_answers("names", source, b"", None))


def _answers(wanted: Literal["texts", "names"], source: str, documents: bytes, file: str | None) -> list[str]:
    texts: list[str] = []
    characters = 0
    with _lock:
        for batch in _batches(documents):
            process = _running()
            try:
                problem = _ask(process, wanted, source, batch, texts)
            except BaseException:
                _end()
                raise
            characters += sum(map(len, texts[-len(batch) :]))
            if problem is None and characters > LONGEST_TOGETHER:
                problem = f"the texts are longer than {LONGEST_TOGETHER} characters together"
            if problem is not None:
                # What a stranger's template has left behind is not for the next one.
                _end()
                where = "" if file is None else f"; at {file}, row {len(texts) + 1}"
                raise TemplateError(f"template: {problem}{where}")
    return texts


def _batches(documents: bytes) -> Iterator[list[bytes]]:
    """The lines by the job; one job without any if there are none, which compiles the template."""
    lines = iter(documents.splitlines(keepends=True))
    while batch := list(islice(lines, _QUESTIONS_AT_ONCE)):
        yield batch
    if not documents:
        yield []


def _ask(
    process: subprocess.Popen[bytes], wanted: str, source: str, batch: list[bytes], texts: list[str]
) -> str | None:
    """Gives the process a job and appends the texts it answers with; returns what went wrong, if anything did."""
    documents = b"".join(batch)
    job = {"wanted": wanted, "source": source, "seconds": SECONDS, "longest": LONGEST, "bytes": len(documents)}
    if process.stdin is None or process.stdout is None:
        raise OSError("the process of jinja2 has no pipes")
    try:
        process.stdin.write(json.dumps(job).encode() + b"\n" + documents)
        process.stdin.flush()
    except BrokenPipeError:
        return _how_it_ended(process)
    # A line without its newline was cut off.
    while (line := process.stdout.readline()).endswith(b"\n"):
        answer = json.loads(line)
        if answer is None:
            return None
        if isinstance(answer, dict):
            return str(answer["problem"])
        texts.append(answer)
    return _how_it_ended(process)


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    """Why the process does not answer any more."""
    words = (process.stderr.read() if process.stderr else b"").decode(errors="replace").strip().splitlines()
    code = process.wait()
    if code == -signal.SIGPROF:
        return f"it takes more than {SECONDS:g} seconds of processor time for one question"
    if code < 0:
        name = signal.Signals(-code).name
        return f"jinja2 was ended by {name} on it: it may need too much memory or be nested too deeply"
    return f"jinja2 ended with exit code {code} on it" + (f": {words[-1]}" if words else "")


# The process that runs, if one does: one for all templates, so that a folder of a hundred files starts one only.
_lock = threading.Lock()
_process: subprocess.Popen[bytes] | None = None
_of_parent: list[subprocess.Popen[bytes]] = []


def _running() -> subprocess.Popen[bytes]:
    global _process
    if _process is None:
        path = [entry for entry in sys.path if isinstance(entry, str)]
        _process = subprocess.Popen(  # noqa: S603 (our own file, by our own Python)
            [sys.executable, "-I", _PROCESS, str(MEMORY), *path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Nothing of the environment, which may hold keys, but where libraries are.
            env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
            # The terminal's Ctrl-C is for the process that waits for this one.
            process_group=0,
        )
    return _process


def _end() -> None:
    """Ends the process, whatever it does."""
    global _process
    ended, _process = _process, None
    if ended is not None:
        ended.kill()
        # Closes the pipes and waits; what was not written yet has no reader any more.
        with contextlib.suppress(BrokenPipeError), ended:
            pass


def _forget() -> None:
    """In a forked child: the process and the lock are its parent's."""
    global _process, _lock
    if _process is not None:
        # Python would say otherwise that it still runs.
        _process.returncode = 0
        if _lock.locked():
            # Another thread of the parent was writing: to close would write the rest a second time.
            _of_parent.append(_process)
        else:
            for pipe in (_process.stdin, _process.stdout, _process.stderr):
                if pipe is not None:
                    pipe.close()
    _process, _lock = None, threading.Lock()


atexit.register(_end)
os.register_at_fork(after_in_child=_forget)
