"""Imports go undisturbed by collections, and whoever has switched those off finds them so."""

from __future__ import annotations

import contextlib
import gc

import pytest

from wmdp_fast.runtime.garbage import not_collecting


@pytest.mark.parametrize("enabled", [True, False])
def test_collections_are_as_before(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with contextlib.suppress(ImportError), not_collecting():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
