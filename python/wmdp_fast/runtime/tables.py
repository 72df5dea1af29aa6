"""Numbers as aligned text, as HTML for a notebook and as pandas frames."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import WmdpFastError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd


def in_columns(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """Rows of cells as lines of text.

    Args:
        rows: Rows, all of the same length.
        sides: For each column `l` or `r`: to which side its cells are moved.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in rows
    ]


def aligned(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """The same with a line below the first row, which is the header."""
    lines = in_columns(rows, sides)
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


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
