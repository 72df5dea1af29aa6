"""A table as text, Markdown, LaTeX, CSV, JSON and HTML."""

from __future__ import annotations

import csv as csv_module
import io
import re
from typing import TYPE_CHECKING, Any

from wmdp_fast._rust import __version__
from wmdp_fast.analysis.contrast_table import probability_text
from wmdp_fast.runtime.tables import aligned, html_table, in_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wmdp_fast.robustness.table.content import Cell, Contents, Measure, PairTest, Row

# Characters of a line beyond which text has a column for each model instead.
_WIDE = 120

_TEST_COLUMNS = ("measure", "first", "second", "test", "n", "difference", "95 % interval", "p", "p (Holm)")


def text(table: Contents, *, transpose: bool | None = None) -> str:
    """Aligned text: the table, tests in pairs, notes."""
    rows = _cells(table, transpose=bool(transpose))
    lines = aligned(rows, "l" + "r" * (len(rows[0]) - 1))
    if transpose is None and len(lines[1]) > _WIDE and len(table.measures) > len(table.rows):
        return text(table, transpose=True)
    if table.tests:
        lines += ["", *in_columns(test_rows(table), "llllrrrrr", has_header=True)]
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes)])


def markdown(table: Contents, *, transpose: bool = False) -> str:
    """GitHub-flavored Markdown: the table, tests in pairs, notes."""
    parts = [_markdown_table(_cells(table, transpose=transpose), 1)]
    if table.tests:
        parts.append(_markdown_table(test_rows(table), 3))
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in table.notes)])


def latex(table: Contents, *, transpose: bool = False) -> str:
    """A tabular with booktabs' rules; the notes are comments, for a caption to say what matters of them."""
    header, *rows = _cells(table, transpose=transpose, latex=True)
    lines = [
        *(f"% {_one_line(note)}" for note in table.notes),
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def csv(table: Contents) -> str:
    """A line for each model and measure."""
    written = io.StringIO()
    writer = csv_module.writer(written, lineterminator="\n")
    writer.writerow(["model", "kind", "measure", "value", "low", "high", "n", "results", "label", "note", "source"])
    for row in table.rows:
        for measure in table.measures:
            cell = row.cells.get(measure.key)
            lead, source = [row.name, row.kind, measure.title], "; ".join(row.sources)
            if cell is None:
                missing = row.missing(measure)
                note = missing.text + (f": {missing.why}" if missing.why else "")
                writer.writerow([*lead, "", "", "", "", "", "", note, source])
                continue
            numbers = ["" if one is None else repr(one) for one in (cell.value, cell.low, cell.high, cell.n)]
            hand = "second hand" if cell.second_hand else ""
            writer.writerow([*lead, *numbers, max(1, len(cell.several)), cell.label, hand, source])
    return written.getvalue()


def to_json(table: Contents) -> dict[str, Any]:
    """All of it but the answers."""
    return {
        "wmdp_fast": __version__,
        "measures": [vars(measure) for measure in table.measures],
        "rows": [
            {
                "name": row.name,
                "kind": row.kind,
                "results": row.results,
                "sources": list(row.sources),
                "cells": {key: cell.to_json() for key, cell in row.cells.items()},
                "missing": {
                    measure.key: vars(row.missing(measure))
                    for measure in table.measures
                    if measure.key not in row.cells
                },
            }
            for row in table.rows
        ],
        "tests": [vars(test) for test in table.tests],
        "notes": list(table.notes),
    }


def html(table: Contents) -> str:
    """A bare HTML table, for a notebook."""
    rows = _cells(table, transpose=False)
    return html_table(rows, "l" + "r" * (len(rows[0]) - 1), table.notes)


def value_text(measure: Measure, value: float) -> str:
    """A value as it is shown: shares in percent, steps and nats by three digits, others by two decimals."""
    match measure.unit:
        case "%":
            return f"{100 * value:.1f}"
        case "steps" | "nats":
            return f"{value:.3g}"
        case _:
            return f"{value:.2f}"


def interval_text(measure: Measure, cell: Cell) -> str:
    """The interval of a cell, or the range of several results; nothing if it has none."""
    if cell.low is None or cell.high is None:
        return ""
    ends = f"{value_text(measure, cell.low)}, {value_text(measure, cell.high)}"
    return f"({ends})" if cell.several else f"[{ends}]"


def cell_text(measure: Measure, row: Row) -> str:
    """A cell as text, or what stands in its place."""
    cell = row.cells.get(measure.key)
    if cell is None:
        return row.missing(measure).text
    shown = value_text(measure, cell.value) + ("*" if cell.second_hand else "")
    return " ".join(filter(None, [shown, interval_text(measure, cell), cell.label]))


def _cells(table: Contents, *, transpose: bool, latex: bool = False) -> list[tuple[str, ...]]:
    """Header and rows; in LaTeX's own words if it is for that."""
    word, shown = (_latex_text, _latex_cell) if latex else (str, cell_text)
    rows = [("", *(word(measure.title) for measure in table.measures))]
    rows += [(word(row.name), *(shown(measure, row) for measure in table.measures)) for row in table.rows]
    return list(zip(*rows, strict=True)) if transpose else rows


def test_rows(table: Contents) -> list[tuple[str, ...]]:
    """The tests in pairs as cells, below their header."""
    return [_TEST_COLUMNS, *(_test(table, test) for test in table.tests)]


def _test(table: Contents, test: PairTest) -> tuple[str, ...]:
    titles = {measure.key: measure.title for measure in table.measures}
    return (
        titles[test.measure],
        test.first,
        test.second,
        test.test if test.test == "McNemar" else f"{test.test}, {test.results[0]} and {test.results[1]} results",
        str(test.n),
        f"{100 * test.difference:+.1f}",
        f"[{100 * test.low:+.1f}, {100 * test.high:+.1f}]",
        probability_text(test.p),
        probability_text(test.p_holm),
    )


def _markdown_table(rows: Sequence[Sequence[str]], left: int) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = ["---"] * left + ["---:"] * (len(rows[0]) - left)
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: rf"\{character}" for character in "&%$#_{}"},
}


def _latex_text(told: str) -> str:
    return re.sub(r"[\\~^&%$#_{}]", lambda found: _LATEX[found[0]], _one_line(told))


def _latex_cell(measure: Measure, row: Row) -> str:
    cell = row.cells.get(measure.key)
    if cell is None:
        return _latex_text(row.missing(measure).text)
    shown = value_text(measure, cell.value) + ("$^{*}$" if cell.second_hand else "")
    interval, label = interval_text(measure, cell), _latex_text(cell.label)
    return shown + "".join(rf" {{\scriptsize {one}}}" for one in (interval, label) if one)


def _one_line(told: str) -> str:
    return " ".join(told.split())
