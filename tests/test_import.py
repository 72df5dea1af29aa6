"""What `import wmdp_fast` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import wmdp_fast
from wmdp_fast import _rust

# Slow to import, and needed only once a model or the network is.
HEAVY = ("torch", "transformers", "huggingface_hub", "safetensors", "tqdm", "argparse", "jinja2", "asyncio")


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_import_loads_nothing_heavy():
    loaded = run_python("import wmdp_fast, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))")
    assert set(loaded.split()).isdisjoint(HEAVY)


def test_the_command_line_starts_without_torch():
    loaded = run_python("import wmdp_fast.cli, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))")
    assert set(loaded.split()).isdisjoint(set(HEAVY) - {"argparse"})


def test_unlearning_begins_without_torch():
    loaded = run_python(
        "from wmdp_fast import unlearn; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    assert set(loaded.split()).isdisjoint({"torch", "transformers"})


def test_every_public_name_is_there_and_says_where_it_is_from():
    assert sorted(wmdp_fast.__all__) == sorted(set(wmdp_fast.__all__))
    for name in wmdp_fast.__all__:
        exported = getattr(wmdp_fast, name)
        if isinstance(exported, type) or callable(exported):
            assert exported.__doc__, f"{name} has no docstring"
            module = sys.modules[exported.__module__]
            assert getattr(module, exported.__name__) is exported


def test_the_version_is_that_of_the_extension():
    assert wmdp_fast.__version__ == _rust.__version__
