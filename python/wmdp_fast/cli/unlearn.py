"""`wmdp-fast unlearn`: removes what a model knows of some subjects, as far as a method does."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from wmdp_fast.checkpoints.read_ahead import reading_ahead
from wmdp_fast.cli import devices
from wmdp_fast.cli.asking import add_selection, add_wording, asked
from wmdp_fast.cli.method_options import add_budget, add_settings, config_of
from wmdp_fast.cli.options import whole_number
from wmdp_fast.runtime.ranks import place_of_process
from wmdp_fast.runtime.tables import number_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wmdp_fast.unlearning.result import UnlearnResult

# Tasks that a line below the accuracies names.
_MOST_NAMED = 4

SUMMARY = "Unlearn the subjects of some corpora, with RMU or another method."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast unlearn`."""
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("model", metavar="MODEL", help="a folder, or a name on the Hugging Face hub")
    add_settings(parser)

    lower = parser.add_argument_group("a model that does not fit (RMU)")
    lower.add_argument(
        "--memory",
        metavar="SIZE",
        help="memory to take, such as 16GB: if the layers that RMU runs need more, those below the trained ones stay"
        " on the disk and are read when they are run, with --eval-tasks and --eval-text also those above",
    )
    lower.add_argument("--stream", action="store_true", help="do so even if they fit, in what memory is free")

    several = parser.add_argument_group("a model that does not fit on one device (LoRA)")
    several.add_argument(
        "--devices",
        metavar="DS",
        help="with --parallel, a process on each of several: all (GPUs), a number of GPUs, cuda:0,cuda:1 or cpu:2",
    )
    several.add_argument(
        "--parallel",
        choices=("fsdp",),
        help="with --devices or torchrun: hold one model together, each with a part of every layer and of every batch",
    )

    watch = parser.add_argument_group("watching it")
    watch.add_argument("--eval-tasks", action="append", metavar="NAMES", help="tasks to score before, during and after")
    watch.add_argument(
        "--eval-text", action="append", metavar="FILE", help="held-out text whose perplexity to measure with them"
    )
    watch.add_argument("--eval-every", type=whole_number(least=1), metavar="N", help="steps between evaluations")
    watch.add_argument(
        "--stop-when", action="append", metavar="COND", help="end once all hold, e.g. 'wmdp_bio.acc<0.30'"
    )
    watch.add_argument(
        "--keep-while",
        action="append",
        metavar="COND",
        help="end once one fails, e.g. 'mmlu.acc>=before-0.02', and go back to the last step that fulfilled all",
    )
    add_budget(watch)
    watch.add_argument("--report-to", action="append", metavar="NAME", help="tensorboard, wandb or trackio")
    watch.add_argument(
        "--log-samples",
        action=argparse.BooleanOptionalAction,
        help="keep every question's scores in DIR/evaluations, for `compare` and `report` (default yes)",
    )
    watch.add_argument("--quiet", action="store_true", help="no progress and no notes on stderr")

    asking = parser.add_argument_group("how to ask the questions of --eval-tasks, as in eval")
    add_selection(asking)
    add_wording(asking)

    output = parser.add_argument_group("output")
    output.add_argument("--output", required=True, metavar="DIR", help="folder for the new checkpoint")
    output.add_argument("--resume", action="store_true", help="go on from where an interrupted run to DIR stopped")
    parser.set_defaults(quiet=False, fail=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Unlearns, and says what came out."""
    try:
        config = config_of(arguments)
    except ValueError as error:
        # One line: the usage of all methods' options would bury it.
        print(f"error: {error}", file=sys.stderr)
        return 2
    if hasattr(arguments, "devices"):
        if hasattr(arguments, "device"):
            arguments.fail("--devices and --device exclude each other")
        if not hasattr(arguments, "parallel"):
            arguments.fail("--devices is for several processes that hold one model: it needs --parallel fsdp")
        return devices.run(arguments.devices, arguments.given)
    is_first = place_of_process().rank == 0
    shows = is_first and not arguments.quiet
    if not shows:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    given = vars(arguments)
    passed = (
        "resume",
        "revision",
        "device",
        "trust_remote_code",
        "eval_every",
        "eval_tasks",
        "eval_text",
        "stop_when",
        "keep_while",
        "max_kl",
        "kl_text",
        "kl_every",
        "log_samples",
        "data",
        "cache_trunk",
        "cache_limit",
        "memory",
        "stream",
        "parallel",
    )
    options: dict[str, Any] = {name: given[name] for name in (*passed, "report_to") if name in given}
    with _reading_ahead(arguments.model, config.depth, options):
        from wmdp_fast.unlearning.api import unlearn

        result = unlearn(
            arguments.model,
            forget=arguments.forget,
            retain=arguments.retain,
            config=config,
            output=arguments.output,
            eval_options=asked(arguments),
            progress=shows,
            note=_note if shows else None,
            **options,
        )
    if is_first:
        _report(result)
    return 0


def _reading_ahead(
    model: str, depth: int | None, options: Mapping[str, Any]
) -> contextlib.AbstractContextManager[None]:
    """Inside, what a run needs of the model's files is read, unless all of it is and that may not fit."""
    last_layer = None
    if "parallel" in options:
        return contextlib.nullcontext()  # each process reads a share
    if depth is not None and not {"eval_tasks", "eval_text", "max_kl"} & options.keys():
        last_layer = depth - 1
    elif {"memory", "stream"} & options.keys():
        return contextlib.nullcontext()
    return reading_ahead(model, revision=options.get("revision"), last_layer=last_layer)


def _report(result: UnlearnResult) -> None:
    """Prints what came out."""
    last = result.metrics[-1] if result.metrics else {}
    if result.stopped:
        print(f"stopped {result.stopped}; the weights are those of step {result.best_step}")
    for one in result.evaluations:
        scores = ", ".join(
            f"{task} {of['acc']:.3f}" if "acc" in of else f"{task} word perplexity {number_text(of['word_perplexity'])}"
            for task, of in one["scores"].items()
            if "acc" in of or "word_perplexity" in of
        )
        print(f"step {one['step']}: {scores}")
    for line in _meaning(result.evaluations):
        print(line)
    if result.budget is not None:
        print(f"KL from the original: {result.budget['kl']:.4g} nats per token, of at most {result.budget['max_kl']:g}")
    peak = f", peak memory {last['peak_memory_mb']:.0f} MB" if "peak_memory_mb" in last else ""
    print(f"{result.steps} steps in {result.seconds.get('steps', 0.0):.1f} s{peak}: {result.output}")


def _meaning(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the accuracies of a run are to be read against."""
    asked: dict[str, list[str]] = {}
    for one in evaluations[-1:]:
        for task, of in one["scores"].items():
            if "acc" in of:
                chance = one.get("chance", {}).get(task)
                guessing = "" if chance is None else f"; guessing gives {chance:.3f}"
                asked.setdefault(f"{one['questions'][task]} questions{guessing}", []).append(task)
    return [
        f"accuracy of {', '.join(tasks[:_MOST_NAMED])}{' and others' * (len(tasks) > _MOST_NAMED)}: on {what}"
        for what, tasks in asked.items()
    ][:_MOST_NAMED]


def _note(line: str) -> None:
    print(line, file=sys.stderr)
