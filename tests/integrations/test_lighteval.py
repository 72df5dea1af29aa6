"""lighteval, the real one: its own command runs our model file and our WMDP tasks, and finds `evaluate`'s numbers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

if importlib.util.find_spec("lighteval") is None:
    pytest.skip("lighteval is not installed: pip install 'wmdp-fast[lighteval]'", allow_module_level=True)

import wmdp_fast as wf
from wmdp_fast import demo

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

for package, below, why in (
    ("huggingface_hub", 2, "its list_models has no model_name there"),
    ("xxhash", 4, "it takes no text there"),
):
    if int(version(package).partition(".")[0]) >= below:
        pytest.skip(f"lighteval 0.13 needs {package}<{below}: {why}", allow_module_level=True)

# Its command, `python -m lighteval`. Whatever is asked for, lighteval 0.13.0 loads all its own tasks first, and two of
# those want the network: tinyBenchmarks goes on if its download fails with a status, mt_bench looks for its judge.
LIGHTEVAL = """
import runpy, types, huggingface_hub, requests
requests.get = lambda *_, **__: types.SimpleNamespace(status_code=503)
huggingface_hub.HfApi.list_models = lambda *_, model_name, **__: [model_name]
runpy.run_module("lighteval", run_name="__main__", alter_sys=True)
"""

CONFIGS = """---
configs:
- config_name: wmdp-bio
  data_files: [{split: test, path: wmdp-bio/test.jsonl}]
---
"""


def test_its_command_runs_our_files(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "wmdp-bio"
    folder.mkdir(parents=True)
    lines = demo.questions_path("forget").read_text(encoding="utf-8").splitlines(keepends=True)[:16]
    (folder / "test.jsonl").write_text("".join(lines), encoding="utf-8")
    (tmp_path / "data" / "README.md").write_text(CONFIGS)

    files = [importlib.util.find_spec(f"wmdp_fast.integrations.lighteval_{what}") for what in ("model", "tasks")]
    model, tasks = (spec.origin for spec in files if spec is not None)
    assert model is not None
    assert tasks is not None
    environment = {
        **os.environ,
        "WMDP_FAST_WMDP": str(tmp_path / "data"),
        "WMDP_FAST_DTYPE": "float32",
        "WMDP_FAST_DEVICE": "cpu",
        "HOME": str(tmp_path),  # its cache of answers is there, whatever HF_HOME says
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
    }
    # It makes folders named after the model for its results and its cache; a path would lead out of where they belong.
    name = "demo-model"
    (tmp_path / name).symlink_to(demo.model_path())
    command = [
        *(sys.executable, "-c", LIGHTEVAL, "custom", name, model, "wmdp:bio|0"),
        *("--custom-tasks", tasks, "--output-dir", str(tmp_path / "out")),
    ]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    [written] = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(written.read_text())["results"]["wmdp:bio|0"]

    questions = tmp_path / "birds.jsonl"
    questions.write_text("".join(lines), encoding="utf-8")
    expected = wf.evaluate(
        demo.model_path(), tasks=questions, template="wmdp_bio", dtype="float32", device="cpu", progress=False
    )
    assert results["acc"] == expected["birds"]["acc"]
    assert results["acc_stderr"] == pytest.approx(expected["birds"]["acc_stderr"])
