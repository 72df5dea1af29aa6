"""Which folder may import which: downwards in one order, no circle, and nothing from the package's own front."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import wmdp_fast

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(wmdp_fast.__file__).parent
TESTS = Path(__file__).parent

# Each imports only what stands before it. `docs/design.md` says what each is for.
ORDER = (
    "_rust",
    "exceptions",
    "runtime",
    "data",
    "tasks",
    "prompts",
    "checkpoints",
    "models",
    "scoring",
    "results",
    "analysis",
    "evaluate_options",
    "evaluation_run",
    "evaluation",
    "several_models",
    "unlearning",
    "robustness",
    "integrations",
    "report",
    "bench",
    "demo",
    "cli",
    "__main__",
)

MODULES = {
    ".".join(part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
} | {"_rust": PACKAGE / "_rust.pyi"}


def imports(path: Path, top: str) -> Iterator[str]:
    """What a file imports of a package, wherever it does: names of modules below it, or "" for its own `__init__`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            # What is imported from a package may be one of its modules, or a name in its `__init__`.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == top:
                yield rest


def module_of(name: str) -> str:
    """The module that an imported name is or is in; "" for the package's `__init__`."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


GRAPH = {
    module: {module_of(name) for name in imports(path, "wmdp_fast")}
    for module, path in MODULES.items()
    if path.suffix == ".py"
}


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_run_downwards(module: str) -> None:
    here = ORDER.index(module.split(".")[0])
    upwards = [other for other in GRAPH[module] if other and ORDER.index(other.split(".")[0]) > here]
    assert not upwards, f"{module} imports {upwards}, which stand above it in ORDER"


def test_nothing_inside_imports_the_packages_own_init() -> None:
    assert not [module for module, others in GRAPH.items() if "" in others]


def test_no_circle_of_imports() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(GRAPH.get(module, set()) - {module}):
                visit(other, (*path, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


def test_no_test_imports_another() -> None:
    found = {
        f"{path.relative_to(TESTS)} imports {name}"
        for path in TESTS.rglob("*.py")
        for name in imports(path, "tests")
        if any(part.startswith("test_") for part in name.split(".")[:-1]) or name.split(".")[-1].startswith("test_")
    }
    assert not found
