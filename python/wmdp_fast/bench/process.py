"""Runs a benchmark's worker in a process of its own, so that its time and its peak memory are its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.exceptions import WmdpFastError

if TYPE_CHECKING:
    from wmdp_fast.bench import method_job, rmu_worker, worker


def run_worker(module: str, job: worker.Job | rmu_worker.Job | method_job.MethodJob, folder: Path) -> dict[str, Any]:
    """Runs `python -m module folder` with the job in `job.json` there, and returns what it left in `outcome.json`.

    Raises:
        WmdpFastError: The worker failed; says the last thing it said.
    """
    return _run([sys.executable, "-m", module], job, folder)


def run_peer(job: worker.Job, folder: Path) -> dict[str, Any]:
    """Runs another engine, by the Python of its environment; otherwise as `run_worker`.

    Raises:
        WmdpFastError: It failed or is not installed; says the last thing it said.
    """
    script = Path(__file__).with_name("peer_script.py")
    return _run([job.python or sys.executable, os.fspath(script)], job, folder)


def _run(command: list[str], job: worker.Job | rmu_worker.Job | method_job.MethodJob, folder: Path) -> dict[str, Any]:
    (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    command = [*command, os.fspath(folder)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)  # noqa: S603 (our own code)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise WmdpFastError(
            f"{job.worker} failed with exit code {done.returncode}: {said[-1] if said else 'it said nothing'}"
        )
    outcome: dict[str, Any] = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    return outcome
