"""The report in a real browser: Chromium without a window, driven by playwright, with axe-core looking for barriers.

Chromium is Debian's (`apt install chromium`) or any on the PATH; playwright and axe are the extra `browser`.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("matplotlib", reason="needs the extra `plots`")
pytest.importorskip("playwright", reason="needs the extra `browser`")
pytest.importorskip("axe_playwright_python", reason="needs the extra `browser`")

from axe_playwright_python.sync_playwright import Axe
from playwright import sync_api

from tests.support import report_examples, sweep_examples
from tests.support.report_examples import HOSTILE
from tests.support.thorough import THOROUGH
from wmdp_fast.report import page as report_page
from wmdp_fast.report.sweep import sweep_html

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt install chromium", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SIZES = {"desktop": (1280, 900), "phone": (390, 844), "small": (1056, 800), "wide": (1920, 1080)}

LONG = "data/questions/mmlu_high_school_government_and_politics_and_more_test.jsonl"


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        # The sandbox needs rights that a container does not give; the pages are our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Reports by kind: of WMDP and MMLU, of one model only, with hostile names and texts, and of sweeps."""
    folder = tmp_path_factory.mktemp("reports")
    reports = {
        "full": report_examples.report(),
        "single": report_examples.report(compared=False, unlearned=False, groups=("wmdp",)),
        "hostile": report_examples.report(label=HOSTILE, text=HOSTILE, groups=("wmdp",)),
    }
    made = {name: folder / f"{name}.html" for name in reports}
    for name, report in reports.items():
        made[name].write_text(report_page.render(report), encoding="utf-8")
    for name, label in (("sweep", LONG), ("hostile sweep", HOSTILE)):
        made[name] = folder / f"{name}.html"
        made[name].write_text(sweep_html(sweep_examples.result(label)), encoding="utf-8")
    return made


class Opened:
    """A page that was opened, and what it did on its own."""

    def __init__(self, browser: sync_api.Browser, file: Path, size: str = "desktop", scheme: str = "light") -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.messages.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def rows(self) -> list[list[str]]:
        """The cells of the questions' table."""
        return self.page.eval_on_selector_all(
            "#questions-table tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
        )

    def status(self) -> str:
        return self.page.locator("#questions-status").inner_text()


@pytest.fixture
def opened(browser, files) -> Iterator[Opened]:
    one = Opened(browser, files["full"])
    yield one
    one.context.close()


@pytest.mark.parametrize(
    ("kind", "size", "scheme", "searched"),
    [
        ("full", "desktop", "light", True),
        ("full", "desktop", "dark", THOROUGH),
        ("full", "small", "dark", THOROUGH),
        ("full", "wide", "light", THOROUGH),
        ("full", "phone", "light", THOROUGH),
        ("full", "phone", "dark", True),
        ("single", "phone", "light", True),
        ("hostile", "phone", "dark", True),
        ("sweep", "desktop", "light", True),
        ("sweep", "phone", "dark", True),
        ("hostile sweep", "phone", "light", True),
    ],
)
def test_a_report_opens_quietly_and_without_barriers(kind, size, scheme, searched, browser, files):
    one = Opened(browser, files[kind], size, scheme)
    # Everything that can be opened is looked at, too.
    one.page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    if searched:  # which takes seconds: each kind of page in light and dark, and on a desktop and a phone
        violations = Axe().run(one.page).response["violations"]
        assert [(found["id"], [node["target"] for node in found["nodes"]][:3]) for found in violations] == []
    assert one.messages == []
    assert one.requests == [files[kind].as_uri()]
    # Nothing sticks out on the right: only tables scroll, by themselves.
    assert one.page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
    one.context.close()


@pytest.mark.parametrize("size", ["small", "desktop", "wide"])
@pytest.mark.parametrize("kind", ["full", "single", "sweep"])
def test_tables_and_charts_fit_the_page_where_there_is_room(kind, size, browser, files):
    one = Opened(browser, files[kind], size)
    if kind != "sweep":
        # The longest names stand in the table.
        one.page.select_option("#questions-task", index=1 if kind == "single" else 40)
    clipped = """[...document.querySelectorAll("main > section > .scroll")]
        .filter(part => part.scrollWidth > part.clientWidth).map(part => part.getAttribute("aria-label"))"""
    assert one.page.evaluate(clipped) == []
    widths = one.page.evaluate("""() => {
        const content = document.querySelector("main").clientWidth - 32;
        return [...document.querySelectorAll(".dots, figure.wide svg[role=img]")]
            .filter(chart => chart.clientWidth > 0).map(chart => chart.clientWidth / content);
    }""")
    assert widths
    assert all(width == pytest.approx(1, abs=0.01) for width in widths)
    one.context.close()


@pytest.mark.parametrize("size", ["phone", "desktop"])
def test_a_sweeps_drawing_is_shown_once_in_letters_one_can_read(size, browser, files):
    one = Opened(browser, files["sweep"], size)
    heights = one.page.evaluate("""[...document.querySelectorAll("figure svg[role=img]")]
        .filter(drawing => drawing.clientWidth > 0)
        .flatMap(drawing => [...drawing.querySelectorAll("text")].map(text => text.getBoundingClientRect()))
        .map(box => Math.min(box.width, box.height))""")
    shown = one.page.evaluate("""[...document.querySelectorAll("figure svg[role=img]")]
        .filter(drawing => drawing.clientWidth > 0).length""")
    assert shown == 1
    assert min(heights) >= 8
    one.context.close()


def test_the_verdict_is_on_the_first_screen(browser, files):
    for kind in ("full", "sweep"):
        one = Opened(browser, files[kind], "desktop")
        box = one.page.locator(".verdicts").bounding_box()
        assert box["y"] + box["height"] < SIZES["desktop"][1]
        one.context.close()


def test_the_table_finds_questions_by_number_hash_task_and_what_happened(opened):
    page = opened.page
    assert opened.status() == "17,710 questions; page 1 of 709"
    first = opened.rows()[0]
    assert first[:2] == ["wmdp_bio", "0"]
    page.fill("#questions-search", first[2] + "0123abcd")  # a whole hash finds its beginning
    assert opened.rows() == [first]
    page.fill("#questions-search", "1986")
    assert [row[:2] for row in opened.rows()] == [["wmdp_cyber", "1986"]]
    page.fill("#questions-search", "")
    page.select_option("#questions-task", label="wmdp_chem")
    assert opened.status().startswith("408 questions")
    page.select_option("#questions-show", "lost")
    rows = opened.rows()
    assert rows
    # Columns: task, number, hash, right answer, before, its probability, after, ...
    assert all(row[4] == row[3] != row[6] for row in rows)


def test_the_table_is_sorted_and_turned_by_keyboard_alone(opened):
    page = opened.page
    page.locator("#questions-table th button", has_text="Change").focus()
    page.keyboard.press("Enter")
    sorted_by = page.locator("#questions-table th[aria-sort]")
    assert sorted_by.get_attribute("aria-sort") == "ascending"
    changes = [float(row[8].replace("\N{MINUS SIGN}", "-")) for row in opened.rows()]
    assert changes == sorted(changes)
    assert changes[0] < -90
    page.keyboard.press("Enter")
    assert sorted_by.get_attribute("aria-sort") == "descending"
    page.locator("#questions-next").focus()
    page.keyboard.press("Space")
    assert "page 2 of 709" in opened.status()
    assert page.locator("#questions-previous").is_enabled()


def test_the_first_stop_of_the_keyboard_leads_past_the_head(opened):
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the numbers"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#content"


def test_hostile_texts_are_shown_and_found_as_text(browser, files):
    one = Opened(browser, files["hostile"])
    assert one.page.evaluate("document.querySelectorAll('img').length") == 0
    assert "<img src=x onerror=alert(1)>" in one.page.locator("h1").inner_text()
    one.page.fill("#questions-search", "<img src=x onerror=alert(1)>")
    assert one.status().startswith("3,668 questions")
    assert "</script><script>alert(1)</script>" in one.rows()[0][-1]
    assert one.messages == []
    one.context.close()


def test_dark_and_light_differ_and_figures_follow(browser, files):
    colors = {}
    for scheme in ("light", "dark"):
        one = Opened(browser, files["full"], scheme=scheme)
        colors[scheme] = one.page.evaluate(
            """() => [
                getComputedStyle(document.body).backgroundColor,
                getComputedStyle(document.querySelector("#calibration-0-heading ~ svg text")).fill,
            ]"""
        )
        one.context.close()
    assert colors["light"] == ["rgb(255, 255, 255)", "rgb(27, 31, 36)"]
    assert colors["dark"] == ["rgb(20, 23, 28)", "rgb(232, 234, 237)"]


def test_on_paper_it_is_light_without_controls_and_a_few_pages(browser, files):
    one = Opened(browser, files["full"], scheme="dark")
    one.page.emulate_media(media="print", color_scheme="dark")
    assert one.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not one.page.locator("#questions-form").is_visible()
    assert not one.page.locator("nav").is_visible()
    one.page.set_viewport_size({"width": 680, "height": 1000})  # A4 within its margins
    assert one.page.evaluate("document.documentElement.scrollWidth") == 680
    pdf = one.page.pdf(format="A4", prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF-")
    assert 4 <= pdf.count(b"/Type /Page\n") <= 14
    one.context.close()
