"""Public names have an example in their docstring, and what the examples print is what stands there."""

from __future__ import annotations

import doctest
import inspect
import warnings
from typing import TYPE_CHECKING

import pytest

import wmdp_fast
from wmdp_fast.unlearning.rmu import presets
from wmdp_fast.unlearning.training_config import TrainingConfig

if TYPE_CHECKING:
    from pathlib import Path

# What one writes a method of unlearning with: docs/methods.md shows how, and its code runs.
OF_METHODS = {
    *("AdapterConfig", "CardText", "Findings", "LanguageModel", "LoRA", "Method", "MethodState", "SearchAxis", "Setup"),
    *("StepInput", "StepOutput", "TrainingConfig"),
}


def should_have_examples(name: str) -> bool:
    """Whether a name is to have some: settings of RMU do, those of other methods need not."""
    public = getattr(wmdp_fast, name)
    settings = isinstance(public, type) and issubclass(public, TrainingConfig) and public is not wmdp_fast.RMUConfig
    return name != "__version__" and name not in OF_METHODS and not settings


NAMES = sorted(filter(should_have_examples, wmdp_fast.__all__))


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
