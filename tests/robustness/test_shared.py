"""Attacks that several processes share: the readings of one process, whoever was killed."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch

import wmdp_fast as wf
from tests.support import robustness as support
from wmdp_fast import cli
from wmdp_fast.results.runs_file import RunsFile
from wmdp_fast.robustness.one_run import not_run
from wmdp_fast.robustness.protocol import Setting
from wmdp_fast.robustness.runs import Run
from wmdp_fast.runtime import cpus, workers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("attacked")
    return {
        "model": support.save_model(folder / "model"),
        "base": support.save_model(folder / "base"),
        "tasks": support.save_questions(folder / "birds.jsonl"),
        "utility": support.save_questions(folder / "kept.jsonl", 20),
        "attacks": "calibrate,noise",
        "budget": "quick",
        "eval_options": {"template": "mmlu"},
        "progress": False,
    }


def readings(result: wf.AttackResult) -> list[Any]:
    """All that was found, without what clocks say."""
    measured = [(one.key, one.found) for one in result.measured]
    return [*((run.key, run.failed, run.to_json()["readings"]) for run in result.runs), *measured]


@pytest.mark.slow
def test_two_processes_find_what_one_does_also_if_one_of_them_is_killed(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(int(cpus.openmp_threads(2)))
    try:
        alone = wf.attack(**given)
    finally:
        torch.set_num_threads(threads)
    start, began = workers._start, []
    monkeypatch.setattr(workers, "_start", lambda *options: began.append(start(*options)) or began[-1])
    add = RunsFile.add

    def add_and_kill(self: RunsFile, line: Mapping[str, Any]) -> None:
        add(self, line)
        if busy := [worker for worker in began[:2] if isinstance(worker.job, Run)]:
            os.kill(busy[0].process.pid, signal.SIGKILL)
            began.clear()

    monkeypatch.setattr(RunsFile, "add", add_and_kill)
    notes: list[str] = []
    with pytest.warns(wf.WmdpFastWarning, match="the process on cpu was killed by SIGKILL"):
        shared = wf.attack(**given, devices="cpu:2", output=tmp_path, note=notes.append)
    assert readings(shared) == readings(alone)
    assert shared.identity == alone.identity
    assert len((tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines()) == len(shared.runs)
    assert notes[0] == f"{len(shared.runs)} runs, shared by 2 processes"
    # One process takes over what they have done.
    monkeypatch.setattr(RunsFile, "add", lambda *_: pytest.fail("nothing is left"))
    assert readings(wf.attack(**given, output=tmp_path)) == readings(alone)


def test_settings_that_could_not_be_tried_are_named_together() -> None:
    runs = [
        Run(
            role="base", attack="noise", setting=Setting(values={"scale": scale}), failed="no corpus", skipped=scale > 1
        )
        for scale in (1, 2, 3)
    ]
    assert not_run(runs) == ["base, noise, 2 settings: not run: no corpus"]
    assert not_run(runs[:2]) == ["base, noise, scale=2: not run: no corpus"]


def test_what_cannot_be_shared_is_refused(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM

    with pytest.raises(ValueError, match="device and devices exclude each other"):
        wf.attack(**given, device="cpu", devices="cpu:2")
    in_memory = {**given, "base": AutoModelForCausalLM.from_pretrained(given["base"])}
    with pytest.raises(ValueError, match="a model in memory cannot be shared"):
        wf.attack(**in_memory, devices="cpu:2")
    assert cli.main(["attack", str(given["model"]), "--tasks", str(given["tasks"]), "--devices", "tpu"]) == 1
    assert "must be all, a number of GPUs" in capsys.readouterr().err
