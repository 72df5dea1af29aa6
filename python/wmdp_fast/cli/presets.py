"""`wmdp-fast presets`: published settings of a method, where they are from and what is known of them."""

from __future__ import annotations

import json
import shlex
import textwrap
from typing import TYPE_CHECKING, Any

from wmdp_fast.unlearning.methods.as_options import as_options, value_text
from wmdp_fast.unlearning.methods.catalog import DEFAULT, METHODS, config_class, preset_of, presets_of, spelled

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from wmdp_fast.unlearning.preset import Preset

SUMMARY = "List published settings of a method, or show one: its source, its settings and what came of it."

_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast presets`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this one")
    parser.add_argument(
        "--method",
        type=spelled,
        choices=METHODS,
        default=DEFAULT,
        help=f"whose settings (default {DEFAULT})",
        metavar="METHOD",
    )
    parser.add_argument("--json", action="store_true", help="print JSON: all of them by name, or the one asked for")


def run(arguments: argparse.Namespace) -> int:
    """Prints the list, or one preset."""
    method = arguments.method
    if arguments.name is None:
        listed: Any = {name: _as_json(one) for name, one in presets_of(method).items()}
        text = "\n".join(_list(method, presets_of(method)))
    else:
        one = preset_of(method, arguments.name)
        listed = _as_json(one)
        text = "\n".join(_page(method, one))
    print(json.dumps(listed, indent=2) if arguments.json else text)
    return 0


def _as_json(one: Preset) -> dict[str, Any]:
    return {
        "model": one.model,
        "source": one.source,
        "note": one.note,
        "settings": {name: list(value) if isinstance(value, tuple) else value for name, value in one.settings.items()},
    }


def _list(method: str, presets: Mapping[str, Preset]) -> Iterator[str]:
    if not presets:
        yield f"{method} has no presets"
        return
    width = max(map(len, presets))
    models = max(len(one.model) for one in presets.values())
    for one in presets.values():
        yield f"{one.name:{width}}  {one.model:{models}}  {one.source}"
    yield ""
    chosen = "" if method == DEFAULT else f" --method {method}"
    yield (
        f"`wmdp-fast presets NAME{chosen}` shows its settings; `wmdp-fast unlearn MODEL{chosen} --preset NAME` takes"
        " them."
    )


def _page(method: str, one: Preset) -> Iterator[str]:
    yield f"{one.name}: {one.model}" + ("" if method == DEFAULT else f", {method}")
    yield f"source: {one.source}"
    yield from textwrap.wrap(f"known: {one.note}", _WIDTH)
    yield ""
    width = max(map(len, one.settings))
    for name, value in one.settings.items():
        yield f"  {name:{width}}  {value_text(value)}"
    yield ""
    yield f"`--preset {one.name}` is the same as"
    options = [] if method == DEFAULT else ["--method", method]
    options += map(shlex.quote, as_options(config_class(method), one.settings))
    yield from textwrap.wrap(
        " ".join(options), _WIDTH, break_on_hyphens=False, initial_indent="  ", subsequent_indent="  "
    )
    if "raw lines" in one.note:
        yield ""
        yield "To read the forget corpora as its source did, bio before cyber, add: --raw-lines no,yes"
