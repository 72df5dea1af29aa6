"""`wmdp-fast doctor`: what this installation consists of, and what is wrong with it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from wmdp_fast import _rust

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

SUMMARY = "Show versions, devices and settings, and whether anything is wrong with them."

# What scoring needs, then what single features need.
_REQUIRED = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy")
_OPTIONAL = ("lm_eval", "peft", "matplotlib")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        value: What was found.
        problem: What is wrong with it and what to do, or None.
    """

    name: str
    value: str
    problem: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast doctor`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Prints the report; exit code 1 if it names a problem."""
    findings = list(examine())
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(f"{finding.name:{width}}  {finding.value}")
            if finding.problem:
                print(f"{'':{width}}  ! {finding.problem}")
    return 1 if any(finding.problem for finding in findings) else 0


def examine() -> Iterator[Finding]:
    """Looks at everything an evaluation depends on. Imports torch; downloads nothing."""
    yield Finding("wmdp-fast", _rust.__version__)
    yield _extension()
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("platform", platform.platform())
    yield from _packages()
    yield _threads()
    yield from _devices()
    yield from _hub()


def _extension() -> Finding:
    where = f"({_rust.__file__})"
    if _rust.RELEASE_BUILD:
        return Finding("extension", f"release build {where}")
    problem = "several times slower than a release build; `make setup` or `pip install .` builds one"
    return Finding("extension", f"debug build {where}", problem)


def _packages() -> Iterator[Finding]:
    for package in (*_REQUIRED, *_OPTIONAL):
        try:
            yield Finding(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            problem = f"needed: pip install {package}" if package in _REQUIRED else None
            yield Finding(package, "not installed" if problem else "not installed (optional)", problem)


def _threads() -> Finding:
    cores = f"{os.cpu_count()} cores"
    try:
        return Finding("threads", f"{_rust.num_threads()} for preparing data, of {cores} (WMDP_FAST_NUM_THREADS)")
    except ValueError as error:
        return Finding("threads", cores, str(error))


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("devices", "unknown", f"torch cannot be imported: {error}")
        return
    yield Finding("device", f"cpu ({torch.get_num_threads()} torch threads)")
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield Finding(
            "device", f"cuda:{index} ({gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda})"
        )


def _hub() -> Iterator[Finding]:
    try:
        from huggingface_hub import constants, get_token
    except ImportError as error:
        yield Finding("hub", "unknown", f"huggingface_hub cannot be imported: {error}")
        return
    yield Finding("hub cache", constants.HF_HUB_CACHE)
    offline = "offline (HF_HUB_OFFLINE): only what is in the cache" if constants.HF_HUB_OFFLINE else "online"
    login = "logged in" if get_token() else "not logged in (gated datasets need `hf auth login` or HF_TOKEN)"
    yield Finding("hub", f"{offline}; {login}")
