"""Options that take a text, which may be in a file: `--template @FILE`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from wmdp_fast.runtime.printable import printable

# Most bytes of a text; templates are refused beyond it anyway.
LARGEST = 1 << 20

# What the help of each of these options says at its end.
HINT = "@FILE reads it from a file, without one line end at its end; @@ stands for a first @"


def text_or_file(given: str) -> str:
    r"""The argparse type of texts that may be in a file.

    A text is taken as it is typed, unless it begins with `@`: `@FILE` is what the file holds, in UTF-8, with its line
    ends as they are, but without a byte order mark at the beginning and without one line end at the end, which editors
    put there. `@@...` is a text whose first character is an `@`.

    Raises:
        argparse.ArgumentTypeError: The file cannot be read, holds nothing, more than `LARGEST` bytes, or no UTF-8; the
            message names it.
    """
    if not given.startswith("@"):
        return given
    if given.startswith("@@"):
        return given[1:]
    path = given[1:]
    if not path:
        raise argparse.ArgumentTypeError("there is no file name after @; write @@ for a text that begins with @")
    try:
        with Path(path).expanduser().open("rb") as file:
            # No further than the bound: it may be a device without an end.
            content = file.read(LARGEST + 1)
    except (OSError, ValueError, RuntimeError) as error:  # for a NUL in the name, and a home that nobody has
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise argparse.ArgumentTypeError(
            f"{printable(path)} cannot be read: {why}; write @@ for a text that begins with @"
        ) from None
    if len(content) > LARGEST:
        raise argparse.ArgumentTypeError(f"{printable(path)} has more than {LARGEST} bytes, too many for a prompt")
    return _decoded(content, path)


def _decoded(content: bytes, path: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(
            f"{printable(path)} is not UTF-8 (byte {error.start + 1} is 0x{content[error.start]:02x}); save it as UTF-8"
        ) from None
    text = re.sub(r"(\r\n|\n|\r)\Z", "", text)
    if not text:
        raise argparse.ArgumentTypeError(f"{printable(path)} holds no text; give '' for none")
    return text
