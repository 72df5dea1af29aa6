"""`wmdp-fast sweep`: unlearns with many settings and shows which are worth having."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmdp_fast.cli.asking import add_selection, add_wording, asked
from wmdp_fast.cli.method_options import add_budget, add_settings, chosen, config_of, set_texts, types_of
from wmdp_fast.cli.options import finite_number, whole_number
from wmdp_fast.runtime import strict_json
from wmdp_fast.runtime.files import check_file, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from wmdp_fast.cli.field_types import FieldType
    from wmdp_fast.unlearning.sweep.result import SweepResult

SUMMARY = "Unlearn with many settings of a method, measure each, and show the Pareto front of forgetting and keeping."

_PASSED = (
    "trials", "resume", "revision", "device", "devices", "trust_remote_code", "data", "cache_trunk", "cache_limit",
    "keep_best", "log_samples", "max_loss", "eval_text", "max_kl", "kl_text", "kl_every",
    "memory", "stream",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast sweep`."""
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("model", metavar="MODEL", help="a folder, or a name on the Hugging Face hub")
    space = parser.add_argument_group(
        "what to try",
        "Settings that can be swept take several values: separated by commas, those of topics by slashes; with --optuna"
        " also a range LOW..HIGH. Every combination is tried.",
    )
    space.add_argument(
        "--optuna",
        dest="trials",
        type=whole_number(least=1),
        metavar="N",
        help="let Optuna draw N points in place of trying every combination",
    )
    space.add_argument(
        "--devices",
        metavar="DS",
        help="try points on several, a process on each: all (GPUs), a number of GPUs, cuda:0,cuda:1 or cpu:2",
    )
    measures = parser.add_argument_group("how to measure it")
    measures.add_argument(
        "--forget-tasks", required=True, action="append", metavar="NAMES", help="tasks whose accuracy should fall"
    )
    measures.add_argument(
        "--retain-tasks", required=True, action="append", metavar="NAMES", help="tasks whose accuracy should stay"
    )
    measures.add_argument(
        "--eval-text", action="append", metavar="FILE", help="held-out text whose perplexity to measure too"
    )
    measures.add_argument(
        "--log-samples",
        action=argparse.BooleanOptionalAction,
        help="keep every question's scores in DIR/evaluations, for `compare` and `report` (default yes)",
    )
    add_budget(measures)
    add_selection(measures)
    add_wording(measures)
    add_settings(parser, axis=_axis)
    large = parser.add_argument_group("a model that does not fit (RMU)")
    large.add_argument(
        "--memory",
        metavar="SIZE",
        help="memory to take, such as 16GB, by all --devices on a CPU together: if the model needs more, the layers"
        " that are trained stay in it, and the others are read when they are run",
    )
    large.add_argument("--stream", action="store_true", help="do so even if it fits, in what memory is free")
    output = parser.add_argument_group("output")
    output.add_argument("--output", required=True, metavar="DIR", help="folder for the results; no weights")
    output.add_argument("--resume", action="store_true", help="go on with the sweep in DIR; values may have been added")
    output.add_argument("--keep-best", metavar="DIR", help="write the checkpoint of the best run there")
    output.add_argument(
        "--max-loss",
        type=finite_number,
        metavar="POINTS",
        help="most points of accuracy that the best run may lose on the retain tasks (default 5)",
    )
    output.add_argument("--html", type=Path, metavar="FILE", help="write plot and table as one HTML file too")
    output.add_argument("--json", action="store_true", help="print JSON instead of the table")
    output.add_argument("--quiet", action="store_true", help="no progress and no notes on stderr")
    parser.set_defaults(quiet=False, json=False, html=None)


def run(arguments: argparse.Namespace) -> int:
    """Sweeps, prints the table, and writes the page."""
    try:
        over, fixed = _over(arguments)
        config = config_of(arguments, but=over, more=fixed)
    except ValueError as error:
        # One line: the usage of all methods' options would bury it.
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if arguments.html is not None:
        # Hours of runs should not end with a missing package.
        from wmdp_fast.report.sweep import check_installed

        check_installed()
        check_file(arguments.html)
    from wmdp_fast.unlearning.sweep.sweep import sweep

    given = vars(arguments)
    result = sweep(
        arguments.model,
        forget=arguments.forget,
        retain=arguments.retain,
        over=over,
        forget_tasks=arguments.forget_tasks,
        retain_tasks=arguments.retain_tasks,
        output=arguments.output,
        config=config,
        eval_options=asked(arguments),
        progress=not arguments.quiet,
        note=None if arguments.quiet else _note,
        **{name: given[name] for name in _PASSED if name in given},
    )
    if arguments.html is not None:
        from wmdp_fast.report.sweep import sweep_html

        write_whole(arguments.html, sweep_html(result))
    print(strict_json.dumps(result.to_json(), indent=2, ensure_ascii=False) if arguments.json else _report(result))
    return 0


def _report(result: SweepResult) -> str:
    lines = [str(result)]
    if result.front:
        lines += ["", "on the front, no other is better in one accuracy and as good in the other; to make one again:"]
        lines += [str(result.command(index)) for index in result.front]
    if result.why_no_best is not None:
        lines += ["", result.why_no_best]
    if result.kept is not None:
        lines += ["", f"best run: {result.kept}"]
    return "\n".join(lines)


def _note(line: str) -> None:
    print(line, file=sys.stderr)


def _over(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values to try, by setting, of options and of `--set`; and those of settings that this method has one of.

    Raises:
        ValueError: A setting with several values cannot be swept.
    """
    config, given = chosen(arguments), vars(arguments)
    axes = [one.name for one in config.search_axes]
    types, texts = types_of(config), set_texts(arguments, config)
    read = {name: given[name].tried for name in types if isinstance(given.get(name), _Values)}
    for name in axes:
        if name in texts:
            try:
                read[name] = _axis(types[name])(texts[name]).tried
            except argparse.ArgumentTypeError as error:
                raise ValueError(f"--set {name}: {error}") from None
    fixed = {}
    for name in read.keys() - set(axes):
        if not isinstance(read[name], list) or len(read[name]) > 1:
            raise ValueError(
                f"--{name.replace('_', '-')} cannot be swept with {arguments.method}; what can is {', '.join(axes)}"
            )
        [fixed[name]] = read.pop(name)
    return read, fixed


@dataclass(frozen=True)
class _Values:
    """What a setting is to be tried with: a list of values or a `Range`."""

    tried: Any


def _axis(kind: FieldType) -> Callable[[str], Any]:
    """The argparse type of several values of a setting, or of a range."""
    from wmdp_fast.unlearning.sweep.search_space import Range

    def parse_all(text: str) -> _Values:
        try:
            low, dots, high = text.partition("..")
            if dots:
                automatic = low.startswith("auto:")
                first, last = (finite_number(end.removeprefix("auto:")) for end in (low, high))
                return _Values(Range(first, last, automatic=automatic))
            return _Values([_of_topics(kind, value) for value in text.split(",")])
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither comma-separated values nor a range such as 10..200"
            ) from None

    return parse_all


def _of_topics(kind: FieldType, text: str) -> Any:
    """One value, or with slashes between one for each topic."""
    values = tuple(kind.one(part.strip()) for part in text.split("/"))
    if len(values) > 1 and not kind.many:
        raise argparse.ArgumentTypeError(f"{text!r}: this setting is the same for all topics")
    return values[0] if len(values) == 1 else values
