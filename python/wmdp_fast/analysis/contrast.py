"""One run against the baseline: what was compared, with which numbers, in which part of the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from wmdp_fast.analysis.statistics import Letters

if TYPE_CHECKING:
    from collections.abc import Mapping

Section = Literal["forget", "near", "general", "other"]

# The parts of a comparison in the order they are shown, and what they are called.
SECTIONS: dict[Section, str] = {
    "forget": "forget targets",
    "near": "near domains",
    "general": "general ability",
    "other": "other",
}

# Subjects of MMLU closest to what WMDP asks about, which unlearning is likeliest to damage; Li et al. 2024 report them.
NEAR_SUBJECTS = ("virology", "college_biology", "computer_security", "college_computer_science")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One task or group, by one metric: a run against the baseline.

    Attributes:
        name: Name of the task or group.
        alias: The name shown in tables.
        is_group: Whether it is a group.
        leaves: The tasks it stands for: those below a group, or itself.
        section: Which part of the comparison it belongs to.
        metric: lm-eval's name of the metric.
        n: Number of questions, or None if it is unknown or the runs differ in it and are not paired.
        asked: How many questions each run asked. If these are more than `n`, only those that both asked are compared,
            and `before` and `after` are values over these.
        before: The baseline's value.
        after: The other run's.
        stderr_before: Standard error of `before`, or None.
        stderr_after: Standard error of `after`, or None.
        low: Lower end of Tango's score interval of the difference over pairs; None without pairs. Of a text's
            perplexity Student's, over documents.
        high: Its upper end.
        clustered_stderr: For a group in pairs, the standard error of the difference that lets questions of one task
            depend on each other.
        p: The exact McNemar test's p-value; None without pairs. Of a text's perplexity that of Student's paired test of
            its logarithm, over documents.
        p_holm: The same after Holm's correction over the tasks (for a group, over the groups) of this run and metric.
        right_to_wrong: Questions that the baseline got right and the other run wrong; None without pairs, and of texts.
        wrong_to_right: The other way round.
        why_unpaired: Why there are no pairs, or None.
        caveat: What makes the two values of other kinds (other numbers of shots), or None.
        letters_before: What is left of the baseline's `acc` without a preference for letters; empty for other metrics
            and without samples.
        letters_after: The same of the other run.
    """

    name: str
    alias: str
    is_group: bool
    leaves: tuple[str, ...]
    section: Section
    metric: str
    n: int | None
    asked: tuple[int | None, int | None]
    before: float
    after: float
    stderr_before: float | None
    stderr_after: float | None
    low: float | None = None
    high: float | None = None
    clustered_stderr: float | None = None
    p: float | None = None
    p_holm: float | None = None
    right_to_wrong: int | None = None
    wrong_to_right: int | None = None
    why_unpaired: str | None = None
    caveat: str | None = None
    letters_before: Letters = field(default_factory=Letters)
    letters_after: Letters = field(default_factory=Letters)

    @property
    def difference(self) -> float:
        """By how much the value changed."""
        return self.after - self.before

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        letters = {name: getattr(self, name).to_json() for name in ("letters_before", "letters_after")}
        return {**vars(self), "difference": self.difference, **letters}


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One run against the baseline.

    Attributes:
        before: Name of the baseline.
        after: Name of the other run.
        rows: What both evaluated: by section, groups before the tasks below them.
        only_before: Tasks that only the baseline has.
        only_after: Tasks that only the other run has.
        settings: Settings that differ, with both values.
        notes: What else a reader should know, one sentence each.
    """

    before: str
    after: str
    rows: tuple[Difference, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    settings: Mapping[str, tuple[Any, Any]]
    notes: tuple[str, ...]

    def section(self, section: Section) -> tuple[Difference, ...]:
        """The rows of one section."""
        return tuple(row for row in self.rows if row.section == section)

    @property
    def unpaired(self) -> dict[str, list[str]]:
        """For each reason why tasks could not be compared in pairs, those tasks; groups follow from them."""
        reasons: dict[str, list[str]] = {}
        for row in self.rows:
            if row.why_unpaired is not None and not row.is_group and row.name not in reasons.get(row.why_unpaired, []):
                reasons.setdefault(row.why_unpaired, []).append(row.name)
        return reasons


def section_of(name: str, chosen: Mapping[str, Section] | None = None, *, alias: str = "") -> Section:
    """The section of a comparison that a task or group belongs to.

    Args:
        name: Its name.
        chosen: Sections by name that somebody has chosen.
        alias: The name shown, which may end in `(forget)`.
    """
    if chosen and name in chosen:
        return chosen[name]
    if name == "wmdp" or name.startswith("wmdp_") or alias.endswith("(forget)"):
        return "forget"
    if name.removeprefix("mmlu_").removesuffix("_continuation") in NEAR_SUBJECTS and name.startswith("mmlu_"):
        return "near"
    return "general" if name == "mmlu" or name.startswith("mmlu_") else "other"
