"""The commands of a publication's result, from the base to the table."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from wmdp_fast import demo
from wmdp_fast.demo.unlearning import demo_config
from wmdp_fast.unlearning.methods.as_options import as_options
from wmdp_fast.unlearning.rmu.config import RMUConfig
from wmdp_fast.unlearning.rmu.presets import preset

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The rehearsal takes fewer steps than the demo does: it shows that everything runs, not how much can be unlearned.
_REHEARSAL_STEPS = 20

PUBLICATIONS = ("zephyr-7b", "yi-34b", "mixtral-8x7b")
REHEARSAL = "demo"

_NEEDS = {
    "zephyr-7b": "memory for 14.5 GB of weights to evaluate; unlearning loads the 8 lowest of 32 layers",
    "yi-34b": "memory for 69 GB of weights to evaluate; unlearning loads the 16 lowest of 60 layers",
    "mixtral-8x7b": "memory for 93 GB of weights to evaluate; unlearning loads the 8 lowest of 32 layers",
}

_LINES = (
    "The publication trained on the raw lines of a cyber-forget-corpus.jsonl that the hub does not have: with --data"
    " DIR and that file in it they are read here too; otherwise its text is."
)
# Of the numbers of requests in the authors' notebooks: 4 times (14,042 of MMLU + those of WMDP).
_REVISED = (
    "The published numbers are on {} questions of WMDP; the hub has 3,668 now, so they need not agree to the digit."
)
_QUESTIONS = {
    "zephyr-7b": "The published numbers are on the 3,668 questions of WMDP that the hub has.",
    "yi-34b": _REVISED.format("3,746"),
    "mixtral-8x7b": _REVISED.format("3,880"),
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command.

    Attributes:
        what: What it does, in a few words.
        arguments: Its arguments, the name of the subcommand first.
        leaves: The pattern of a file that is there when it is done, below the folder of the reproduction; None if it
            is to be run whenever it is asked for.
    """

    what: str
    arguments: tuple[str, ...]
    leaves: str | None = None


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """The steps of a publication's result.

    Attributes:
        name: What `--published` and `--preset` call it.
        about: What is to be known: what it needs, and what of the publication cannot be had.
        steps: The commands, in order.
    """

    name: str
    about: Sequence[str]
    steps: Sequence[Step]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a user chose.

    Attributes:
        output: The folder for everything.
        attacks: Attacks to run on the result; empty for none.
        budget: How many settings of each.
        data: Folder with datasets and corpora, in place of the hub.
        limit: Only so many questions of each task, for a trial.
    """

    output: str
    attacks: str = ""
    budget: str = "standard"
    data: str | None = None
    limit: str | None = None

    def below(self, *names: str) -> str:
        """A path below the output."""
        return str(PurePath(self.output, *names))

    @property
    def asking(self) -> list[str]:
        """Options of whatever reads data and asks questions."""
        return [*self.reading, *([] if self.limit is None else ["--limit", self.limit])]

    @property
    def has_cyber_lines(self) -> bool:
        """Whether the cyber corpus is there as the publication had it, a file of lines."""
        return self.data is not None and Path(self.data, "cyber-forget-corpus.jsonl").is_file()

    @property
    def reading(self) -> list[str]:
        """Options of whatever reads data."""
        return [] if self.data is None else ["--data", self.data]


def reproduction(name: str, wanted: Wanted) -> Reproduction:
    """The steps of a publication, or of a rehearsal on the embedded world.

    Raises:
        ValueError: There is none of that name; lists those there are.
    """
    if name == REHEARSAL:
        return _rehearsal(wanted)
    if name not in PUBLICATIONS:
        raise ValueError(f"there is no {name!r} to reproduce; there are {', '.join((*PUBLICATIONS, REHEARSAL))}")
    known = preset(name)
    way = ["--lm-eval-compat", "0.4.2"]

    def evaluate(model: str, where: str) -> Step:
        arguments = ["eval", model, "--tasks", "wmdp,mmlu", *way, *wanted.asking]
        output = ["--output", wanted.below(where), "--log-samples"]
        return Step(what=f"evaluate {where}", arguments=(*arguments, *output), leaves=f"{where}/**/results_*.json")

    # The hub has the cyber corpus as parquet, which has no lines.
    raw_lines = ["--raw-lines", "no,yes"] if wanted.has_cyber_lines else []
    made = wanted.below("rmu")
    unlearn = Step(
        what="unlearn biology and cybersecurity with RMU",
        arguments=(
            *("unlearn", known.model, "--preset", name, "--seed", "42"),
            *("--forget", "bio-forget-corpus", "--forget", "cyber-forget-corpus"),
            *("--retain", "wikitext", *raw_lines, *wanted.reading, "--output", made),
        ),
        leaves="rmu/unlearn.json",
    )
    topics = {
        "bio": ["--tasks", "wmdp_bio", "--forget", "bio-forget-corpus", "--related", "bio-retain-corpus"],
        "cyber": ["--tasks", "wmdp_cyber", "--forget", "cyber-forget-corpus", "--related", "cyber-retain-corpus"],
    }
    kept = ["--utility", "mmlu", "--utility-limit", "20"]
    attacks = [
        _attack(wanted, made, known.model, topic, [*options, *kept, *way, *wanted.asking])
        for topic, options in topics.items()
    ]
    return Reproduction(
        name=name,
        about=[
            f"{known.model} with RMU: {known.source}.",
            known.note,
            f"Needs {_NEEDS[name]}. Attacks that train need several times as much.",
            "On the hub, the terms of cais/wmdp and cais/wmdp-bio-forget-corpus must be accepted.",
            "" if wanted.has_cyber_lines else _LINES,
            _QUESTIONS[name],
        ],
        steps=[
            evaluate(known.model, "before"),
            unlearn,
            evaluate(made, "after"),
            *(attacks if wanted.attacks else ()),
            *_shown(wanted, list(topics), ["--published", name]),
        ],
    )


def _rehearsal(wanted: Wanted) -> Reproduction:
    """The same steps on the embedded world."""
    model, made = str(demo.model_path()), wanted.below("rmu")
    forget, retain = str(demo.questions_path("forget")), str(demo.questions_path("retain"))
    way = ["--template", "mmlu"]

    def evaluate(model: str, where: str) -> Step:
        arguments = ["eval", model, "--tasks", f"{forget},{retain}", *way, *wanted.asking, "--dtype", "float32"]
        output = ["--output", wanted.below(where), "--log-samples"]
        return Step(what=f"evaluate {where}", arguments=(*arguments, *output), leaves=f"{where}/**/results_*.json")

    settings = {**demo_config().to_json(), "max_steps": _REHEARSAL_STEPS}
    changed = {name: value for name, value in settings.items() if value != _DEFAULTS.get(name)}
    corpora = ["--forget", str(demo.corpus_path("forget")), "--retain", str(demo.corpus_path("retain"))]
    unlearn = Step(
        what="unlearn the craft of glimmer brewing with RMU",
        arguments=("unlearn", model, *as_options(RMUConfig, changed), *corpora, "--output", made),
        leaves="rmu/unlearn.json",
    )
    corpora = ["--forget", corpora[1], "--related", corpora[3]]
    kept = ["--utility", retain, "--utility-limit", "100", "--dtype", "float32"]
    attack = _attack(wanted, made, model, "forget", ["--tasks", forget, *corpora, *kept, *way, *wanted.asking])
    return Reproduction(
        name=REHEARSAL,
        about=[
            "A rehearsal on the embedded world: that all of it runs, before it is run on a model that takes hours.",
            f"Its {_REHEARSAL_STEPS} steps are too few to forget much, so accuracy hardly falls; `wmdp-fast demo` takes"
            " as many as it needs.",
        ],
        steps=[
            evaluate(model, "before"),
            unlearn,
            evaluate(made, "after"),
            *([attack] if wanted.attacks else ()),
            *_shown(wanted, ["forget"], []),
        ],
    )


_DEFAULTS = RMUConfig().to_json()


def _attack(wanted: Wanted, made: str, base: str, topic: str, options: Sequence[str]) -> Step:
    chosen = ["--attacks", wanted.attacks, "--budget", wanted.budget, "--output", wanted.below("attacked", topic)]
    return Step(what=f"attack ({topic})", arguments=("attack", made, "--base", base, *options, *chosen))


def _shown(wanted: Wanted, topics: Sequence[str], more: Sequence[str]) -> list[Step]:
    """What is read off in the end."""
    rows = [f"base={wanted.below('before')}", f"rmu={wanted.below('after')}"]
    attacked = [f"rmu={wanted.below('attacked', topic)}" for topic in topics] if wanted.attacks else []
    return [
        Step(
            what="compare, question by question",
            arguments=("compare", wanted.below("before"), wanted.below("after"), "--names", "base,rmu"),
        ),
        Step(what="the table", arguments=("table", *rows, *attacked, *more)),
    ]


def script(made: Reproduction, quote: Callable[[str], str]) -> str:
    """The steps as a shell script.

    Args:
        made: The steps.
        quote: Makes a word safe for a shell.
    """
    lines = ["#!/bin/sh", *(f"# {line}" for text in made.about for line in textwrap.wrap(text, 110)), "set -e"]
    for step in made.steps:
        lines += ["", f"# {step.what}", " ".join(["wmdp-fast", *map(quote, step.arguments)])]
    return "\n".join(lines)
