"""`wmdp-fast tasks`: what can be evaluated."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from wmdp_fast.tasks.definitions import GROUPS, TAGS, TASKS
from wmdp_fast.tasks.task import Group, Task

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

SUMMARY = "List the tasks and groups that `--tasks` takes by name."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast tasks`."""
    parser.add_argument("--all", action="store_true", help="every single task, also those of large groups")
    parser.add_argument("--json", action="store_true", help="print one JSON object: tasks, groups and tags")


def run(arguments: argparse.Namespace) -> int:
    """Prints the list."""
    if arguments.json:
        print(json.dumps(_as_json(), indent=2, ensure_ascii=False))
    else:
        print("\n".join(_lines(everything=arguments.all)))
    return 0


def _as_json() -> dict[str, object]:
    return {
        "tasks": {
            task.name: {"dataset": task.dataset, "config": task.config, "revision": task.revision}
            for task in TASKS.values()
        },
        "groups": {group.name: list(group.children) for group in GROUPS.values()},
        "tags": {name: list(tasks) for name, tasks in TAGS.items()},
    }


# Groups of more tasks than this are one line unless all are asked for.
_FEW = 6


def _lines(*, everything: bool) -> Iterator[str]:
    below = {child for group in GROUPS.values() for child in group.children}
    items: list[Task | Group] = [*GROUPS.values(), *TASKS.values()]
    for item in items:
        if item.name not in below:
            yield from _tree(item, 0, everything=everything)
    yield ""
    yield f"tags (several tasks, no group): {', '.join(TAGS)}"
    yield "Any question file or folder of them is a task too: --tasks ./questions.jsonl"


def _tree(item: Task | Group, depth: int, *, everything: bool) -> Iterator[str]:
    indent = "  " * depth
    if isinstance(item, Task):
        config = f" ({item.config})" if item.config else ""
        yield f"{indent}{item.name}  {item.dataset}{config}"
        return
    children = [GROUPS.get(name) or TASKS[name] for name in item.children]
    folded = not everything and len(children) > _FEW and all(isinstance(child, Task) for child in children)
    yield f"{indent}{item.name}" + (f"  {len(children)} tasks" if folded else "")
    if not folded:
        for child in children:
            yield from _tree(child, depth + 1, everything=everything)
