"""From a matplotlib figure to an SVG element that belongs to an HTML page.

matplotlib writes a document with fixed colors. Here it draws in marker colors, which then become CSS variables of the
page, so that one drawing serves light, dark and print. Ids get the figure's name in front, for several figures share a
page.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import warnings
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import WmdpFastError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010101"
GRID = "#020202"

# What matplotlib draws in, and what the page knows it as.
_VARIABLES = {
    INK: "var(--ink)",
    GRID: "var(--grid)",
    "#030303": "var(--before)",
    "#040404": "var(--after)",
    "#050505": "var(--third)",
    "#060606": "var(--fourth)",
    "#070707": "var(--forget)",
    "#080808": "var(--retain)",
}


@dataclass(frozen=True)
class Series:
    """How a series looks; told apart by more than color."""

    line: str
    fill: str
    dashes: Any
    marker: str


SERIES = {
    "before": Series("#030303", "#030303", (0, (4, 1.5)), "s"),
    "after": Series("#040404", "#040404", "solid", "o"),
    "third": Series("#050505", "#050505", (0, (1, 1)), "^"),
    "fourth": Series("#060606", "#060606", (0, (5, 1, 1, 1)), "D"),
    "forget": Series("#070707", "#070707", (0, (6, 1.5)), "v"),
    "retain": Series("#080808", "#080808", "solid", "P"),
}

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "path.simplify_threshold": 0.3,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "wmdp-fast",  # the same numbers give the same bytes
    "text.color": INK,
    "text.parse_math": False,  # a label is a label, dollar signs and all
    "xtick.color": INK,
    "xtick.labelsize": 8,
    "ytick.color": INK,
    "ytick.labelsize": 8,
}


def cycle() -> Iterator[str]:
    """The names of the looks of any number of series, again from the start after the fourth."""
    return itertools.cycle(["after", "before", "third", "fourth"])


@contextlib.contextmanager
def plot(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """An empty figure of that size in inches, in the report's style; no display and no global state is used.

    Raises:
        WmdpFastError: matplotlib is missing; says what to install.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError:
        raise WmdpFastError("reports need matplotlib and jinja2: pip install 'wmdp-fast[plots]'") from None
    with rc_context(_STYLE), warnings.catch_warnings():
        # A label may be in any script; the reader's browser has the font, matplotlib only measures.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def write(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an SVG element with a title and a description for those who do not see it.

    Args:
        figure: What `plot` gave, drawn upon.
        name: An id that no other figure of the page has.
        title: A few words.
        description: What the figure shows.
    """
    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    return adapt(written.getvalue(), name, title, description)


def adapt(document: bytes, name: str, title: str, description: str) -> str:
    """The SVG document that matplotlib wrote as an element of the page; see `write`."""
    root = ET.fromstring(document)  # noqa: S314 (matplotlib's own output of a moment ago)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"}:
                parent.remove(child)
    for element in root.iter():
        _adapt_attributes(element, name)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    for tag, text in (("desc", description), ("title", title)):
        told = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{tag}"})
        told.text = printable(text)
        root.insert(0, told)
    ET.register_namespace("", _SVG)
    return re.sub(r"\s*\n\s*", "\n", ET.tostring(root, encoding="unicode"))


def _adapt_attributes(element: ET.Element, name: str) -> None:
    for key, value in list(element.attrib.items()):
        if key == "id":
            element.set(key, f"{name}-{value}")
        elif key == f"{{{_XLINK}}}href":
            del element.attrib[key]
            element.set("href", value.replace("#", f"#{name}-"))
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))
        elif key == "style":
            element.set(key, _page_style(value))


def _page_style(style: str) -> str:
    for color, variable in _VARIABLES.items():
        style = style.replace(color, variable)
    # Keep the size; the typeface is the page's.
    style = re.sub(r"font: (?:\w+ )*?([\d.]+px)[^;]*", r"font-size: \1", style)
    return re.sub(r"font-family: [^;]*;?", "", style)


def printable(text: str) -> str:
    """Without the control characters that XML and HTML do not allow."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\N{REPLACEMENT CHARACTER}", text)
