"""`wmdp-fast methods`: the methods of unlearning, what each does, changes and costs."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from wmdp_fast.cli.field_types import field_help
from wmdp_fast.runtime.own_code import FORM
from wmdp_fast.runtime.tables import aligned
from wmdp_fast.unlearning.methods.catalog import DEFAULT, METHODS, config_class, presets_of
from wmdp_fast.unlearning.training_config import TrainingConfig

if TYPE_CHECKING:
    import argparse

    from wmdp_fast.unlearning.methods.catalog import Listed

SUMMARY = "List the methods that `unlearn` and `sweep` take by name: what each does, what it changes, what it costs."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast methods`."""
    parser.add_argument("--json", action="store_true", help="print JSON: the methods by name, with their settings")


def run(arguments: argparse.Namespace) -> int:
    """Prints the list."""
    if arguments.json:
        print(json.dumps({one.name: _as_json(one) for one in METHODS.values()}, indent=2, ensure_ascii=False))
    else:
        print(_table())
    return 0


def _table() -> str:
    rows = [("method", "cost", "changes", "what it does")]
    rows += [(one.name, f"{one.cost:g}", one.changes, one.about) for one in METHODS.values()]
    lines = [
        *aligned(rows, "lrll"),
        "",
        "cost: of a step with a forget and a retain batch, in forward passes of the whole model over one batch; a"
        " backward pass is two",
        f"`wmdp-fast unlearn MODEL --method NAME`; {DEFAULT} unless named. {FORM} names one of your own.",
    ]
    return "\n".join(lines)


def _as_json(one: Listed) -> dict[str, Any]:
    config = config_class(one.name)
    told, common = field_help(config), {field.name for field in dataclasses.fields(TrainingConfig)}
    return {
        "about": one.about,
        "cost": one.cost,
        "changes": one.changes,
        "source": one.source,
        "config": one.config.partition(":")[2],
        "settings": {
            field.name: {"about": told.get(field.name, ""), "default": _default(field)}
            for field in dataclasses.fields(config)
            if field.name not in common
        },
        "sweeps": [axis.name for axis in config.search_axes],
        "presets": list(presets_of(one.name)),
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    """The default as JSON has it: a setting of a type of its own by what the command line calls it."""
    value = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return value if value is None or isinstance(value, (bool, int, float, str, list, tuple)) else str(value)
