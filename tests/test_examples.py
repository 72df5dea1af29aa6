"""Every script in examples/ runs, in a process of its own, without a hub."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
NEEDS = {"lm_eval_from_python": "lm_eval"}
SAYS = {
    "batches_for_your_own_model": "acc_norm",
    "evaluate_while_training": "step 2:",
    "forget_licenses": "retain (Python): perplexity",
    "lm_eval_from_python": "'acc,none'",
    "own_attack": "whisper",
    "own_method": "forget loss ",
}


def test_there_is_something_to_look_for_in_each() -> None:
    assert SAYS.keys() == {path.stem for path in EXAMPLES}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path) -> None:
    package = NEEDS.get(path.stem)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if path.stem == "forget_licenses" and not Path("/usr/share/common-licenses").is_dir():
        pytest.skip("this system has no /usr/share/common-licenses")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    assert SAYS[path.stem] in ran.stdout
