"""The benchmark of methods over logits: workers compute the same, or it fails."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from tests.support import unlearning_runs as runs
from tests.support.bench_workers import worker_in_process
from tests.support.expected_warnings import SAME_CORPORA, VERDICTS
from wmdp_fast import cli
from wmdp_fast.bench import methods as bench
from wmdp_fast.bench import methods_worker
from wmdp_fast.bench.method_job import MethodJob, corpora_of
from wmdp_fast.bench.methods import bench_method
from wmdp_fast.bench.process import run_worker
from wmdp_fast.bench.rmu_worker import Outcome

JOB = MethodJob(method="npo", shape="tiny", length=16, steps=2, device="cpu")
WORDS = ["the", "a", "river", "sea", "of", "water", "and", "stones", "slow", "fast", "delta", "hill", "rain"]


@SAME_CORPORA  # the same few words again and again
@VERDICTS
@pytest.mark.slow
def test_workers_compute_the_same_on_a_text(tmp_path, capsys, monkeypatch):
    def run(module, job, folder):
        """One in a process of its own, as all of a user's are; the others where torch is imported already."""
        alone = (job.method, job.worker) == ("npo", "plain")
        return (run_worker if alone else worker_in_process)(module, job, folder)

    monkeypatch.setattr(bench, "run_worker", run)
    page, text = tmp_path / "report.md", tmp_path / "text.jsonl"
    texts = [" ".join(WORDS[: 2 + place % 11]) for place in range(48)]
    text.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts), encoding="utf-8")
    folder = runs.folder_with_tokenizer(tmp_path / "model", "llama")
    argv = ["bench", "unlearn", str(folder), "--method", "npo,rr", "--text", str(text), "--length", "24"]
    argv += ["--steps", "2", "--dtype", "float32", "--device", "cpu", "--against", "plain"]
    assert cli.main([*argv, "--json", "--report", str(page)]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [report["work"]["method"] for report in reports] == ["npo", "rr"]
    for report in reports:
        plain, ours = report["peers"]["plain"], report["ours"]
        assert plain["notes"]["forget_losses"] == pytest.approx(ours["notes"]["forget_losses"], rel=1e-5)
        assert plain["notes"]["retain_losses"] == pytest.approx(ours["notes"]["retain_losses"], rel=1e-3)
        assert len(ours["notes"]["step_seconds"]) == 2
        assert report["ratio"]["plain"]["step"] == plain["seconds"]["step"] / ours["seconds"]["step"]
        assert report["failures"] == []
        assert report["work"]["text"] == str(text)
    assert page.read_text(encoding="utf-8").count("# bench unlearn") == 2
    # RR has a step more, which is not timed.
    assert [len(report["ours"]["notes"]["forget_losses"]) for report in reports] == [2, 3]
    assert cli.main([*argv, "--steps", "7"]) == 1
    assert "has 48 documents of two tokens or more, but 7 steps of 4 forget and 4 retain" in capsys.readouterr().err


@SAME_CORPORA  # the same few words again and again
@VERDICTS
@pytest.mark.parametrize("method", ["graddiff", "npo", "rr"])
def test_both_sides_compute_the_same(method, tmp_path):
    found = {}
    for worker in ("wmdp-fast", "plain"):
        job = replace(JOB, method=method, worker=worker)
        (tmp_path / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
        methods_worker.main(tmp_path)
        found[worker] = json.loads((tmp_path / "outcome.json").read_text(encoding="utf-8"))
    for name, bound in (("forget_losses", 1e-5), ("retain_losses", 1e-3 if method == "rr" else 1e-5)):
        assert found["wmdp-fast"][name] == pytest.approx(found["plain"][name], rel=bound)
        assert len(set(found["plain"][name])) == 3
    assert [len(one["step_seconds"]) for one in found.values()] == [2, 2]


def test_random_documents_are_uneven_and_the_last_batch_is_short():
    forget, retain = corpora_of(replace(JOB, length=512))
    lengths = [[len(corpus.document(index)) for index in range(16)] for corpus in (forget, retain)]
    assert lengths[0] != lengths[1]
    assert all(64 <= one <= 512 for kind in lengths for one in kind[:12])
    assert [kind[12:] for kind in lengths] == [[16] * 4] * 2


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
    with pytest.raises(ValueError, match="there is no benchmark of elm; there are rmu, graddiff, npo, rr"):
        bench_method(replace(JOB, method="elm"))
    with pytest.raises(ValueError, match="either a model's folder or a shape"):
        bench_method(replace(JOB, model="somewhere"))
    with pytest.raises(ValueError, match="unknown baseline truncated of npo; known: plain"):
        bench_method(JOB, ["truncated"])
    with pytest.raises(ValueError, match="a shape has no tokenizer for a text: give the folder of one"):
        bench_method(replace(JOB, text="text.jsonl"))


def test_options_that_say_nothing_are_refused(capsys):
    for options, message in (
        (["--text", "text.jsonl"], "--text is for other methods"),
        (["--method", "npo", "--tokenizer", "folder"], "--tokenizer is for a text"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["bench", "unlearn", *options])
        assert message in capsys.readouterr().err
