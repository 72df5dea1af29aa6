"""The process that renders Jinja templates: reads documents on stdin, writes what the template makes of them on stdout.

It is run by its path (`python -I jinja_process.py`) and imports nothing of this package, so that it starts in no
time. Templates come from strangers: they run in jinja2's sandbox, with so much memory, and so much processor time for
each document, after which the kernel ends the process. The environment is otherwise lm-eval's (0.4.13,
`lm_eval.utils.apply_template`), so that the texts are the same to the byte; what the sandbox would answer otherwise
than jinja2 without it is an error.

A job is a line of JSON on stdin, `{"wanted": "texts", "source": ..., "seconds": ..., "longest": ..., "bytes": ...}`,
and so many bytes of documents, one JSON object a line. The answer is a line with each document's text as JSON and a
last one that is `null`, or an object with what went wrong; where `names` are wanted, a line for each that the
template looks up. A job is read to its end before the answer begins, so that neither side waits for the other.
"""

from __future__ import annotations

import functools
import json
import re
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jinja2 import Environment, Template

# How Python prints an object that has no text of its own: `<built-in method strip of str object at 0x7f10ac3b5df0>`.
_ADDRESS = re.compile(r"<[^<>\n]{1,200} at 0x[0-9a-f]+>")

# Most characters of a reason; some of jinja2's quote the value at hand.
_LONGEST_REASON = 200


class Refused(Exception):  # noqa: N818 (it says what happened)
    """A document that cannot be rendered; the text says why."""


def regex_replace(string: str, pattern: str, repl: str, count: int = 0) -> str:
    """lm-eval's filter: `re.sub`."""
    return re.sub(pattern, repl, string, count=count)


def environment() -> Environment:
    """jinja2 with lm-eval's settings, in its sandbox."""
    import jinja2
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
            # An undefined value could be asked whether it is defined, which would change what is printed.
            raise SecurityError(f"the attribute {attribute!r} of a {type(obj).__name__} is not for templates")

    made = Sandbox(loader=jinja2.BaseLoader(), undefined=jinja2.StrictUndefined, keep_trailing_newline=True)

    def chance(*_arguments: Any, **_options: Any) -> NoReturn:
        raise Refused("`random` and `lipsum` give other texts each time, and so other prompts")

    made.filters |= {"regex_replace": regex_replace, "random": chance}
    made.globals["lipsum"] = chance
    return made


def render(template: Template, document: Mapping[str, Any], source: str, longest: int) -> str:
    """What lm-eval's `apply_template` makes of a document, if it can be a prompt.

    Raises:
        Refused: It cannot.
        Exception: Whatever jinja2 raises.
    """
    parts, size = [], 0
    for part in template.generate(dict(document)):
        size += len(part)
        if size > longest:
            raise Refused(f"the text is longer than {longest} characters")
        parts.append(part)
    text = "".join(parts)
    if text.isdigit():
        raise Refused(f"the text is only a number ({text[:20]}), which lm-eval takes for that of a choice; add a word")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused("the text has a lone surrogate, which is no character") from None
    for found in _ADDRESS.findall(text) if " at 0x" in text else ():
        if found not in source and found not in json.dumps(document, ensure_ascii=False):
            kind = found[1:].split(" at 0x")[0]
            raise Refused(f"it prints a Python object ({kind}), not a text: are its parentheses missing, or `| list`?")
    return text


def names(source: str) -> set[str]:
    """The names that a template looks up in a document, or finds among jinja2's own."""
    from jinja2 import meta

    return meta.find_undeclared_variables(environment().parse(source))


def reason(error: BaseException, source: str, document: Mapping[str, Any] | None) -> str:
    """What went wrong, in one line."""
    import jinja2

    if isinstance(error, MemoryError):
        return "it needs too much memory"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = _on_one_line(str(error))
    if isinstance(error, Refused):
        return text
    if isinstance(error, jinja2.TemplateSyntaxError):
        lines = source.splitlines() or [""]
        line = lines[min(error.lineno, len(lines)) - 1]
        return f"line {error.lineno}: {text} (in {_on_one_line(line, longest=80)!r})"
    if isinstance(error, jinja2.UndefinedError) and document is not None:
        fields = ", ".join(document)
        return f"{text}; a question's fields are {_on_one_line(fields, longest=500)}"
    return text if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {text}"


def _on_one_line(text: str, longest: int = _LONGEST_REASON) -> str:
    """The text without what moves a terminal's cursor, cut where it is too long."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[:longest])
    return shown + "…" * (len(text) > longest)


def main(memory: int, path: list[str]) -> None:
    """Does jobs until stdin ends.

    Args:
        memory: Address space of this process, in bytes.
        path: Where jinja2 may be too. It comes last: a `random.py` beside the user's script is not for this process.
    """
    sys.path += path
    import jinja2.sandbox  # noqa: F401 (before the limits hold)

    for limit, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (most, most))
    while line := sys.stdin.buffer.readline():
        job = json.loads(line)
        _do(job, sys.stdin.buffer.read(job["bytes"]).splitlines())


def _do(job: Mapping[str, Any], lines: list[bytes]) -> None:
    document = None
    try:
        _start_clock(job["seconds"])
        template = compiled(job["source"])
        if job["wanted"] == "names":
            for name in names(job["source"]):
                _say(name)
        for line in lines:
            document = json.loads(line)
            _start_clock(job["seconds"])
            _say(render(template, document, job["source"], job["longest"]))
        _say(None)
    except Exception as error:
        # Whatever a stranger's template may raise is a reason to refuse it.
        _say({"problem": reason(error, job["source"], document)})
    finally:
        _start_clock(0)


@functools.lru_cache(maxsize=1)
def compiled(source: str) -> Template:
    """The template; a file's questions come in several jobs."""
    return environment().from_string(source)


def _start_clock(seconds: float) -> None:
    """From now so many seconds of processor time, then SIGPROF ends the process; 0 is no end."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
