"""A table of models under attack as one HTML page, with the curves of the attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wmdp_fast._rust import __version__
from wmdp_fast.report import figures, svg
from wmdp_fast.report.attacks import compared_by_step, gather_attacks
from wmdp_fast.report.page import attack_figures, environment_of_pages, file
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
    environment = environment_of_pages()
    together = compared_by_step(table.attacked) if len(table.attacked) > 1 else []
    html = environment.from_string(file("table.html")).render(
        shared=environment.from_string(file("shared.html")).module,
        table=table,
        rows=[(row, [cell_text(measure, row) for measure in table.measures]) for row in table.rows],
        tests=test_rows(table),
        together=[figures.curves(f"together-{number}", plot) for number, plot in enumerate(together)],
        attacks=attack_figures([gather_attacks(result, name) for name, result in table.attacked.items()]),
        style=file("style.css"),
        version=__version__,
    )
    return svg.printable(html)
