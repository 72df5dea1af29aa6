"""The report's page: nothing in it but what belongs there, whatever the names say; figures that follow the page."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.report_examples import HOSTILE

pytest.importorskip("matplotlib", reason="needs the extra `plots`")
pytest.importorskip("jinja2", reason="needs the extra `plots`")

from tests.support import report_examples
from wmdp_fast.report import figures, page, svg


class Reader(HTMLParser):
    """A page's elements in order, its attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]

    @property
    def data(self) -> dict:
        [raw] = [text for text in self.text if text.startswith('{"hashLength"')]
        return json.loads(raw)


@pytest.fixture(scope="module")
def full() -> str:
    return page.render(report_examples.report())


def test_a_report_of_wmdp_and_mmlu_is_under_a_megabyte(full):
    assert '"count":1987' in full
    assert sum(task["count"] for task in Reader(full).data["tasks"]) > 17_700
    assert len(full.encode()) < 1_000_000


def test_ids_are_unique_and_what_refers_to_one_finds_it(full):
    read = Reader(full)
    ids = read.values("id")
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    wanted = {name for key in ("aria-labelledby", "for") for value in read.values(key) for name in value.split()}
    wanted |= {value[1:] for value in read.values("href") if value.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", full))
    assert wanted - set(ids) == set()


def test_nothing_in_the_page_is_fetched(full):
    read = Reader(full)
    sources = [*read.values("src"), *read.values("href"), *read.values("xlink:href"), *read.values("data")]
    assert [source for source in sources if not source.startswith(("#", "data:,"))] == []
    assert re.findall(r"@import|url\((?!#)", full) == []
    [policy] = [value for value in read.values("content") if value.startswith("default-src")]
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_figures_take_every_colour_from_the_page_and_are_told_in_words(full):
    drawings = re.findall(r'<svg[^>]*role="img".*?</svg>', full, re.DOTALL)
    assert len(drawings) == 6
    for drawing in drawings:
        assert re.findall(r"#[0-9a-fA-F]{6}\b|rgb", drawing) == []
        assert "var(--ink)" in drawing
        assert "<style" not in drawing
        assert re.search(r"<title id=[^>]*>[^<]+</title>\s*<desc id=[^>]*>[^<]{40,}</desc>", drawing)
    # A table of numbers for each.
    assert full.count("<summary>Numbers") == len(drawings)
    # The page draws accuracies itself; their numbers are in the table of all tasks.
    told = [value for value in Reader(full).values("aria-label") if value.startswith("Accuracy with 95 % intervals")]
    assert len(told) == 2
    assert all(len(value) > 200 for value in told)


def test_a_report_without_a_baseline_compares_nothing():
    html = page.render(report_examples.report(compared=False, unlearned=False))
    read = Reader(html)
    assert all(len(task["answers"]) == 1 for task in read.data["tasks"])
    assert "Subjects by accuracy" in html
    assert "right before, wrong now" not in html
    assert "Lower accuracy is not deleted knowledge" not in html


def test_a_report_of_unlearning_says_what_it_does_not_guarantee(full):
    assert "Lower accuracy is not deleted knowledge." in full
    assert "suppress knowledge; they do not remove it" in full


def test_text_of_questions_is_there_only_if_asked_for():
    without = page.render(report_examples.report(unlearned=False, groups=("wmdp",)))
    assert not any("texts" in task for task in Reader(without).data["tasks"])
    with_text = Reader(page.render(report_examples.report(unlearned=False, groups=("wmdp",), text="Is it a wren?")))
    assert with_text.data["tasks"][0]["texts"][0] == ["Is it a wren? 0", "Is it a wren?", "b", "c", "d"]


BENIGN = Reader(page.render(report_examples.report(label="benign", text="benign", groups=("wmdp",))))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(), min_size=1, max_size=30))
@example(HOSTILE)
@example("</title></style></textarea><!--<script>")
@example("$x$ \\alpha % # é 日本 \u202e\ufdd0")
def test_names_and_texts_cannot_change_the_page(text):
    """A page with hostile names everywhere has the elements, and but for values the attributes, of a plain one."""
    read = Reader(page.render(report_examples.report(label=text, text=text, groups=("wmdp",))))
    # A label of several lines is drawn with as many elements, and one with underscores may be broken after them.
    drawn = {"tspan", "text", "g", "use", "path", "defs", "wbr"}
    assert [tag for tag in read.elements if tag not in drawn] == [tag for tag in BENIGN.elements if tag not in drawn]
    assert read.elements.count("script") == 2
    allowed = {(tag, name) for tag, name, _ in BENIGN.attributes}
    assert {(tag, name) for tag, name, _ in read.attributes if tag not in drawn} <= allowed
    assert not any(name.startswith("on") for _, name, _ in read.attributes)
    assert read.data["tasks"][0]["name"] == text
    assert read.data["tasks"][0]["texts"][0][0] == f"{text} 0"


def test_the_same_report_is_the_same_file():
    example = report_examples.report(unlearned=False, groups=("wmdp",))
    assert page.render(example) == page.render(example)


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.348, "\N{MINUS SIGN}34.8"), (0.02, "+2.0"), (0.0, "0.0"), (-0.0004, "0.0"), (0.0006, "+0.1")],
)
def test_changes_are_in_points_with_a_sign(value, text):
    assert figures.points(value) == text


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0, "<\N{NO-BREAK SPACE}0.001"), (0.00099, "<\N{NO-BREAK SPACE}0.001"), (0.001, "0.001"), (0.5, "0.500")],
)
def test_small_probabilities_are_only_called_small(p, text):
    assert page.p_value(p) == text


def test_a_loss_that_falls_by_orders_of_magnitude_is_drawn_on_a_logarithmic_scale():
    curve = report_examples.Curve(name="loss", steps=[0, 1, 2], values=[1000.0, 10.0, 0.1])
    figure = figures.curves("c", report_examples.Plot(title="Loss", unit="loss", curves=[curve]))
    assert "logarithmic" in figure.caption
    assert figure.rows == [("0", "1000"), ("1", "10"), ("2", "0.1")]
    curve = report_examples.Curve(name="loss", steps=[0, 1], values=[0.0, 1e6])
    linear = figures.curves("c", report_examples.Plot(title="Loss", unit="loss", curves=[curve]))
    assert "logarithmic" not in linear.caption


def test_control_characters_are_shown_as_such():
    assert svg.printable("a\x00b\ud800\tc\n") == "a\ufffdb\ufffd\tc\n"
