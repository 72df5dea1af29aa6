"""The benchmark of methods over logits: workers compute the same, or it fails."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from wmdp_fast import cli
from wmdp_fast.bench import methods as bench
from wmdp_fast.bench.methods import bench_method
from wmdp_fast.bench.methods_worker import MethodJob
from wmdp_fast.bench.rmu_worker import Outcome

JOB = MethodJob(method="npo", shape="tiny", length=16, steps=2)


@pytest.mark.slow
def test_workers_compute_the_same(tmp_path, capsys):
    page = tmp_path / "report.md"
    argv = ["bench", "unlearn", "--method", "npo,graddiff", "--shape", "tiny", "--length", "24", "--steps", "2"]
    argv += ["--dtype", "float32", "--device", "cpu", "--against", "plain", "--json", "--report", str(page)]
    assert cli.main(argv) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [report["work"]["method"] for report in reports] == ["npo", "graddiff"]
    for report in reports:
        plain, ours = report["peers"]["plain"], report["ours"]
        assert plain["notes"]["forget_losses"] == pytest.approx(ours["notes"]["forget_losses"], rel=1e-5)
        assert plain["notes"]["retain_losses"] == pytest.approx(ours["notes"]["retain_losses"], rel=1e-5)
        assert len(ours["notes"]["step_seconds"]) == 2
        assert report["ratio"]["plain"]["step"] == plain["seconds"]["step"] / ours["seconds"]["step"]
        assert report["failures"] == []
    assert page.read_text(encoding="utf-8").count("# bench unlearn") == 2


def outcome(loss: float) -> Outcome:
    return Outcome(1.0, [0.5, 0.5], [loss] * 3, [3.0] * 3, peak_gb=2.0, device="cpu", threads=2)


def test_other_losses_are_a_failure(monkeypatch):
    found = {"wmdp-fast": outcome(10.0), "plain": outcome(10.1)}
    monkeypatch.setattr(bench, "_run", lambda job: found[job.worker])
    report = bench_method(JOB, ["plain"])
    assert "the first losses differ from plain's by 0.0099, more than 0.0001" in report.failures[0]
    assert report.work["memory against plain"] == "100%"
    assert bench_method(replace(JOB, dtype="bfloat16"), ["plain"]).failures == []


def test_what_is_unknown_is_refused():
    with pytest.raises(ValueError, match="there is no benchmark of elm; there are rmu, graddiff, npo"):
        bench_method(replace(JOB, method="elm"))
    with pytest.raises(ValueError, match="either a model's folder or a shape"):
        bench_method(replace(JOB, model="somewhere"))
    with pytest.raises(ValueError, match="unknown baseline truncated of npo; known: plain"):
        bench_method(JOB, ["truncated"])
