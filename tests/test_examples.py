"""Every script and notebook in examples/ runs, in a process of its own, without a hub."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.killed_runs import CHILDREN

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
# Says of itself that it needs no torch: it gets a process without.
WITHOUT_TORCH = "batches_for_your_own_model"
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
def test_example_runs(path: Path, tmp_path: Path) -> None:
    package = NEEDS.get(path.stem)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if path.stem == "forget_licenses" and not Path("/usr/share/common-licenses").is_dir():
        pytest.skip("this system has no /usr/share/common-licenses")
    printed = tmp_path / "printed.txt"
    if path.stem == WITHOUT_TORCH:
        code = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
        code += "import runpy; runpy.run_path(sys.argv[1], run_name='__main__')"
        with printed.open("wb") as file:
            command = [sys.executable, "-c", code, str(path)]
            exit_code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
    else:
        child = CHILDREN.Process(target=run_example, args=(path, printed))
        child.start()
        child.join()
        exit_code = child.exitcode
    text = printed.read_text(encoding="utf-8")
    assert exit_code == 0, text
    assert SAYS[path.stem] in text


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra `plots`")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells), "clear its outputs, which nothing keeps up to date"
    printed = tmp_path / "printed.txt"
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    child = CHILDREN.Process(target=run_cells, args=(code, tmp_path, printed))
    child.start()
    child.join()
    text = printed.read_text(encoding="utf-8")
    assert child.exitcode == 0, text
    assert "worst case: ablate" in text


def run_cells(code: list[str], folder: Path, printed: Path) -> None:
    """Runs the cells of a notebook one after the other in a folder."""
    ask_no_hub_and_print_to(printed)
    os.environ["MPLBACKEND"] = "agg"
    os.chdir(folder)
    space = {"__name__": "__main__"}
    for number, cell in enumerate(code):
        exec(compile(cell, f"cell {number}", "exec"), space)


def ask_no_hub_and_print_to(printed: Path) -> None:
    """Of this process."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    with printed.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())


def run_example(path: Path, printed: Path) -> None:
    """Runs a script as Python does, in a process that has imported torch and transformers, and asks no hub."""
    ask_no_hub_and_print_to(printed)
    sys.argv = [str(path)]
    # As Python sets it: a script finds what lies beside it.
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")
