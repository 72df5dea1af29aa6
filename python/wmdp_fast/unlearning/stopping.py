"""Conditions on evaluation results: when a run has reached its goal, and what it must not give up on the way."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wmdp_fast.exceptions import TaskError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# Accuracies by task or group, then by metric.
Scores = dict[str, dict[str, float]]

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(
    r"(?P<task>.+)\.(?P<metric>\w+)\s*(?P<comparison><=|>=|<|>)\s*"
    r"(?:(?P<number>\d*\.?\d+)|(?P<before>before)\s*(?P<offset>[+-]\s*\d*\.?\d+)?)"
)


@dataclass(frozen=True)
class Condition:
    """`TASK.METRIC < NUMBER`, or against the value before unlearning: `TASK.METRIC >= before - 0.02`.

    Attributes:
        text: As the user wrote it.
        task: A task or group.
        metric: `acc`, `acc_norm`, ...
        comparison: `<`, `<=`, `>` or `>=`.
        number: What to compare with, or to add to the value before.
        relative: Whether the value before is added.
    """

    text: str
    task: str
    metric: str
    comparison: str
    number: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Reads a condition.

        Raises:
            ValueError: The text is not a condition.
        """
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise ValueError(
                f"{text!r} is no condition; write one like 'wmdp_bio.acc<0.30' or 'mmlu.acc>=before-0.02' (before is"
                " the value before unlearning)"
            )
        relative = found["before"] is not None
        number = float((found["offset"] or "0").replace(" ", "")) if relative else float(found["number"])
        return cls(text, found["task"].strip(), found["metric"], found["comparison"], number, relative)

    def check(self, measured: Mapping[str, Iterable[str]]) -> None:
        """Raises TaskError if it speaks of a task or metric that is not measured.

        Args:
            measured: Names of metrics by task and group.
        """
        if self.metric not in measured.get(self.task, ()):
            known = ", ".join(f"{task}.{metric}" for task, metrics in measured.items() for metric in metrics)
            raise TaskError(f"the condition {self.text!r} speaks of {self.task}.{self.metric}; evaluated are {known}")

    def holds(self, scores: Mapping[str, Mapping[str, float]], before: Mapping[str, Mapping[str, float]]) -> bool:
        """Whether it is true of some scores.

        Raises:
            TaskError: The task or metric is not among them.
        """
        limit = self.number + (self._value(before) if self.relative else 0.0)
        return _COMPARISONS[self.comparison](self._value(scores), limit)

    def _value(self, scores: Mapping[str, Mapping[str, float]]) -> float:
        self.check(scores)
        return scores[self.task][self.metric]


def parse_all(texts: str | Iterable[str]) -> tuple[Condition, ...]:
    """Reads several conditions; commas separate those of one text."""
    given = [texts] if isinstance(texts, str) else texts
    return tuple(Condition.parse(part) for text in given for part in text.split(",") if part.strip())
