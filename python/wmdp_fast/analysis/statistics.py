"""What saved results say beyond their means: intervals, p-values, calibration, near-ties, letters, ranks.

The numbers come from the Rust core (`wmdp_fast._rust`: `wilson`, `paired_interval`, ...), whose docstrings hold
formulas and sources; `docs/statistics.md` has them all in one place. Here they are put together for a task and a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wmdp_fast import _rust
from wmdp_fast.results.letters import Collapse, collapse, letter_of
from wmdp_fast.results.near_tie import near_tie_of
from wmdp_fast.results.saved import RECOMPUTABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from wmdp_fast.results.saved import SavedGroup, SavedResults, SavedTask

# Bins of equal width for calibration, as Guo et al. 2017 have them.
NUM_BINS = 15

# Fewest questions over which a letter's mean log-likelihood is taken.
_CENTERED_LEAST = 10

# By how much an interval may end above guessing for an accuracy at it to say something.
_REACH = 0.1

# A p-value below this tells from guessing.
SIGNIFICANT = 0.05

# Of the same questions of a task, whether they are right in one run and in another.
AnswerPair = tuple["npt.NDArray[np.bool_]", "npt.NDArray[np.bool_]"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A share of right answers and how sure it is.

    Attributes:
        value: The share.
        stderr: lm-eval's standard error: sample standard deviation over the root of n for a task, pooled over tasks
            for a group; None for a single question.
        low: Lower end of Wilson's interval.
        high: Its upper end.
        clustered_stderr: For a group, the standard error that lets questions of one task depend on each other.
    """

    value: float
    stderr: float | None
    low: float
    high: float
    clustered_stderr: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """As a JSON object."""
        found = {"value": self.value, "stderr": self.stderr, "low": self.low, "high": self.high}
        if self.clustered_stderr is not None:
            found["clustered_stderr"] = self.clustered_stderr
        return found


@dataclass(frozen=True, kw_only=True)
class Chance:
    """How far the right answers (by `acc`) are from guessing.

    Attributes:
        share: Share of right answers that guessing gives.
        z: How many standard deviations of guessing the answers are above it.
        p: Two-sided p-value of the exact binomial test.
    """

    share: float
    z: float
    p: float


@dataclass(frozen=True, kw_only=True)
class LetterBias:
    """Which choices a model picks by their place, over questions with the same number of choices.

    Attributes:
        letters: `A`, `B`, ...
        predicted: How often each was predicted (by `acc`).
        right: How often each was right.
        chi_square: Pearson's statistic of the predictions against equal frequency.
        p: Its p-value.
    """

    letters: tuple[str, ...]
    predicted: tuple[int, ...]
    right: tuple[int, ...]
    chi_square: float
    p: float

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of predictions by letter."""
        return tuple(count / sum(self.predicted) for count in self.predicted)


@dataclass(frozen=True, kw_only=True)
class RankTest:
    """Whether the right choice ranks higher among its question's than a model that knows nothing would have it.

    Choices rank by their log-likelihood less its mean over the questions for that letter, so that a preference for a
    letter does not count. If scores knew nothing, right answers might as well be dealt anew among the questions; mean
    and variance over all such permutations are exact (Hoeffding 1951, Annals of Mathematical Statistics 22(4)).

    Attributes:
        beats: Mean share of a question's wrong choices that the right one is ahead of; an equal one counts half.
        expected: The same over all permutations of the right answers, near 0.5.
        z: How many standard deviations of the permutations `beats` is above that.
        p: Its two-sided p-value, by the normal distribution.
    """

    beats: float
    expected: float
    z: float
    p: float


@dataclass(frozen=True, kw_only=True)
class Letters:
    """What a model's preference for letters does to its accuracy, and what remains without it.

    Attributes:
        collapse: The choice that is answered to more than 90 % of the questions, if there is one.
        calibrated: `acc` after each letter's mean log-likelihood over the task's questions is subtracted: batch
            calibration (Zhou et al. 2023, arXiv:2309.17249). None if there are fewer than 10 questions of a task with
            as many choices, a target names no single choice, or a choice is impossible.
        rank: None if a target names no single choice, a choice is impossible, or nothing can differ.
    """

    collapse: Collapse | None = None
    calibrated: Estimate | None = None
    rank: RankTest | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "one_letter": None if self.collapse is None else vars(self.collapse),
            "letter_calibrated_acc": None if self.calibrated is None else self.calibrated.to_json(),
            "rank": None if self.rank is None else vars(self.rank),
        }


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the scores of a task, or of all tasks below a group, say.

    Attributes:
        name: Name of the task or group.
        n: Number of questions.
        metrics: The metrics that follow from the scores, by lm-eval's name.
        chance: Distance from guessing; None without `acc`.
        calibration: Calibration curve, expected calibration error and Brier score; None where a target names no single
            choice.
        near_ties: Questions whose two best choices are within `near_tie` nats.
        near_tie: That bound.
        ties: Questions whose two best choices have the very same log-likelihood: the first one won by its place.
        letter_bias: None if questions differ in their number of choices, or a target names no single choice.
        letters: What preferred letters do to the accuracy.
    """

    name: str
    n: int
    metrics: Mapping[str, Estimate]
    chance: Chance | None
    calibration: _rust.Calibration | None
    near_ties: int
    near_tie: float
    ties: int
    letter_bias: LetterBias | None
    letters: Letters

    @property
    def like_guessing(self) -> bool | None:
        """Whether neither the accuracy nor the right choices' ranks can be told from guessing; None if one is unknown.

        Each by its own two-sided test at 5 %. An accuracy that is at chance while ranks are not is what a model looks
        like that knows and prefers a letter.
        """
        if self.chance is None or self.letters.rank is None:
            return None
        return self.chance.p >= SIGNIFICANT and self.letters.rank.p >= SIGNIFICANT

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        calibration, bias = self.calibration, self.letter_bias
        return {
            "name": self.name,
            "n": self.n,
            "metrics": {metric: estimate.to_json() for metric, estimate in self.metrics.items()},
            "chance": None if self.chance is None else vars(self.chance),
            "brier": None if calibration is None else calibration.brier,
            "ece": None if calibration is None else calibration.ece,
            "near_ties": self.near_ties,
            "near_tie": self.near_tie,
            "ties": self.ties,
            "letters": None
            if bias is None
            else {
                "predicted": dict(zip(bias.letters, bias.predicted, strict=True)),
                "right": dict(zip(bias.letters, bias.right, strict=True)),
                "chi_square": bias.chi_square,
                "p": bias.p,
            },
            **self.letters.to_json(),
            "like_guessing": self.like_guessing,
        }


def share(correct: npt.NDArray[np.bool_], *, confidence: float = 0.95) -> Estimate:
    """The share of right answers with lm-eval's standard error and Wilson's interval.

    Args:
        correct: Whether each question was answered right, `[n]`.
        confidence: Confidence level of the interval.
    """
    n, right = len(correct), int(correct.sum())
    low, high = _rust.wilson(right, n, confidence=confidence)
    stderr = float(np.std(correct, ddof=1) / np.sqrt(n)) if n > 1 else None
    return Estimate(value=right / n, stderr=stderr, low=low, high=high)


def paired_statistics(answers: Sequence[AnswerPair], confidence: float) -> dict[str, Any]:
    """How the share of right answers changed between two runs over the same questions, and how sure that is.

    Args:
        answers: Whether each question is right in the first run and in the second, by task.
        confidence: Confidence level of the interval.

    Returns:
        Attributes of a `Difference`: Tango's score interval, the exact McNemar test's p-value, what changed either way
        and, over several tasks, the clustered standard error.
    """
    before = np.concatenate([mine for mine, _ in answers])
    after = np.concatenate([other for _, other in answers])
    change = after.astype(np.float64) - before
    right_to_wrong, wrong_to_right = int((before & ~after).sum()), int((~before & after).sum())
    low, high = _rust.paired_interval(right_to_wrong, wrong_to_right, len(before), confidence=confidence)
    clusters = np.repeat(np.arange(len(answers)), [len(mine) for mine, _ in answers])
    return {
        "n": len(before),
        "low": low,
        "high": high,
        "clustered_stderr": _rust.clustered_stderr(change, clusters) if len(answers) > 1 else None,
        "p": _rust.mcnemar(right_to_wrong, wrong_to_right),
        "right_to_wrong": right_to_wrong,
        "wrong_to_right": wrong_to_right,
    }


def metrics_of(task: SavedTask) -> tuple[str, ...]:
    """The metrics of a task that follow from its samples: those it has in its results, else those in its samples."""
    if task.samples is None:
        return ()
    known = tuple(metric for metric in RECOMPUTABLE if metric in task.metrics)
    recorded = tuple(metric for metric in RECOMPUTABLE if task.samples.recorded(metric) is not None)
    return tuple(metric for metric in known or recorded or ("acc",) if task.samples.correct(metric) is not None)


def correct_answers(task: SavedTask, metric: str) -> npt.NDArray[np.bool_] | None:
    """Whether each question is right by a metric, or None if the samples do not say or there are none."""
    if task.samples is None or metric not in RECOMPUTABLE:
        return None
    return task.samples.correct(metric)


def near_tie_margin(results: SavedResults) -> float:
    """Margin in nats up to which a prediction counts as a near-tie.

    It is the one recorded with the results; for those of lm-eval, this package's for the model's dtype, and that of
    float32 if no dtype was recorded.
    """
    if "near_tie" in results.extra:
        return float(results.extra["near_tie"])
    return near_tie_of(str(results.settings.get("model_dtype") or "float32"))


def describe_task(task: SavedTask, *, near_tie: float, confidence: float = 0.95) -> Description:
    """What a task's samples say.

    Args:
        task: The task, with samples.
        near_tie: Margin in nats up to which a prediction counts as a near-tie.
        confidence: Confidence level of the intervals.

    Raises:
        ValueError: If there are no samples, or log-likelihoods that give no probabilities; names task and question.
    """
    return _describe(task.name, [task], near_tie, confidence)


def describe_group(
    group: SavedGroup, tasks: Mapping[str, SavedTask], *, near_tie: float, confidence: float = 0.95
) -> Description:
    """What the samples of all tasks below a group say, pooled over questions.

    Args:
        group: The group.
        tasks: Tasks by name; all below the group, with samples.
        near_tie: Margin in nats up to which a prediction counts as a near-tie.
        confidence: Confidence level of the intervals.

    Raises:
        KeyError: A task of the group is missing.
        ValueError: As for `describe_task`.
    """
    leaves = [tasks[leaf] for leaf in group.leaves]
    # As in lm-eval, over the tasks that have it; a metric that the group does not name must be one of all of them.
    wanted = [
        metric
        for metric in RECOMPUTABLE
        if metric in group.metrics or all(metric in metrics_of(task) for task in leaves)
    ]
    return _describe(group.name, leaves, near_tie, confidence, pooled=wanted)


def _describe(
    name: str, tasks: list[SavedTask], near_tie: float, confidence: float, *, pooled: Sequence[str] | None = None
) -> Description:
    """What samples of tasks say together; `pooled` are the metrics of a group, None is a single task."""
    samples = []
    for task in tasks:
        if task.samples is None:
            raise ValueError(f"{task.name} was saved without samples (--log-samples)")
        samples.append(task.samples)
    counts = np.concatenate([np.diff(one.choice_offsets) for one in samples])
    gold = np.concatenate([one.gold for one in samples])
    predicted = np.concatenate([one.predicted("acc") for one in samples])
    margin = np.concatenate([one.margin for one in samples])
    metrics: dict[str, Estimate] = {}
    for metric in metrics_of(tasks[0]) if pooled is None else pooled:
        having = [task for task in tasks if metric in metrics_of(task)]
        if pooled is None:
            metrics[metric] = share(_correct(tasks[0], metric), confidence=confidence)
        elif having:
            metrics[metric] = _pooled(having, metric, confidence)
    known = bool((gold >= 0).all())
    chance = None
    if "acc" in metrics:
        right = sum(int(_correct(task, "acc").sum()) for task in tasks if "acc" in metrics_of(task))
        asked = [np.diff(task.samples.choice_offsets) for task in tasks if task.samples and "acc" in metrics_of(task)]
        guessing, z, p = _rust.against_chance(right, np.concatenate(asked).tolist())
        chance = Chance(share=guessing, z=z, p=p)
    return Description(
        name=name,
        n=len(gold),
        metrics=metrics,
        chance=chance,
        calibration=_calibration(name, samples, gold, counts) if known else None,
        near_ties=int((margin <= near_tie).sum()),
        near_tie=near_tie,
        ties=int((margin == 0).sum()),
        letter_bias=_letter_bias(predicted, gold, counts) if known else None,
        letters=letters_of(tasks, confidence=confidence),
    )


def _pooled(tasks: list[SavedTask], metric: str, confidence: float) -> Estimate:
    """A group's mean over questions with lm-eval's pooled error, and clustered by task where there are several."""
    answers = [_correct(task, metric) for task in tasks]
    each = [share(correct) for correct in answers]
    value, stderr = _rust.pool([one.value for one in each], [one.stderr for one in each], [len(one) for one in answers])
    together = np.concatenate(answers)
    low, high = _rust.wilson(int(together.sum()), len(together), confidence=confidence)
    clusters = np.repeat(np.arange(len(answers)), [len(one) for one in answers])
    clustered = _rust.clustered_stderr(together.astype(np.float64), clusters) if len(answers) > 1 else None
    return Estimate(value=value, stderr=stderr, low=low, high=high, clustered_stderr=clustered)


def _correct(task: SavedTask, metric: str) -> npt.NDArray[np.bool_]:
    correct = correct_answers(task, metric)
    if correct is None:
        raise ValueError(f"the samples of {task.name} do not say {metric}")
    return correct


def _calibration(
    name: str, samples: Iterable[_rust.Samples], gold: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> _rust.Calibration:
    loglikelihood = np.concatenate([one.loglikelihood for one in samples])
    try:
        return _rust.calibration(loglikelihood, np.append(0, np.cumsum(counts)), gold, num_bins=NUM_BINS)
    except ValueError as error:
        raise ValueError(f"{name}, {error}") from error


def letters_of(tasks: Sequence[SavedTask], *, confidence: float = 0.95) -> Letters:
    """What preferred letters do to the accuracy of tasks taken together; nothing where samples do not tell.

    Args:
        tasks: The task, or all tasks below a group.
        confidence: Confidence level of the interval.
    """
    samples = [task.samples for task in tasks if task.samples is not None]
    if not samples or len(samples) < len(tasks) or any((one.gold < 0).any() for one in samples):
        return Letters()
    strata = [stratum for one in samples for stratum in _strata(one)]
    predicted = np.concatenate([one.predicted("acc") for one in samples])
    gold = np.concatenate([one.gold for one in samples])
    return Letters(
        collapse=collapse(predicted, gold), calibrated=_calibrated(strata, confidence), rank=rank_test(strata)
    )


def guessing_text(description: Description) -> str | None:
    """Whether answers can be told from guessing, in words, where accuracy alone says less than that; else None."""
    chance, rank = description.chance, description.letters.rank
    if chance is None or rank is None or chance.p < SIGNIFICANT:
        return None
    if rank.p >= SIGNIFICANT:
        told = "not distinguishable from guessing, by accuracy and by the right choices' ranks"
        high = description.metrics["acc"].high
        return told if high <= chance.share + _REACH else f"{told}; of so few questions it may as well be {high:.2f}"
    where = "higher" if rank.z > 0 else "lower"
    return (
        f"the accuracy is that of guessing, but the right choices rank {where} than guessing would have them: it knows"
        " more than the accuracy says"
    )


# Log-likelihoods of questions with as many choices, less each letter's mean, `[n, k]`; and the right choices, `[n]`.
_Stratum = tuple["npt.NDArray[np.float64]", "npt.NDArray[np.int64]"]


def _strata(samples: _rust.Samples) -> Iterator[_Stratum]:
    """A task's questions by their number of choices, centered by letter."""
    offsets = samples.choice_offsets
    counts = np.diff(offsets)
    for num_choices in np.unique(counts).tolist():
        of_them = np.flatnonzero(counts == num_choices)
        scores = samples.loglikelihood[offsets[of_them][:, None] + np.arange(num_choices)]
        with np.errstate(invalid="ignore"):
            # A mean of what is impossible has no difference to anything: NaN, which the callers look for.
            yield scores - scores.mean(axis=0), samples.gold[of_them]


def _calibrated(strata: Sequence[_Stratum], confidence: float) -> Estimate | None:
    """Accuracy of the choices that are highest above their letter's mean.

    Whether a question counts in the means that are subtracted from it makes no difference: without it, all of its
    centered scores are larger by the factor n / (n - 1).
    """
    if any(len(gold) < _CENTERED_LEAST or not np.isfinite(centered).all() for centered, gold in strata):
        return None
    return share(np.concatenate([centered.argmax(axis=1) == gold for centered, gold in strata]), confidence=confidence)


def rank_test(strata: Sequence[tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]) -> RankTest | None:
    """Whether right choices rank above what permutations of the right answers give.

    Args:
        strata: Questions within which right answers may be exchanged, those of a task with as many choices: scores
            less each letter's mean, `[n, k]`, and the right choices, `[n]`.

    Returns:
        None if a score is not finite or no permutation changes anything.
    """
    if any(not np.isfinite(scores).all() for scores, _ in strata):
        return None
    seen = expected = variance = 0.0
    for scores, gold in strata:
        n, num_choices = scores.shape
        ahead = (scores[:, :, None] > scores[:, None, :]).sum(axis=2)
        equal = (scores[:, :, None] == scores[:, None, :]).sum(axis=2) - 1
        beats = (ahead + equal / 2) / (num_choices - 1)
        right = np.bincount(gold, minlength=num_choices)
        seen += float(beats[np.arange(n), gold].sum())
        expected += float(beats.mean(axis=0) @ right)
        if n > 1:
            # Of the matrix whose entry (q, i) is what question q would get with question i's answer.
            rows, columns = beats @ right / n, beats.mean(axis=0)
            residual = beats - rows[:, None] - columns + rows.mean()
            variance += float((residual**2 @ right).sum()) / (n - 1)
    total = sum(len(gold) for _, gold in strata)
    if variance < 1e-12:
        return None
    z = (seen - expected) / math.sqrt(variance)
    return RankTest(beats=seen / total, expected=expected / total, z=z, p=math.erfc(abs(z) / math.sqrt(2)))


def _letter_bias(
    predicted: npt.NDArray[np.int64], gold: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> LetterBias | None:
    if (counts != counts[0]).any():
        return None
    num_choices = int(counts[0])
    chosen = np.bincount(predicted, minlength=num_choices).tolist()
    chi_square, p = _rust.chi_square_uniform(chosen)
    return LetterBias(
        letters=tuple(map(letter_of, range(num_choices))),
        predicted=tuple(chosen),
        right=tuple(np.bincount(gold, minlength=num_choices).tolist()),
        chi_square=chi_square,
        p=p,
    )
