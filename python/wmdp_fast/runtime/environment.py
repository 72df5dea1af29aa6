"""What a run ran on: versions, hardware, commit. Starts no slow process and imports neither torch nor transformers."""

from __future__ import annotations

import functools
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from wmdp_fast import _rust


def versions() -> dict[str, str | None]:
    """Versions of this package, of Python and of what numbers depend on; None for what is not installed."""
    packages = ("torch", "transformers", "tokenizers", "numpy", "safetensors", "peft", "lm_eval")
    return {
        "wmdp_fast": _rust.__version__,
        "python": platform.python_version(),
        **{package: _installed(package) for package in packages},
    }


def hardware() -> dict[str, Any]:
    """Processor, memory (GiB) and, once torch is imported, the CUDA devices."""
    found: dict[str, Any] = {
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "gpus": [],
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        found["gpus"] = [{"name": gpu.name, "memory_gb": round(gpu.total_memory / 2**30, 1)} for gpu in devices]
        found["cuda"] = torch.version.cuda
        found["driver"] = _nvidia_driver()
    return found


def summary(versions: dict[str, str | None], hardware: dict[str, Any]) -> str:
    """Versions and hardware as a few readable lines."""
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gb']} GiB)" for gpu in hardware["gpus"])
    cpu = f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GiB"
    return f"{installed}\n{hardware['platform']}\nCPU: {cpu}\nGPU: {gpus or 'none seen'}"


def git_commit() -> str | None:
    """What `git describe --always` says of the working directory; None outside a repository."""
    import subprocess  # Not needed to import the package, and slow to import.

    try:
        described = subprocess.run(
            ["git", "describe", "--always"],  # noqa: S607 (git is found on the path, as the user's shell would)
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def _installed(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError  # As above.

    try:
        return _version(package)
    except PackageNotFoundError:
        return None


@functools.cache
def _version(package: str) -> str:
    """What is installed; reading that takes 5 ms, and a package that was imported stays as it is."""
    from importlib.metadata import version  # As above.

    return version(package)


def is_intel() -> bool:
    """Whether the CPU is Intel's, as far as the system says."""
    return _of_cpu("vendor_id") == "GenuineIntel"


def has_avx512() -> bool:
    """Whether the CPU has AVX-512, as far as the system says."""
    return "avx512f" in (_of_cpu("flags") or "").split()


def _cpu_model() -> str:
    return _of_cpu("model name") or platform.processor() or platform.machine()


@functools.cache
def _of_cpu(name: str) -> str | None:
    """What Linux says of the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else None


def _nvidia_driver() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"Kernel Module.*?(\d+(?:\.\d+)+)", text)
    return found[1] if found else None
