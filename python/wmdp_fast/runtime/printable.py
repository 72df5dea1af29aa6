"""Text from files and servers as a terminal may show it."""

from __future__ import annotations


def printable(text: str, *, keep: str = "") -> str:
    """The text with what a terminal does not show, or acts on, in Python's escapes; characters of `keep` stay."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
