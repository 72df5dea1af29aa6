"""Imports go undisturbed by collections, then and later, and whoever has set these otherwise finds them so."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

import pytest

from wmdp_fast.runtime.garbage import not_collecting, process_of_our_own, set_imports_aside

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _collections_as_before() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.unfreeze()
    yield
    gc.unfreeze()
    (gc.enable if enabled else gc.disable)()


@pytest.mark.parametrize("enabled", [True, False])
def test_collections_are_as_before(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    with contextlib.suppress(ImportError), not_collecting():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled() == enabled
    assert not gc.get_freeze_count()


def test_what_somebody_else_has_frozen_stays_so() -> None:
    gc.enable()
    gc.freeze()
    with not_collecting():
        pass
    assert gc.get_freeze_count()


def test_imports_are_set_aside_once_and_in_a_process_of_our_own() -> None:
    set_imports_aside()
    assert not gc.get_freeze_count()
    for _ in range(2):
        with process_of_our_own():
            with process_of_our_own():
                pass
            assert not gc.get_freeze_count()
            set_imports_aside()
            before = gc.get_freeze_count()
            assert before
            kept = [[number] for number in range(before)]
            set_imports_aside()
            assert gc.get_freeze_count() < len(kept) + before
        assert not gc.get_freeze_count()
