"""What a report shows, as plain numbers and names: the page and its figures are made from this and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from wmdp_fast.robustness.claims import Outcome


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A share of one with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of an accuracy.

    Attributes:
        value: After minus before.
        low: Lower end of the difference's 95 % interval.
        high: Its upper end.
        p: Probability of a difference at least as large by chance alone, corrected for the number of tasks; None if
            it was not computed.
        gained: Questions that were wrong before and are right now; None if no samples were saved.
        lost: Questions that were right before and are wrong now.
    """

    value: float
    low: float
    high: float
    p: float | None
    gained: int | None
    lost: int | None


# What a task is in a report of unlearning: knowledge that should go, or ability that should stay; `near` is ability so
# close to what should go that it is the likeliest to go too.
Aim = Literal["forget", "near", "retain"]

# Where an accuracy stands beside guessing; `unclear` is an accuracy at guessing from answers that are not guesses.
Place = Literal["above", "at", "below", "unclear"]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What one run's answers to a task are beside guessing.

    Attributes:
        place: Where its accuracy is.
        why: What makes that unclear, as a sentence; empty if nothing does.
    """

    place: Place
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A task's or group's accuracy in every run.

    Attributes:
        name: lm-eval's name.
        label: The name shown.
        depth: How far below the top.
        is_group: Whether it stands for the tasks below it.
        is_subject: Whether it is one of so many that they get a figure of their own.
        aim: Whether it should be forgotten or kept; None if nobody said that anything should be forgotten.
        count: Number of questions.
        chance: Accuracy of guessing, or None if the number of choices is not known.
        accuracies: Of each run, the baseline first; None where a run does not have it.
        standings: Each run's beside guessing; None where that is not known.
        changes: Of each run but the first, from the first; None where they were not compared.
    """

    name: str
    label: str
    depth: int
    is_group: bool
    is_subject: bool
    aim: Aim | None = None
    count: int
    chance: float | None
    accuracies: Sequence[Estimate | None]
    standings: Sequence[Standing | None]
    changes: Sequence[Change | None] = ()

    @property
    def shown(self) -> list[Estimate]:
        """The accuracies that are known."""
        return [accuracy for accuracy in self.accuracies if accuracy is not None]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The questions whose preferred choice has a probability in a range.

    Attributes:
        low: Lower end of the range.
        high: Its upper end.
        count: Number of questions.
        confidence: Their mean probability.
        accuracy: Share of them that are right; of no meaning if there are none.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: Estimate


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How many values lie between each two neighboring edges; the outermost cells hold all beyond them too."""

    edges: list[float]
    counts: list[int]
    median: float


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How one run scored the questions of a part of the tasks.

    Attributes:
        name: The run's name.
        look: How it is drawn.
        calibration: By probability of the preferred choice, in ranges of at least ten questions.
        ece: Expected calibration error, as a share of one.
        brier: Brier score over the choices.
        margins: Lead of the right choice over the best wrong one, in nats.
    """

    name: str
    look: str
    calibration: list[Cell]
    ece: float
    brier: float
    margins: Histogram


@dataclass(frozen=True, kw_only=True)
class Part:
    """A group, or a task in none, with each run's scores."""

    label: str
    scores: list[Scores]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A quantity over the steps of a run.

    Attributes:
        name: What is measured.
        steps: When.
        values: The quantity; as many as there are steps.
        look: How it is drawn; None takes the next free look of the figure.
        intervals: The ends of each value's 95 % interval; empty if it has none.
    """

    name: str
    steps: list[int]
    values: list[float]
    look: str | None = None
    intervals: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Curves that share a figure.

    Attributes:
        title: What they are.
        unit: Of the upright axis.
        curves: The curves.
        note: What a reader must know beside what the figure says of itself.
        axis: What they are over.
    """

    title: str
    unit: str
    curves: list[Curve]
    note: str = ""
    axis: str = "step"


@dataclass(frozen=True, kw_only=True)
class Level:
    """A number of a model, or why there is none.

    Attributes:
        value: The number, in the unit of its figure; None if there is none.
        ends: The ends of its 95 % interval, if it has one.
        text: The number as text, or the reason.
    """

    value: float | None
    ends: tuple[float, float] | None = None
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Numbers of several models that share a figure.

    Attributes:
        title: What they are.
        unit: Of the axis.
        models: How each model is drawn, and what it is.
        rows: By what was measured the number of each model.
        note: What was not measured, and why.
    """

    title: str
    unit: str
    models: Sequence[tuple[str, str]]
    rows: Mapping[str, Sequence[Level]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A heading and what is known under it, as names and texts."""

    title: str
    facts: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Unlearning:
    """An unlearning run: its curves, and everything that was recorded about it.

    Attributes:
        plots: The curves.
        records: What was recorded.
        verdict: What the run said was wrong with it; empty if nothing was.
    """

    plots: list[Plot]
    records: list[Facts]
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """What an attack found.

    Attributes:
        attack: Its name.
        accuracies: Of each model under it; None where it was not run.
        null: Accuracy after the same recipe on what cannot bring anything back; None if there was no such control.
        recovered: Share of the gap to the base that it regains; None if that cannot be told.
        setting: The setting that was chosen.
        tried: How many readings it was chosen from.
        excluded: How many beside them did not count, since the model had lost too much.
    """

    attack: str
    accuracies: Sequence[Estimate | None]
    null: Estimate | None
    recovered: float | None
    setting: str
    tried: int
    excluded: int


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Attacks on a model.

    Attributes:
        name: What the model is called.
        models: Names of the models by what they are: the unlearned one first, then the controls.
        chance: Accuracy of guessing.
        questions: Number of questions that are reported.
        budget: How many settings were tried.
        rows: The attacks, the one that brings back most first; one of them only asks.
        plots: Accuracy by step and by layer.
        outcome: Whether the model stands the attack that brings back most; None if it was only asked.
        claims: What may be said of the model.
        kept: What was to be kept, without an attack: what was measured, and its value of each model as text.
        levels: The same to be drawn.
        notes: What was not run or not measured.
    """

    name: str
    models: Mapping[str, str]
    chance: float
    questions: int
    budget: str
    rows: Sequence[AttackRow]
    plots: Sequence[Plot]
    outcome: Outcome | None
    claims: Sequence[str]
    kept: Sequence[tuple[str, Sequence[str]]] = ()
    levels: Sequence[Levels] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """An evaluation: whose, when, and how it was made.

    Attributes:
        name: What it is called in the report.
        model: The model's name, or its folder's without the path, which a shared report need not tell.
        date: When, as text.
        asked: How it was asked, in a few words: examples before each question, chat template, dtype.
        made_by: The program, with its version.
        look: How it is drawn.
        records: Settings, timings, hardware, versions, hashes.
    """

    name: str
    model: str
    date: str
    asked: str
    made_by: str
    look: str
    records: list[Facts]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one run answered to a task's questions.

    Attributes:
        chosen: Index of the choice that was preferred.
        permille: Probability of the right choice among the choices, in thousandths.
        margins: Lead of the right choice over the best wrong one, in hundredths of a nat.
    """

    chosen: list[int]
    permille: list[int]
    margins: list[int]


@dataclass(frozen=True, kw_only=True)
class TaskQuestions:
    """The questions of a task, a column for each thing known about them.

    Attributes:
        task: The task's name.
        ids: lm-eval's `doc_id` of each.
        hashes: The first characters of each document's SHA-256, all in one string.
        right: Index of the right choice.
        answers: Of each run, the baseline first; None where a run did not answer all of these questions.
        texts: Question and choices, if asked for.
    """

    task: str
    ids: list[int]
    hashes: str
    right: list[int]
    answers: list[Answers | None]
    texts: list[tuple[str, list[str]]] | None = None


# Characters of a hash that are kept: 48 bits tell 18,000 questions apart (a clash has a chance of one in a million).
HASH_LENGTH = 12


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything on the page.

    Attributes:
        title: What was evaluated, or what was compared.
        runs: The evaluations, the baseline first.
        rows: Tasks and groups, as deep as they are nested.
        by_step: Accuracy over a training run, if the evaluations are of its checkpoints.
        parts: Calibration and margins.
        questions: Every question, by task.
        warnings: What makes the numbers less comparable or less sure.
        unlearning: The run that made the later model.
        attacked: Attacks on models.
        statistics: How intervals and probabilities were computed.
    """

    title: str
    runs: Sequence[Run]
    rows: Sequence[Row]
    by_step: Sequence[Plot] = ()
    parts: Sequence[Part] = ()
    questions: Sequence[TaskQuestions] = ()
    warnings: Sequence[str] = ()
    unlearning: Unlearning | None = None
    attacked: Sequence[Attacked] = ()
    statistics: Mapping[str, str] = field(default_factory=dict)

    @property
    def compared(self) -> bool:
        """Whether there is a baseline."""
        return len(self.runs) > 1
