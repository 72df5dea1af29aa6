"""What docs/scale.md says that evaluations take is what the formulas give, and these are near what was measured."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest

from tests.conftest import CHECKOUT


@pytest.fixture(scope="module")
def simulate() -> Any:
    spec = importlib.util.spec_from_file_location("simulate", CHECKOUT / "benches" / "simulate.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules["simulate"] = found
    try:
        spec.loader.exec_module(found)
        yield found
    finally:
        del sys.modules["simulate"]


def test_the_docs_have_what_the_formulas_give(simulate: Any) -> None:
    text = (CHECKOUT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert "\n".join(simulate.check_table()) in text
    assert "\n".join(simulate.table()) in text


def test_the_formulas_are_near_what_was_measured(simulate: Any) -> None:
    off = {what: found / measured - 1 for what, found, measured, _ in simulate.checks()}
    assert off.pop("bytes read, 3 GB streamed on a CPU") == pytest.approx(-0.17, abs=0.01)  # the docs say why
    assert max(map(abs, off.values())) < 0.06


def test_sizes_are_those_of_the_models(simulate: Any) -> None:
    gigabytes = {model.name: model.all_bytes / 1e9 for model in simulate.MODELS}
    expected = {"Mistral-7B": 14.5, "Qwen3-32B": 65.5, "Llama-70B": 141, "Llama-405B": 812, "Qwen3-235B-A22B": 470}
    assert gigabytes == pytest.approx(expected, rel=0.01)
    moe = simulate.MODELS[-1]
    assert moe.used * moe.layers == pytest.approx(21e9, rel=0.05)


def test_what_does_not_fit_is_streamed_in_chunks_or_refused(simulate: Any) -> None:
    small = simulate.Machine(
        name="small", dense=1e12, sparse=1e12, disk=1e9, device=4e9, host=0, size=2, batch=1024, start=0
    )
    found = simulate.cost(simulate.MISTRAL, small, simulate.MMLU)
    assert found.chunks > 1
    assert found.read == found.chunks * simulate.MISTRAL.all_bytes
    assert found.device <= 4e9
    assert simulate.cost(simulate.MODELS[3], small, simulate.WMDP) is None
