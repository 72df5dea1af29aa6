"""Runs of a few steps are what every test here is made of; what is thought of them is the subject of few."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.expected_warnings import VERDICTS

if TYPE_CHECKING:
    import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(VERDICTS)
