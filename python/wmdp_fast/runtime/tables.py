"""Numbers as aligned text, as HTML for a notebook and as pandas frames."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from html import escape
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import WmdpFastError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pandas as pd


# Characters of a line beyond which a table is not set in columns; None where nobody has to fit it to a terminal.
_width: ContextVar[int | None] = ContextVar("width", default=None)


@contextlib.contextmanager
def fitted_to(width: int | None) -> Iterator[None]:
    """Inside, a table that would be wider has the cells of a row below each other, each with the name of its column.

    Args:
        width: Characters of a line; None for no limit.
    """
    before = _width.set(width)
    try:
        yield
    finally:
        _width.reset(before)


def in_columns(rows: Sequence[Sequence[str]], sides: str, *, has_header: bool = False) -> list[str]:
    """Rows of cells as text, an element for each row: one line, unless `fitted_to` asks for less than its width.

    Args:
        rows: Rows, all of the same length.
        sides: For each column `l` or `r`: to which side its cells are moved.
        has_header: Whether the first row names the columns. Without names a table stays as wide as it is.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in rows
    ]
    limit = _width.get()
    if not has_header or limit is None or max(map(len, lines)) <= limit:
        return lines
    return _below_each_other(rows, limit, is_named=sides.startswith("l"))


def _below_each_other(rows: Sequence[Sequence[str]], limit: int, *, is_named: bool) -> list[str]:
    """Rows as what they are called, if the first column says that, and their cells, as many on a line as fit there."""
    header, *others = rows
    texts, indent = [header[0]], "  "
    for row in others:
        lines = [row[0].rstrip()] if is_named and row[0].strip() else []
        if lines:
            indent = " " * (len(row[0]) - len(row[0].lstrip())) + "  "
        cells = [
            f"{name}: {cell}" if name else cell
            for name, cell in list(zip(header, map(str.strip, row), strict=True))[int(is_named) :]
            if cell
        ]
        line = ""
        for cell in cells:
            if line and len(line) + 2 + len(cell) > limit:
                lines.append(line)
                line = ""
            line = f"{line}  {cell}" if line else f"{indent}{cell}"
        texts.append("\n".join([*lines, *([line] if line else [])]))
    return texts


def aligned(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """The same with a line below the first row, which is the header."""
    texts = in_columns(rows, sides, has_header=True)
    return [texts[0], "-" * max(len(line) for text in texts for line in text.split("\n")), *texts[1:]]


def number_text(value: float, *, signed: bool = False) -> str:
    """A share or a perplexity with four digits after the point; a huge one by its exponent."""
    form = ("+" if signed else "") + (".4f" if abs(value) < 1e6 else ".4g")
    return format(value, form)


def html_table(rows: Sequence[Sequence[str]], sides: str, remarks: Iterable[str] = ()) -> str:
    """Rows as an HTML table, and remarks below it. Everything is escaped; leading spaces stay.

    Args:
        rows: The header, then the others.
        sides: For each column `l` or `r`.
        remarks: Sentences that belong to it.
    """

    def cells(row: Sequence[str], tag: str) -> str:
        styles = [f"text-align: {'left' if side == 'l' else 'right'}; white-space: pre" for side in sides]
        inner = "".join(
            f'<{tag} style="{style}">{escape(cell)}</{tag}>' for cell, style in zip(row, styles, strict=True)
        )
        return f"<tr>{inner}</tr>"

    body = "".join(cells(row, "td") for row in rows[1:])
    told = "".join(f"<p>{escape(remark)}</p>" for remark in remarks)
    return f"<table><thead>{cells(rows[0], 'th')}</thead><tbody>{body}</tbody></table>{told}"


def frame(records: Iterable[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Records as a pandas frame with these columns, also where there are none.

    Raises:
        WmdpFastError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise WmdpFastError("pandas, which makes frames, is not installed; pip install pandas") from error
    return pd.DataFrame(list(records), columns=list(columns))
