"""The benchmark of the lm-eval backend: the real lm-eval asks both models, and other numbers make it fail."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from wmdp_fast import cli, demo
from wmdp_fast.bench.embed import _failures

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_both_models_are_asked_the_same_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-eval is not installed: pip install 'wmdp-fast[lm-eval]'")
    argv = ["bench", "embed", str(demo.model_path()), "--tasks", str(demo.questions_path("forget")), "--limit", "4"]
    page = tmp_path / "results" / "report.md"
    assert cli.main([*argv, "--num-fewshot", "5", "--json", "--report", str(page)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["failures"] == []
    # Of four questions four choices each, and a quarter as many documents.
    assert report["ours"]["units"] == {"texts": 16, "documents": 1, "tasks": 16}
    hf, ours = report["peers"]["hf"], report["ours"]
    for phase in ("texts", "documents", "tasks", "total"):
        assert report["ratio"]["hf"][phase] == pytest.approx(hf["seconds"][phase] / ours["seconds"][phase])
    assert ours["seconds"]["total"] == pytest.approx(sum(ours["seconds"][phase] for phase in ours["units"]))
    assert max(ours["notes"]["largest_difference"].values()) < 2e-3
    text = page.read_text(encoding="utf-8")
    assert all(part in text for part in ("| texts |", "ratio to hf", "largest difference in tasks", "- torch: "))


def test_other_numbers_are_failures() -> None:
    theirs = np.array([-1.0, -8000.0])
    assert _failures("texts", theirs + np.array([9e-5, 1e-3]), theirs, "float32") == []
    [failure] = _failures("texts", theirs + np.array([2e-4, 0.0]), theirs, "float32")
    assert failure.startswith("texts: 1 of 2 log-likelihoods are not those of hf, the first -0.999800 where hf has -1.")
    assert len(_failures("documents", theirs + np.array([0.0, 1e-2]), theirs, "float32")) == 1
    assert _failures("texts", theirs + 0.5, theirs, "bfloat16") == []
    assert len(_failures("texts", theirs + np.array([0.0, np.nan]), theirs, "bfloat16")) == 1


@pytest.mark.parametrize(
    ("wrong", "message"), [(["--batch-size", "0"], "at least 1"), (["--limit", "0"], "at least 1")]
)
def test_wrong_values_are_wrong_usage(wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench", "embed", "M", *wrong])
    assert message in capsys.readouterr().err
