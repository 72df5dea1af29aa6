"""`wmdp-fast doctor`: what this installation consists of, and what is wrong with it."""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import os
import platform
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from wmdp_fast import _rust
from wmdp_fast.runtime import cpus, requirements

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

SUMMARY = "Show versions, devices and settings, and whether anything is wrong with them."

# What scoring needs, then what single features need.
_REQUIRED = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy")
_OPTIONAL = ("lm_eval", "peft", "matplotlib", "jinja2", "optuna", "inspect_ai", "lighteval", "lightning")

# Seconds that the hub has to answer.
_PATIENCE = 4.0


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
    """Looks at everything an evaluation depends on. Imports torch and asks if the hub answers; downloads nothing."""
    yield Finding("wmdp-fast", _rust.__version__)
    yield _extension()
    tested = requirements.tested_with("python", platform.python_version())
    yield Finding("python", f"{platform.python_version()} ({sys.executable}; {tested})")
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
            installed = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            problem = f"needed: pip install {package}" if package in _REQUIRED else None
            yield Finding(package, "not installed" if problem else "not installed (optional)", problem)
            continue
        tested = requirements.tested_with(package, installed)
        value = f"{installed} ({tested})" if tested else installed
        yield Finding(package, value, requirements.too_old(package))


def _threads() -> Finding:
    available, present = cpus.available_cores(), os.cpu_count()
    cores = f"{present} cores" + ("" if available == present else f" ({available} by affinity and quota)")
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
    threads = torch.get_num_threads()
    yield Finding("device", f"cpu ({threads} torch threads)", cpus.about_threads(threads))
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
    login = "logged in" if get_token() else "not logged in (gated datasets need `hf auth login` or HF_TOKEN)"
    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", f"offline (HF_HUB_OFFLINE): only what is in the cache; {login}")
        return
    # Without a network nothing is wrong: models and datasets may all be here.
    if (why := _why_unreachable(constants.ENDPOINT)) is not None:
        cached = "only what is in the cache, and `--data DIR`; HF_HUB_OFFLINE=1 saves waiting for it"
        yield Finding("hub", f"{constants.ENDPOINT} cannot be reached ({why}): {cached}; {login}")
        return
    yield Finding("hub", f"{constants.ENDPOINT} answers{_by_proxy(constants.ENDPOINT)}; {login}")


def _why_unreachable(address: str) -> str | None:
    """Why an address does not answer within some seconds, through the proxy if one is set; None if it does."""
    problems: list[str | None] = [f"no answer within {_PATIENCE:.0f} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")  # noqa: S310 (the hub's address)
            # Not `urlopen`, which keeps the proxy that it found first.
            urllib.request.build_opener().open(request, timeout=_PATIENCE).close()
        except urllib.error.HTTPError:
            problems[0] = None  # It answers, be it with a refusal.
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            problems[0] = " ".join(str(reason).split()) or type(error).__name__
        else:
            problems[0] = None

    # To find a name has no timeout of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    return problems[0]


def _by_proxy(address: str) -> str:
    """What is said of the proxy, if one is used: where it is, without a name and password."""
    url = urlsplit(address)
    proxy = urllib.request.getproxies().get(url.scheme)
    if not proxy or urllib.request.proxy_bypass(url.hostname or ""):
        return ""
    return f" through the proxy {proxy.rpartition('@')[2].rpartition('//')[2]}"
