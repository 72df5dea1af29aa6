"""What `make wheel` left in dist/, a source distribution and the wheel built from it: their files, and its installing.

It is installed without dependencies, into an environment that has numpy only: torch brings gigabytes, and what these
tests are after is whether the files, the extension and the entry point arrive and work where no checkout is.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import wmdp_fast

ROOT = Path(__file__).parent.parent
MAX_WHEEL_BYTES = 20_000_000

QUESTIONS = '{"question": "Which of these is a bird?", "choices": ["oak", "wren", "trout", "mint"], "answer": 1}\n'


def built(pattern: str) -> Path:
    found = sorted((ROOT / "dist").glob(pattern))
    if not found:
        pytest.skip(f"no dist/{pattern}: `make wheel` builds it")
    assert len(found) == 1, f"{found}: `make wheel` leaves exactly one"
    return found[0]


@pytest.fixture(scope="module")
def wheel() -> Path:
    return built("*.whl")


@pytest.fixture(scope="module")
def sdist() -> Path:
    return built("*.tar.gz")


def test_the_wheel_serves_every_python_from_3_11_and_is_small(wheel):
    assert wheel.name.startswith(f"wmdp_fast-{wmdp_fast.__version__}-cp311-abi3-")
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


def test_the_wheel_holds_the_package_its_types_and_its_license_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    report = ("report/page.html", "report/questions.js", "report/style.css")
    for wanted in ("_rust.abi3.so", "_rust.pyi", "py.typed", "cli/__init__.py", *report):
        assert f"wmdp_fast/{wanted}" in names
    assert {name.rpartition("/")[2] for name in names if "/licenses/" in name} == {"LICENSE", "THIRD-PARTY.txt"}
    assert any("/sboms/" in name for name in names)
    assert {name.partition("/")[0] for name in names} == {"wmdp_fast", f"wmdp_fast-{wmdp_fast.__version__}.dist-info"}
    assert sum(name.endswith(".so") for name in names) == 1


def test_the_source_distribution_holds_what_the_build_needs(sdist):
    root = f"wmdp_fast-{wmdp_fast.__version__}"
    with tarfile.open(sdist) as archive:
        names = set(archive.getnames())
    for wanted in (
        "Cargo.toml",
        "Cargo.lock",
        "rust/core/Cargo.toml",
        "rust/bindings/src/lib.rs",
        "README.md",
        "LICENSE",
        "THIRD-PARTY.txt",
    ):
        assert f"{root}/{wanted}" in names
    assert not any(name.endswith((".so", ".parquet")) for name in names)


def test_citation_and_changelog_are_of_this_version():
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {wmdp_fast.__version__}" in lines
    releases = re.findall(
        r"^## (\d\S*) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    )
    assert releases[0][0] == wmdp_fast.__version__
    assert f"date-released: {releases[0][1]}" in lines


def test_only_licenses_that_ask_to_be_named_are_allowed():
    chosen = runpy.run_path(str(ROOT / "rust" / "third_party.py"))["chosen"]
    for expression, license_ in (
        ("MIT/Apache-2.0", "MIT"),
        ("Apache-2.0 OR GPL-2.0", "Apache-2.0"),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", "MIT AND Unicode-3.0"),
        ("Apache-2.0 WITH LLVM-exception", "Apache-2.0 WITH LLVM-exception"),
        ("GPL-3.0-only", None),
        ("MIT AND GPL-2.0", None),
        ("", None),
    ):
        assert chosen(expression) == license_, expression


@pytest.mark.slow
def test_it_installs_and_runs_where_no_checkout_is(wheel, tmp_path):
    """The source distribution too has what it needs, since the wheel is built from it."""
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "numpy"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)

    questions = tmp_path / "birds.jsonl"
    questions.write_text(QUESTIONS, encoding="utf-8")
    code = f"import wmdp_fast; print(wmdp_fast.__file__, len(wmdp_fast.load_questions({str(questions)!r})))"
    where, number = run(python, "-c", code, cwd=tmp_path).stdout.split()
    assert Path(where).is_relative_to(environment)
    assert number == "1"

    command = environment / "bin" / "wmdp-fast"
    assert run(command, "--version", cwd=tmp_path).stdout == f"wmdp-fast {wmdp_fast.__version__}\n"
    doctor = run(command, "doctor", "--json", cwd=tmp_path, code=1)
    problems = {finding["name"] for finding in json.loads(doctor.stdout) if finding["problem"]}
    assert problems >= {"torch", "transformers"}
    assert "extension" not in problems, "the installed extension is a debug build"


def run(*command: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done
