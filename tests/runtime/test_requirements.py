"""Which versions of other packages are too old, which were tested, and that `pyproject.toml` says the same."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from wmdp_fast import demo
from wmdp_fast.runtime import requirements
from wmdp_fast.runtime.requirements import OPTIONAL_PACKAGES, PACKAGES, PYTHON

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def bounds(dependencies: list[str]) -> dict[str, str]:
    return dict(dependency.split(">=") for dependency in dependencies if ">=" in dependency)


def install(folder: Path, package: str, version: str) -> None:
    """What `importlib.metadata` knows of a package."""
    metadata = folder / f"{package}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n", encoding="utf-8")


def test_the_bounds_are_those_of_the_project():
    ours = {package: known.bound for package, known in PACKAGES.items()}
    assert ours.items() <= bounds(PROJECT["dependencies"]).items()
    assert bounds(PROJECT["optional-dependencies"]["peft"]) == {"peft": OPTIONAL_PACKAGES["peft"].bound}
    assert PROJECT["requires-python"] == f">={PYTHON.bound}"


@pytest.mark.parametrize(
    ("installed", "problem"),
    [("2.9.1+cu126", "torch 2.9.1+cu126 is too old: wmdp-fast needs 2.10 or later"), ("2.10.0", None), ("3", None)],
)
def test_what_is_too_old(installed: str, problem: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, "torch", installed)
    monkeypatch.syspath_prepend(tmp_path)
    found = requirements.too_old("torch")
    assert found == (problem and f"{problem}: pip install 'torch>=2.10'")


def test_what_was_tested_is_said():
    newest = PACKAGES["torch"].newest
    assert requirements.tested_with("torch", f"{newest}+cu130") == f"tested: 2.10.0 to {newest}"
    assert requirements.tested_with("torch", "99.0") == f"newer than what was tested: 2.10.0 to {newest}"
    assert requirements.tested_with("python", "3.14.9") == "tested: 3.11 to 3.14"
    assert requirements.tested_with("python", "3.15.0") == "newer than what was tested: 3.11 to 3.14"
    assert requirements.tested_with("tokenizers", "0.1") is None


def test_python_without_docstrings_is_refused_in_one_line():
    command = ["eval", str(demo.model_path()), "--tasks", str(demo.questions_path("forget")), "--limit", "1"]
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "wmdp_fast", *command], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: Python leaves docstrings out (-OO or PYTHONOPTIMIZE=2)")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("command", "lines"), [(("eval",), 1), (("doctor",), 0)])
def test_an_old_version_is_refused_in_one_line(command: tuple[str, ...], lines: int, tmp_path: Path):
    install(tmp_path, "transformers", "4.57.6")
    if command == ("eval",):
        command = ("eval", str(demo.model_path()), "--tasks", str(demo.questions_path("forget")), "--limit", "1")
    done = subprocess.run(
        [sys.executable, "-m", "wmdp_fast", *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == lines
    said = [line for line in (done.stdout + done.stderr).splitlines() if "transformers 4.57.6 is too old" in line]
    assert len(said) == 1
