"""Every code block of the README and the documentation runs, or says why it cannot; the site builds without a warning.

Blocks of a page run in order, in one temporary folder and, for Python, with the same names. A block that cannot run has
a comment just above it: `<!-- not run: why -->`; one whose last command has to fail, `<!-- fails: why -->`. A block
below `<!-- output -->` has lines that the commands before it print, but for their numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.conftest import CHECKOUT
from tests.support.expected_warnings import ONE_LETTER, VERDICTS, WIDER_TYPE
from wmdp_fast import cli

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCS = CHECKOUT / "docs"
PAGES = [CHECKOUT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if page.name != "options.md")]

# Run once for all tests.
DEMO = "wmdp-fast demo --output demo --quiet"

# Languages whose blocks are commands or code; a block of another one (text, json) is only shown.
RUN = {"python", "py", "sh", "bash", "console", "shell"}
BLOCK = re.compile(
    r"(?:^<!-- (?P<kind>not run|fails|output)(?:: (?P<reason>[^\n]+?))? -->\n+)?"
    r"^```(?P<language>[^\n`]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    code: str
    kind: str | None

    @property
    def runs(self) -> bool:
        """Whether the block is code: by its language or, if it has none, by what stands in it."""
        if self.language:
            return self.language in RUN
        return re.match(r"\$ |wmdp-fast |make |pip |import |from ", self.code) is not None


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            line=text.count("\n", 0, found.start("code")),
            language=found["language"].strip(),
            code=found["code"],
            kind=found["kind"],
        )
        for found in BLOCK.finditer(text)
    ]


def commands_of(block: Block) -> Iterator[str]:
    """The commands of a block; where some begin with `$ `, everything else is what they print."""
    lines = block.code.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return (line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def run_command(command: str, folder: Path) -> int:
    """Runs ours in this process, so that torch is imported once, and everything else in a shell."""
    words = shlex.split(command, comments=True)
    if words[0] == "wmdp-fast" and not set(words) & {"|", ">", "<", "&&", ";"}:
        try:
            return cli.main(words[1:])
        except SystemExit as left:  # argparse leaves like this.
            return int(left.code or 0)
    tools = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])  # noqa: PTH120
    environment = {**os.environ, "PATH": tools}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, check=False, timeout=120).returncode


def without_numbers(line: str) -> str:
    """A line without its digits and spacing, which depend on the machine and on each other."""
    return re.sub(r"[\d\s]+", " ", line).strip()


@ONE_LETTER
@VERDICTS
@WIDER_TYPE
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page, tmp_path, monkeypatch, request):
    if DEMO in page.read_text(encoding="utf-8"):
        # What it leaves there; that it does is for `tests/demo/test_demo.py`, and takes long.
        shutil.copytree(request.getfixturevalue("demo_output")[0], tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WMDP_FAST_DEBUG", raising=False)
    names: dict[str, object] = {"__name__": "__main__"}
    output = io.StringIO()
    for block in blocks_of(page):
        if block.kind == "output":
            lines = set(map(without_numbers, output.getvalue().splitlines()))
            assert [line for line in block.code.splitlines() if without_numbers(line) not in lines] == []
        if block.kind == "not run" or not block.runs:
            continue
        where = f"{page.relative_to(CHECKOUT)}, line {block.line}"
        if block.language in {"python", "py"} or block.code.startswith(("import ", "from ")):
            exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
            continue
        printed = io.StringIO()
        codes = []
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(output):
            for command in commands_of(block):
                if command == DEMO:
                    continue
                codes.append(run_command(command, tmp_path))
                if codes[-1] != 0 and block.kind != "fails":
                    pytest.fail(f"{where}: `{command}` exits with {codes[-1]}: {printed.getvalue()[-2000:]}")
        if block.kind == "fails":
            assert codes[-1] == 1, f"{where} is marked as failing, but exits with {codes[-1]}"


def test_markers_stand_directly_above_a_block_that_would_run():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        marked = [block for block in blocks_of(page) if block.kind in ("not run", "fails")]
        assert len(re.findall(r"<!-- (?:not run|fails):", text)) == len(marked), f"{page}: a marker without a block"
        assert all(block.runs for block in marked), f"{page}: a marker above a block that is only shown"


def test_no_page_is_without_its_blocks():
    """The pattern above finds every fence, so that no block escapes for want of a closing one."""
    for page in PAGES:
        fences = re.findall(r"^\s*```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks_of(page)), page


def test_blocks_are_told_apart():
    def block(language: str, code: str) -> Block:
        return Block(line=1, language=language, code=code, kind=None)

    assert block("python", "1 + 1\n").runs
    assert block("", "wmdp-fast tasks\n").runs
    assert not block("text", "wmdp-fast tasks\n").runs
    assert not block("", "rust/core/    the core\n").runs
    assert list(commands_of(block("console", "$ a \\\n  --b\nprinted\n$ c\n"))) == ["a    --b", "c"]
    assert list(commands_of(block("sh", "# why\na --b\n\nc  # what\n"))) == ["a --b", "c  # what"]


def options_page() -> str:
    spec = importlib.util.spec_from_file_location("make_options", DOCS / "make_options.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.page())


def all_options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from all_options(child)
        elif not isinstance(action, argparse._HelpAction | argparse._VersionAction):
            for name in action.option_strings:
                yield parser.prog, name


def test_the_page_of_options_has_every_option_of_every_command():
    sections = re.split(r"^## ", options_page(), flags=re.MULTILINE)
    by_command = {section.partition("\n")[0]: section for section in sections[1:]}
    options = list(all_options(cli._parser()))
    assert len(options) > 30
    missing = [(prog, name) for prog, name in options if f"`{name}`" not in by_command[prog]]
    assert missing == []


def test_the_page_of_options_in_the_repository_is_what_the_commands_say():
    written = (DOCS / "options.md").read_text(encoding="utf-8")
    assert written == options_page(), "docs/options.md is out of date: python docs/make_options.py"


def test_every_extra_is_in_the_table_of_extras():
    with (CHECKOUT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    page = (DOCS / "install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == set(extras)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The documentation as `make docs` builds it, without the references of the languages."""
    if importlib.util.find_spec("material") is None:
        pytest.skip("needs the extra `docs` (mkdocs-material)")
    home = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, home / "docs")
    shutil.copy(CHECKOUT / "mkdocs.yml", home)
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"],
        cwd=home,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return home / "site"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(PAGES) - 1
    for page in pages:
        html = page.read_text(encoding="utf-8")
        # What a browser fetches by itself; a link is fetched only by a reader who follows it.
        fetched = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(https?:[^\"' >]+)", html)
        links = re.findall(r"<link\b[^>]*>", html)
        fetched += [link for link in links if re.search(r"stylesheet|preconnect|icon", link) and "http" in link]
        assert fetched == [], page


@pytest.mark.slow
def test_the_site_can_be_read_and_searched_from_a_folder(site):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs Chromium: apt install chromium")
    messages: list[str] = []
    requests: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((site / "index.html").as_uri())
        # Typed, not filled in: the search wakes up when its field is entered.
        page.click("input.md-search__input")
        page.keyboard.type("calibration", delay=30)
        page.locator(".md-search-result__item").first.wait_for(state="attached", timeout=60_000)
        browser.close()
    assert messages == []
    assert [url for url in requests if not url.startswith("file:")] == []
