"""Fine-tuning on retain documents, the row to compare with."""

from __future__ import annotations

import pytest

from tests.reference.methods import finetune as plain
from tests.support import unlearning_runs as runs
from tests.support.method_twins import FAMILIES, SETTINGS, assert_same_as_plain
from wmdp_fast.unlearning.methods.finetune import FinetuneConfig


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_plain_one(family: str) -> None:
    assert_same_as_plain(family, FinetuneConfig(**SETTINGS), plain.loss)


def test_forget_documents_are_measured_and_nothing_is_said_against_keeping_them() -> None:
    result = runs.unlearn(runs.model("llama"), FinetuneConfig(**SETTINGS))
    assert {row["forget_loss"] for row in result.metrics} == {0.0}
    assert all(row["forget_nll"] > 1 for row in result.metrics)
    assert result.metrics[-1]["retain_nll"] != result.metrics[0]["retain_nll"]
    assert result.findings.verdict is None
