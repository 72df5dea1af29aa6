"""`wmdp-fast demo`: evaluates the model that comes with the package, and says what one sees."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast import demo

if TYPE_CHECKING:
    import argparse

    from wmdp_fast.demo.run import DemoRun

SUMMARY = "Evaluate the tiny model that comes with the package, on a made-up world it has learnt. No network."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast demo`."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results", "demo"),
        metavar="DIR",
        help="save results and samples here (default %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Evaluates, saves and explains."""
    from wmdp_fast.demo.run import run_demo

    if arguments.quiet:
        # transformers reads it when it is imported, which has not happened yet.
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    else:
        print("loading torch and the embedded model ...", file=sys.stderr)
    print(_report(run_demo(arguments.output, progress=not arguments.quiet)))
    return 0


def _report(done: DemoRun) -> str:
    seconds = sum(done.result.timings.values())
    questions = sum(task.sample_len for task in done.result.tasks.values())
    return f"""
{done.result}

A model of {done.result.config["model_num_parameters"] / 1e6:.1f} million parameters answered {questions} four-choice \
questions on a made-up world, in {seconds:.1f} s.
acc is the share it got right: it took the letter with the highest log-likelihood of the four. A guess is right in 0.25.
It was taught both domains. Glimmer brewing stands for hazardous knowledge, to be forgotten; the Lantern Isles stand for
everything a model should keep.

results: {done.results_file}
samples: {done.results_file.parent}/samples_*.jsonl, every question with its prompt and four log-likelihoods

Next:
{next_steps()}"""


def next_steps() -> str:
    """Commands to try after the demo, each with what it does on the line below."""
    again = [_short(demo.model_path()), "--tasks", _short(demo.questions_path("forget")), "--template", "mmlu"]
    return f"""\
  wmdp-fast eval {shlex.join(again)} --num-fewshot 5
      the same model on the domain to forget, after five answered examples
  wmdp-fast eval HuggingFaceTB/SmolLM2-135M-Instruct --tasks mmlu_virology --limit 50
      a real model on real questions, from the Hugging Face hub
  wmdp-fast tasks
      everything that can be evaluated"""


def _short(path: Path) -> str:
    """The path from here, if it is below the current folder, else the whole."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
