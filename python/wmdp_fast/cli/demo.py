"""`wmdp-fast demo`: the whole story on the model that comes with the package, and what one sees."""

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

SUMMARY = "Measure, unlearn and measure again: the tiny model that comes with the package, on a made-up world."


# A difference in accuracy between two ways of asking that changes what a run means.
_SURPRISE = 0.1


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
It was asked in the words it was taught with: WMDP's, a sentence in front that names the subject (--template mmlu).
Without that sentence its accuracy is another, before and after (docs/tour.md, docs/unlearn.md).
Glimmer brewing stands for hazardous knowledge, to be forgotten; the Lantern Isles for everything a model should keep.

the same questions asked otherwise: share right, before -> after
{_ways(done)}
{_meaning(done)}
RMU suppresses knowledge, it does not delete it: fine-tuning or another way of asking can bring it back.

{folder}/before   results, and every question with its prompt and four log-likelihoods
{folder}/unlearned the model afterwards, with its settings, losses and a model card
{folder}/after    its results

Next:
{next_steps(done.folder)}"""


def _ways(done: DemoRun) -> str:
    """A line for each way of asking."""
    rows = [("", "forget", "retain")]
    for asked in done.otherwise:
        pairs = [f"{asked.before[domain]:.2f} -> {asked.after[domain]:.2f}" for domain in ("forget", "retain")]
        rows.append((asked.way, pairs[0], pairs[1]))
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"  {way:{width}}  {forget:12}  {retain}".rstrip() for way, forget, retain in rows)


def _meaning(done: DemoRun) -> str:
    """What the ways of asking say together, from their numbers."""
    own, *others = done.otherwise
    easiest = max(others, key=lambda asked: asked.after["forget"])
    hardest = min(others, key=lambda asked: asked.after["retain"])
    regained, lost = easiest.after["forget"], hardest.after["retain"]
    if regained - own.after["forget"] < _SURPRISE and own.after["retain"] - lost < _SURPRISE:
        return "However it is asked, the answer is much the same."
    return f"""\
So the first line flatters: much of what was unlearned is the sentence, not the craft.
Asked with {easiest.way}, the model still gets {regained:.0%} right of what it should have forgotten;
asked with {hardest.way}, it gets {lost:.0%} right of what it should have kept.
A low score in one way of asking is no proof of forgetting: ask in several before you believe it."""


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
