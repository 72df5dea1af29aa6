"""The tests with the oldest and the newest versions that are promised: `make test-matrix`.

Each session is a virtual environment of its own below .nox, with the wheel that `make wheel` left in dist/. The oldest
versions are the lower bounds in pyproject.toml, the newest what the package index has today. Torch with CUDA takes
7 GB, once for each of its versions where uv's cache is on the same disk; UV_TORCH_BACKEND=cpu takes one.
"""

from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
# An interpreter that is not at hand is skipped, and said.
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"

# 3.14t is 3.14 without the global lock.
PYTHONS = ["3.11", "3.12", "3.13", "3.14", "3.14t"]

# What another version could change without a word, in minutes: loading, attention, fused parts, both ways of scoring
# against lm-eval's numbers, several processes and devices, models over several devices or streamed, adapters on one
# base, RMU's bits, attacks that need gradients, chat templates, checkpoints, plots, the command line.
TESTS = [
    "tests/test_private_apis.py",
    "tests/test_import.py",
    "tests/test_several_models.py",
    "tests/runtime",
    "tests/checkpoints/test_saving.py",
    "tests/cli/test_cli.py",
    "tests/integrations/test_lm_eval_backend.py",
    "tests/models/attention/test_attention_needs.py",
    "tests/models/attention/test_packed_attention.py",
    "tests/models/fused",
    "tests/models/test_load.py",
    "tests/models/test_parts.py",
    "tests/models/test_streamed.py",
    "tests/prompts/test_chat.py",
    "tests/results/test_plot.py",
    "tests/robustness/test_gcg.py",
    "tests/robustness/test_softprompt.py",
    "tests/scoring/test_padded.py",
    "tests/scoring/test_parallel.py",
    "tests/scoring/test_parity.py",
    "tests/scoring/test_sharded.py",
    "tests/scoring/test_trie_scoring.py",
    "tests/unlearning/test_lora.py",
    "tests/unlearning/test_streamed_layers.py",
    "tests/unlearning/test_unlearning_parity.py",
]

# Beside these, where threads really run side by side.
THREADS = ["tests/cli/test_leaving.py", "tests/data/test_readers.py", "tests/models/test_threads.py"]


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """The lower bounds."""
    run(session, "lowest-direct")


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """What the package index has."""
    run(session, "highest")


def run(session: nox.Session, resolution: str) -> None:
    """Installs the dependencies, the wheel, and runs the demo and the tests (or those that follow `--`)."""
    free_threaded = str(session.python).endswith("t")
    extras = [f"--extra={extra}" for extra in ("dev", "lm-eval", "peft", "plots")]
    session.install("--resolution", resolution, *extras, "--requirements", "pyproject.toml")
    (wheel,) = Path("dist").glob("*.whl")
    # That wheel is for the stable ABI, which 3.14t does not have: there the extension is compiled, from here.
    session.install("--no-deps", "--reinstall-package", "wmdp-fast", "." if free_threaded else str(wheel))
    # Without it Triton, which transformers imports, switches the lock on again.
    env = {"PYTHON_GIL": "0"} if free_threaded else {}
    session.run("wmdp-fast", "doctor", success_codes=[0, 1], env=env)
    session.run("wmdp-fast", "demo", "--quiet", env=env)
    tests = session.posargs or TESTS + THREADS * free_threaded
    session.run("python", "-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider", *tests, env=env)
