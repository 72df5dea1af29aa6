"""Workers of the benchmarks without processes of their own, for tests of what they compute."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def worker_in_process(module: str, job: Any, folder: Path) -> dict[str, Any]:
    """As `wmdp_fast.bench.process.run_worker`, but in this process: seconds to import torch are saved."""
    (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        import_module(module).main(folder)
    outcome: dict[str, Any] = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    return outcome
