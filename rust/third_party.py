"""Writes THIRD-PARTY.txt: every crate whose code is in the extension, its license, and the license's text.

`python rust/third_party.py` writes it, `--check` fails if it is out of date. Either fails if a crate, or a Python
package that this one needs, has a license that is not allowed here.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "THIRD-PARTY.txt"
EXTENSION = "wmdp-fast-python"
TARGETS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu")

# Licenses that ask for no more than to be named; in the order in which one of several is chosen.
ALLOWED = (
    "MIT",
    "Apache-2.0",
    "BSD-3-Clause",
    "BSD-2-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "Unicode-3.0",
    "Unlicense",
    "BSL-1.0",
    "CC0-1.0",
    "Apache-2.0 WITH LLVM-exception",
)
# What Python packages say of themselves in other words.
PYTHON_NAMES = {
    "Apache Software License": "Apache-2.0",
    "Apache": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
}
# Licenses by which a package is only used, never contained.
ALLOWED_OF_PYTHON = (*ALLOWED, "MPL-2.0", "PSF-2.0", "Python-2.0")
HEAD = """The extension module of wmdp-fast contains code of the crates below, and of Rust's standard library
(MIT OR Apache-2.0, The Rust Project Developers). Of several licenses that a crate offers, that in parentheses is taken.
Written by rust/third_party.py.
"""


def crates() -> list[dict[str, Any]]:
    """The packages that the extension is built from, but for this project's own, by name and version."""
    found: dict[str, dict[str, Any]] = {}
    for target in TARGETS:
        command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
        metadata = json.loads(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)  # noqa: S603
        packages = {package["id"]: package for package in metadata["packages"]}
        nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
        open_ = [key for key, package in packages.items() if package["name"] == EXTENSION]
        seen = set(open_)
        while open_:
            for dependency in nodes[open_.pop()]["deps"]:
                is_linked = any(kind["kind"] is None for kind in dependency["dep_kinds"])
                if is_linked and dependency["pkg"] not in seen:
                    seen.add(dependency["pkg"])
                    open_.append(dependency["pkg"])
        found |= {key: packages[key] for key in seen if packages[key]["source"] is not None}
    return sorted(found.values(), key=lambda package: (package["name"], package["version"]))


def chosen(expression: str, allowed: tuple[str, ...] = ALLOWED) -> str | None:
    """The licenses to keep to of an SPDX expression, or None if there are none that are allowed."""
    expression = expression.replace("/", " OR ")
    if match := re.fullmatch(r"\s*\(([^()]*)\)\s*", expression):
        expression = match[1]
    parts = re.split(r"\s+AND\s+(?![^(]*\))", expression)
    if len(parts) > 1:
        each = [chosen(part, allowed) for part in parts]
        return None if None in each else " AND ".join(part for part in each if part)
    offered = [" ".join(name.split()) for name in re.split(r"\s+OR\s+", expression.strip("() "))]
    return min((name for name in offered if name in allowed), key=allowed.index, default=None)


def texts(package: dict[str, Any], license_: str) -> list[tuple[str, str]]:
    """Names and contents of a crate's license files, those of libraries that it brings with it too."""
    folder = Path(package["manifest_path"]).parent
    name = re.compile(r"(licen[cs]e|copying|unlicense|notice|copyright)([-._].*)?", re.IGNORECASE)
    files = [path for depth in ("*", "*/*", "*/*/*") for path in folder.glob(depth) if name.fullmatch(path.name)]
    own = [path for path in files if path.parent == folder and path.is_file()]
    # Of several files for several licenses, those of the one that was taken.
    short = {"MIT": "mit", "Apache-2.0": "apache", "BSD-3-Clause": "bsd"}.get(license_)
    named = [path for path in own if short and short in path.name.lower()]
    brought = [path for path in files if path.parent != folder and path.is_file() and path.suffix not in {".rs", ".py"}]
    kept = (named or own) + brought
    read = [
        (path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8", errors="replace").strip())
        for path in sorted(set(kept))
    ]
    # zstd may be had under the BSD license or the GPL.
    return [(name, text) for name, text in read if "GNU GENERAL PUBLIC LICENSE" not in text.upper()[:400]]


def page(packages: list[dict[str, Any]]) -> str:
    """The whole file: a line for each crate, then each text once with the crates that it is from."""
    lines, origins = [], dict[str, list[str]]()
    for package in packages:
        license_ = chosen(package["license"])
        named = f"{package['name']} {package['version']}"
        lines.append(f"{named}: {package['license']}" + ("" if license_ == package["license"] else f" ({license_})"))
        for name, text in texts(package, license_ or ""):
            tidy = "\n".join(line.rstrip() for line in text.splitlines())
            origins.setdefault(tidy, []).append(f"{named}, {name}")
    rule = "=" * 80
    parts = [f"{rule}\n" + "\n".join(names) + f"\n{rule}\n{text}\n" for text, names in origins.items()]
    return "\n".join([HEAD, *lines, "", *parts])


def refused(packages: list[dict[str, Any]]) -> list[str]:
    """What has a license that is not allowed, in words."""
    faults = [
        f"crate {package['name']} {package['version']}: {package['license']}"
        for package in packages
        if chosen(package["license"] or "") is None
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in project["dependencies"]:
        name = re.split(r"[^\w.-]", requirement)[0]
        said = license_of(name)
        if chosen(said, ALLOWED_OF_PYTHON) is None:
            faults.append(f"Python package {name}: {said}")
    return faults


def license_of(name: str) -> str:
    """The license of an installed Python package as SPDX, as far as it says."""
    metadata = importlib.metadata.metadata(name)
    classifiers = [text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier", []) if "License ::" in text]
    said = metadata.get("License-Expression") or metadata.get("License") or (classifiers or ["nothing"])[0]
    if len(said) > 80 and classifiers:
        said = classifiers[0]
    return PYTHON_NAMES.get(said, said)


def main() -> None:
    """Writes the file, or checks it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the file is out of date")
    check = parser.parse_args().check
    packages = crates()
    if faults := refused(packages):
        sys.exit("licenses that are not in rust/third_party.py's lists:\n" + "\n".join(faults))
    new = page(packages)
    if not check:
        PAGE.write_text(new, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != new:
        sys.exit(f"{PAGE.name} is out of date: python rust/third_party.py")


if __name__ == "__main__":
    main()
