"""Public names have an example in their docstring, and what the examples print is what stands there."""

from __future__ import annotations

import doctest
import inspect
import warnings
from typing import TYPE_CHECKING

import pytest

import wmdp_fast
from wmdp_fast.unlearning.rmu import presets

if TYPE_CHECKING:
    from pathlib import Path

NAMES = sorted(set(wmdp_fast.__all__) - {"__version__"})


def examples_of(name: str) -> doctest.DocTest:
    """The examples of a name's own docstring; those of a dictionary are its module's."""
    documented = presets if name == "presets" else getattr(wmdp_fast, name)
    return doctest.DocTestParser().get_doctest(inspect.getdoc(documented) or "", {}, name, None, 0)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples write."""
    return tmp_path_factory.mktemp("examples")


def test_every_public_name_has_an_example() -> None:
    assert [name for name in NAMES if not examples_of(name).examples] == []


@pytest.mark.parametrize("name", NAMES)
def test_examples_run_as_they_stand(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    failures: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    with warnings.catch_warnings():
        # That two steps unlearn nothing.
        warnings.simplefilter("ignore", wmdp_fast.WmdpFastWarning)
        runner.run(examples_of(name), out=failures.append)
    assert not failures, "".join(failures)
