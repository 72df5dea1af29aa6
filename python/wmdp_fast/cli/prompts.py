"""How `eval --show-prompts` prints prompts: as text, each with its continuations and tokens, or as JSON."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from typing import TYPE_CHECKING

from wmdp_fast.runtime.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast.prompts.rendered import RenderedPrompt

# Columns of the lines with tokens.
_WIDTH = 110

# What stands before each line of a prompt, so that the ends of its lines, and empty ones, can be told.
_GUTTER = "  | "


def as_json(prompts: Sequence[RenderedPrompt]) -> str:
    """One object, with all texts as they are."""
    return json.dumps({"prompts": [dataclasses.asdict(one) for one in prompts]}, indent=2, ensure_ascii=False)


def as_text(prompts: Sequence[RenderedPrompt]) -> str:
    """A block for each prompt."""
    return "\n\n".join("\n".join(_block(one)) for one in prompts)


def _block(one: RenderedPrompt) -> list[str]:
    order = f", its choices in another order ({one.order})" if one.order else ""
    lines = [f"{one.task}, question {one.question}{order}: {len(one.tokens)} tokens"]
    lines += [_GUTTER + printable(line, keep="\t") for line in one.prompt.split("\n")]
    lines += _tokens("tokens: ", one.tokens, one.pieces, indent="  ")
    for place, continuation in enumerate(one.continuations):
        right = " (right)" if place == one.answer else ""
        cut = f", after a prompt without its first {continuation.tokens_cut} tokens" if continuation.tokens_cut else ""
        head = f"continuation {_quoted(continuation.text)}{right}{cut}: "
        lines += _tokens(head, continuation.tokens, continuation.pieces, indent="  ")
    return lines


def _tokens(head: str, tokens: Sequence[int], pieces: Sequence[str], *, indent: str) -> list[str]:
    """Ids with their pieces; a line is broken between tokens only."""
    # A space that is no place to break a line.
    pairs = [f"{token} {_quoted(piece)}".replace(" ", "\0") for token, piece in zip(tokens, pieces, strict=True)]
    text = head.replace(" ", "\0").removesuffix("\0") + " " + "  ".join(pairs)
    wrapped = textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in wrapped]


def _quoted(text: str) -> str:
    """The text in quotes, with what cannot be seen as Python writes it."""
    return repr(text)
