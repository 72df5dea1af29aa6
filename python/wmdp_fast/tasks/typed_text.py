"""Line breaks that were typed as a backslash and an n."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Where Jinja begins in a template, and by what it ends there.
_JINJA = re.compile(r"\{[{%#]")
_END = {"{{": "}}", "{%": "%}", "{#": "#}"}


def typed_line_breaks(texts: Mapping[str, str | None]) -> list[str]:
    r"""A sentence for each text with a backslash and an `n` in it, which is what `"\n"` in a shell's quotes is.

    In a template only the text outside of Jinja counts: inside, a `\n` in quotes is a line break.

    Args:
        texts: Template, description and system instruction by the name that `evaluate` has for them.
    """
    return [
        f"{name} has a backslash and an n (\\n) in it, which go into every prompt as they are; for a line break, type"
        f" {_option(name)} $'...\\n...' in bash, or put the text into a file and give {_option(name)} @FILE"
        for name, text in texts.items()
        if text and "\\n" in (_outside_jinja(text) if name == "template" else text)
    ]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _outside_jinja(template: str) -> str:
    """What a template says by itself."""
    kept, start = [], 0
    while found := _JINJA.search(template, start):
        kept.append(template[start : found.start()])
        end = template.find(_END[found[0]], found.end())
        if end < 0:
            return " ".join(kept)
        start = end + 2
    return " ".join([*kept, template[start:]])
