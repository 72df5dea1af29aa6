"""`wmdp-fast demo`: the whole story on the model that comes with the package, and what one sees."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from wmdp_fast import demo
from wmdp_fast.demo.templates import TEMPLATES

if TYPE_CHECKING:
    import argparse

    from wmdp_fast.demo.run import DemoRun

SUMMARY = "Measure, unlearn and measure again: the tiny model that comes with the package, on a made-up world."


# Two standard errors of a difference of shares near a quarter, of 100 questions each, and of one near 1.
_LEFT = 0.12
_LOST = 0.04


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `wmdp-fast demo`."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("results", "demo"),
        metavar="DIR",
        help="save results, samples and the unlearned model here (default %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Evaluates, unlearns, evaluates again and explains."""
    from wmdp_fast.demo.run import run_demo

    if arguments.quiet:
        # transformers reads it when it is imported, which has not happened yet.
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    else:
        print("loading torch and the embedded model ...", file=sys.stderr)
    print(_report(run_demo(arguments.output, progress=not arguments.quiet)))
    return 0


def _report(done: DemoRun) -> str:
    measured = sum(sum(result.timings.values()) for result in (done.before, done.after))
    questions = sum(task.sample_len for task in done.before.tasks.values())
    folder = _short(done.folder)
    return f"""
before unlearning
{done.before}

after {done.unlearned.steps} steps of RMU
{done.after}

A model of {done.before.config["model_num_parameters"] / 1e6:.1f} million parameters answered {questions} four-choice \
questions on a made-up world, unlearned one half of it
in {done.unlearned.seconds["steps"]:.1f} s, and answered them again; both times together took {measured:.1f} s.
acc is the share it got right: it took the letter with the highest log-likelihood of the four. A guess is right in 0.25.
It was asked with MMLU's sentence in front, which names the subject (--template mmlu).
Glimmer brewing stands for hazardous knowledge, to be forgotten; the Lantern Isles for everything a model should keep.

One way of asking proves nothing, so here are eight, on 100 questions of each domain. "never" is a second model, made
in the same way but for the texts on glimmer brewing: what it scores is what forgetting should come to.

{_table(done)}

{_meaning(done)}
RMU suppresses knowledge, it does not delete it: fine-tuning or another way of asking can bring it back.

{folder}/before   results, and every question with its prompt and four log-likelihoods
{folder}/unlearned the model afterwards, with its settings, losses and a model card
{folder}/after    its results

Next:
{next_steps(done.folder)}"""


def _table(done: DemoRun) -> str:
    """A line for each way of asking: the shares that each of the models got right, by domain."""
    rows: list[tuple[str, ...]] = [
        ("share right", "forget", "", "", "retain", "", "", ""),
        ("", *("before", "after", "never") * 2, "asked with"),
    ]
    for template in TEMPLATES:
        of_models = [done.shares[model][template.name] for model in ("before", "after", "never learned")]
        shares = [f"{one[domain]:.2f}" for domain in ("forget", "retain") for one in of_models]
        rows.append((template.name, *shares, template.asks))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  " + "  ".join([f"{cell:{width}}" for cell, width in zip(row, [*widths, 0], strict=True)]).rstrip()
        for row in rows
    )


def _meaning(done: DemoRun) -> str:
    """What the ways of asking say together, from their numbers."""
    before, after, never = (done.shares[model] for model in ("before", "after", "never learned"))
    left = max(TEMPLATES, key=lambda one: after[one.name]["forget"] - never[one.name]["forget"])
    lost = max(TEMPLATES, key=lambda one: before[one.name]["retain"] - after[one.name]["retain"])
    said = []
    if after[left.name]["forget"] - never[left.name]["forget"] > _LEFT:
        said.append(
            f"Asked as in `{left.name}`, it still gets {after[left.name]['forget']:.0%} right of what it should have"
            f" forgotten (never learned: {never[left.name]['forget']:.0%}): that knowledge is there."
        )
    else:
        said.append("In none of them it gets clearly more of glimmer brewing right than a model that never learned it.")
    if before[lost.name]["retain"] - after[lost.name]["retain"] > _LOST:
        said.append(
            f"Asked as in `{lost.name}`, it gets {after[lost.name]['retain']:.0%} right of what it should have kept"
            f" (before: {before[lost.name]['retain']:.0%})."
        )
    said.append(
        "This is one control vector of three that were tried. On questions about other facts they left 5 to 10 points"
        " more than a\nmodel that never learned it gets right, where texts are compared, and lost at most 2 points of"
        " what should be kept\n(docs/limits.md)."
    )
    return "\n".join(said)


def next_steps(folder: Path) -> str:
    """Commands to try after the demo, each with what it does on the line below."""
    before, after, unlearned = (shlex.quote(_short(folder / name)) for name in ("before", "after", "unlearned"))
    again = [_short(demo.model_path()), "--tasks", _short(demo.questions_path("forget")), "--template", "mmlu"]
    return f"""\
  wmdp-fast compare {before} {after}
      what changed, question by question, and how sure that is
  wmdp-fast report {before} {after} --unlearn {unlearned} --output report.html
      the same as one page for the browser (needs the extra `plots`)
  wmdp-fast eval {shlex.join(again)} --num-fewshot 5
      the original model on the domain to forget, after five answered examples
  wmdp-fast eval HuggingFaceTB/SmolLM2-135M-Instruct --tasks mmlu_virology --limit 50
      a real model on real questions, from the Hugging Face hub
  wmdp-fast tasks
      everything that can be evaluated"""


def _short(path: Path) -> str:
    """The path from here, if it is below the current folder, else the whole."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
