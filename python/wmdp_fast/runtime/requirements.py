"""Versions of what the package stands on: the oldest that will do, and those that it was tested with.

pip sees to the oldest ones where it installs the package; a checkout that is run as it is, or something installed over
them later, is found out here. Nothing is imported for it.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from wmdp_fast.exceptions import WmdpFastError


@dataclass(frozen=True)
class Versions:
    """Versions of a package.

    Attributes:
        bound: The lower bound in `pyproject.toml`.
        oldest: The oldest version that tests of scoring and RMU have passed with (docs/install.md says which tests).
        newest: The newest one that those of the matrix (`noxfile.py`) have passed with.
    """

    bound: str
    oldest: str
    newest: str


# `make test-matrix` runs the tests with the oldest and with the newest.
PACKAGES = {
    "torch": Versions("2.10", "2.10.0", "2.15.0"),
    "transformers": Versions("5.4", "5.4.0", "5.24.0"),
    "safetensors": Versions("0.5", "0.5.0", "0.8.0"),
    "huggingface_hub": Versions("1.5", "1.5.0", "2.4.0"),
    "numpy": Versions("2.0", "2.0.0", "2.5.5"),
}

# Needed for adapters only.
OPTIONAL_PACKAGES = {"peft": Versions("0.18", "0.18.0", "0.21.2")}

PYTHON = Versions("3.11", "3.11", "3.14")


def check() -> None:
    """Whether what is installed is new enough for anything that runs a model.

    Raises:
        WmdpFastError: A package is too old, or Python leaves docstrings out; the message says what to do.
    """
    if sys.flags.optimize > 1:
        raise WmdpFastError(
            "Python leaves docstrings out (-OO or PYTHONOPTIMIZE=2), and transformers cannot load models without them:"
            " run it without that"
        )
    for package in PACKAGES:
        if problem := too_old(package):
            raise WmdpFastError(problem)


def too_old(package: str) -> str | None:
    """What is wrong with a package that is installed and too old, and what to do; None for any other."""
    known = (PACKAGES | OPTIONAL_PACKAGES).get(package)
    try:
        installed = version(package)
    except PackageNotFoundError:
        return None
    if known is None or _numbers(installed) >= _numbers(known.bound):
        return None
    return (
        f"{package} {installed} is too old: wmdp-fast needs {known.bound} or later: pip install"
        f" '{package}>={known.bound}'"
    )


def tested_with(package: str, installed: str) -> str | None:
    """What is to be said of a version beside those that were tested: `tested: 2.10.0 to 2.15.0`, and if it is newer."""
    known = {**PACKAGES, **OPTIONAL_PACKAGES, "python": PYTHON}.get(package)
    if known is None:
        return None
    # A newer patch release of the newest one is not news.
    parts = len(_numbers(known.newest)) if package == "python" else 2
    newer = "newer than what was " if _numbers(installed)[:parts] > _numbers(known.newest)[:parts] else ""
    span = known.oldest if known.oldest == known.newest else f"{known.oldest} to {known.newest}"
    return f"{newer}tested: {span}"


def _numbers(text: str) -> tuple[int, ...]:
    """The release of a version: (2, 10, 0) of `2.10.0+cu128`."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
