"""A contrast as a table: aligned text, Markdown and HTML, with remarks on how to read it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from wmdp_fast.analysis.contrast import SECTIONS
from wmdp_fast.runtime.tables import html_table, in_columns, number_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wmdp_fast.analysis.contrast import Contrast, Difference

_COLUMNS = ("task", "n", "metric", "before", "after", "change", "interval", "p", "p (Holm)", "lost", "won")

_LETTER_COLUMNS = ("without preferred letters", "calibrated before", "after", "rank z before", "after", "p after")


def text_lines(contrast: Contrast, confidence: float) -> Iterator[str]:
    """The lines of an aligned table and of the remarks below it."""
    parts = [
        (title, [_cells(row, "  " if row.is_group else "    ") for row in rows]) for title, rows in _sections(contrast)
    ]
    header, *lines = _lines([_COLUMNS, *(cells for _, rows in parts for cells in rows)])
    yield f"before: {contrast.before}"
    yield f"after:  {contrast.after}"
    yield ""
    yield header
    yield "-" * len(header)
    for title, rows in parts:
        yield title
        own, lines = lines[: len(rows)], lines[len(rows) :]
        yield from own
    yield ""
    if letters := _letter_rows(contrast):
        yield from _lines([_LETTER_COLUMNS, *letters])
        yield ""
    yield from _remarks(contrast, confidence)


def markdown_lines(contrast: Contrast, confidence: float) -> Iterator[str]:
    """The same as lines of GitHub-flavored Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    yield f"**before:** {contrast.before}<br>**after:** {contrast.after}"
    yield ""
    yield line(_COLUMNS)
    yield line(["---"] + ["---:"] * (len(_COLUMNS) - 1))
    for title, rows in _sections(contrast):
        yield line([f"**{title}**"] + [""] * (len(_COLUMNS) - 1))
        for row in rows:
            yield line(_cells(row, ""))
    yield ""
    if letters := _letter_rows(contrast):
        yield line(_LETTER_COLUMNS)
        yield line(["---"] + ["---:"] * (len(_LETTER_COLUMNS) - 1))
        yield from map(line, letters)
        yield ""
    for remark in _remarks(contrast, confidence):
        yield f"- {remark}"


def as_html(contrast: Contrast, confidence: float) -> str:
    """The same as a notebook shows it."""
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for title, found in _sections(contrast):
        rows.append((title, *[""] * (len(_COLUMNS) - 1)))
        rows += [_cells(row, "  " if row.is_group else "    ") for row in found]
    lead = f"<p>before: {escape(contrast.before)}<br>after: {escape(contrast.after)}</p>"
    return lead + html_table(rows, "l" + "r" * (len(_COLUMNS) - 1), _remarks(contrast, confidence))


def _remarks(contrast: Contrast, confidence: float) -> Iterator[str]:
    """How to read the table, and what to be careful about."""
    if any(row.p is not None and row.right_to_wrong is not None for row in contrast.rows):
        yield (
            f"interval: {_percent(confidence)} by Tango's paired score test, not corrected for the number of"
            " tasks; p: exact McNemar test, then corrected over tasks (Holm); lost: right before, wrong after; won: the"
            " other way round"
        )
    if any(row.p is not None and row.right_to_wrong is None for row in contrast.rows):
        yield (
            f"perplexities (lower is better): {_percent(confidence)} interval of the change and p by"
            " Student's t over documents, that of p on the logarithm"
        )
    if _letter_rows(contrast):
        yield (
            "calibrated: acc after each letter's mean log-likelihood is subtracted; rank z: how far, in standard"
            " deviations of guessing, the right choices rank above what guessing gives, without preferred letters"
        )
    for reason, tasks in contrast.unpaired.items():
        shown = ", ".join(tasks[:5]) + (f" and {len(tasks) - 5} more" if len(tasks) > 5 else "")
        yield f"no paired statistics for {shown}: {reason}"
    for name, (before, after) in contrast.settings.items():
        yield f"the runs differ in {name}: {before} and {after}"
    for which, names in (("before", contrast.only_before), ("after", contrast.only_after)):
        if names:
            yield f"only in {which}: {', '.join(names)}"
    yield from contrast.notes


def _cells(row: Difference, indent: str) -> tuple[str, ...]:
    interval = ""
    if row.low is not None and row.high is not None:
        interval = f"{number_text(row.low, signed=True)} to {number_text(row.high, signed=True)}"
    return (
        indent + row.alias + ("" if row.caveat is None else f" ({row.caveat})"),
        _count(row),
        row.metric,
        number_text(row.before),
        number_text(row.after),
        number_text(row.difference, signed=True),
        interval,
        probability_text(row.p),
        probability_text(row.p_holm),
        "" if row.right_to_wrong is None else str(row.right_to_wrong),
        "" if row.wrong_to_right is None else str(row.wrong_to_right),
    )


def _letter_rows(contrast: Contrast) -> list[tuple[str, ...]]:
    """What is left without a preference for letters: of groups, and of tasks that are in none of these."""
    grouped = {leaf for row in contrast.rows if row.is_group for leaf in row.leaves}
    rows = []
    for row in contrast.rows:
        ranks = (row.letters_before.rank, row.letters_after.rank)
        if row.metric != "acc" or row.name in grouped or not any(ranks):
            continue
        calibrated = (row.letters_before.calibrated, row.letters_after.calibrated)
        rows.append(
            (
                row.alias,
                *("" if one is None else f"{one.value:.4f}" for one in calibrated),
                *("" if one is None else f"{one.z:+.1f}" for one in ranks),
                probability_text(None if ranks[1] is None else ranks[1].p),
            )
        )
    return rows


def _sections(contrast: Contrast) -> Iterator[tuple[str, list[Difference]]]:
    for section, title in SECTIONS.items():
        if rows := list(contrast.section(section)):
            yield title, rows


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    return in_columns(rows, "l" + "r" * (len(rows[0]) - 1), has_header=True)


def _count(row: Difference) -> str:
    if row.n is None:
        return ""
    most = max(asked or 0 for asked in row.asked)
    return str(row.n) if row.n >= most else f"{row.n} of {most}"


def _percent(value: float) -> str:
    """0.95 as 95%, 0.999 as 99.9%."""
    return f"{100 * value:.6g}%"


def probability_text(p: float | None) -> str:
    """A p-value with four digits after the point, or none."""
    if p is None:
        return ""
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"
