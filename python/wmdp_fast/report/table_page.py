"""A table of models under attack as one HTML page, with the curves of the attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmdp_fast.report import figures
from wmdp_fast.report.attacks import compared_by_step, gather_attacks
from wmdp_fast.report.page import attack_figures, rendered
from wmdp_fast.robustness.table.formats import cell_text, test_rows

if TYPE_CHECKING:
    from wmdp_fast.robustness.table.content import Contents


def table_html(table: Contents) -> str:
    """The page, which carries everything it shows.

    Args:
        table: From `wmdp_fast.table`.

    Raises:
        WmdpFastError: matplotlib or jinja2 is missing; says what to install.
    """
    together = compared_by_step(table.attacked) if len(table.attacked) > 1 else []
    return rendered(
        "table.html",
        table=table,
        rows=[(row, [cell_text(measure, row) for measure in table.measures]) for row in table.rows],
        tests=test_rows(table),
        together=[figures.curves(f"together-{number}", plot) for number, plot in enumerate(together)],
        attacks=attack_figures([gather_attacks(result, name) for name, result in table.attacked.items()]),
    )
