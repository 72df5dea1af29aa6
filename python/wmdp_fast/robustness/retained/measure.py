"""What a measure of what was to be kept is, what is recorded of one, and the numbers that it comes to."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast

from wmdp_fast.runtime import strict_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from wmdp_fast.robustness.subject import Role, Subject

Unit = Literal["%", "nats", ""]
"""Shares are shown in percent; nats, perplexities and scores of judges as they are."""


class RetainedMeasure(Protocol):
    """A measure, which leaves the model as it was.

    Attributes:
        kind: Which numbers its record comes to; see `figures_of`.
        name: What records, tables and reports call it.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def name(self) -> str:
        """What records, tables and reports call it."""

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What tells it from others of its name, as JSON has it: hashes of texts, settings."""

    def why_not(self, _role: Role, /) -> str | None:
        """Why it says nothing of such a model, or None. Nothing is recorded then."""
        return None

    @abstractmethod
    def measure(self, subject: Subject) -> dict[str, Any]:
        """Measures a model.

        Returns:
            A JSON object with all that its figures are computed from.

        Raises:
            ModelError: The model gives no numbers, or cannot do what is wanted of it.
        """


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of a model.

    Attributes:
        role: Which model.
        kind: The measure's kind.
        name: The measure's name.
        identity: What tells the measure from others of its name.
        found: What was found; None if it failed. A measure that failed is missing: it has no number.
        failed: Why, or None.
        seconds: How long it took.
    """

    role: Role
    kind: str
    name: str
    identity: Mapping[str, Any]
    found: Mapping[str, Any] | None = field(default=None, repr=False)
    failed: str | None = None
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """Tells it from any other measurement of the same models."""
        return strict_json.dumps([self.role, self.kind, self.name, dict(self.identity)])

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "role": self.role,
            "kind": self.kind,
            "name": self.name,
            "identity": dict(self.identity),
            "seconds": self.seconds,
            **({"found": dict(self.found)} if self.found is not None else {"failed": self.failed}),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Measured:
        """From what `to_json` gave."""
        return cls(
            role=cast("Role", found["role"]),
            kind=str(found["kind"]),
            name=str(found["name"]),
            identity=dict(found["identity"]),
            found=found.get("found"),
            failed=found.get("failed"),
            seconds=float(found["seconds"]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """A number of a measure.

    Attributes:
        title: What it is of.
        value: The number; None if there is none.
        low: Lower end of its 95 % interval, if it has one.
        high: Upper end.
        n: Over how many documents, questions or texts.
        unit: How it is shown.
        why: Why there is no number.
        text: What stands in its place.
        asked: Tells what was asked, so that models that were asked the same can be compared; None if nothing was.
        correct: Whether each question was answered right, `[n]`, of a share of right answers.
    """

    title: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: Unit = ""
    why: str = ""
    text: str = "not run"
    asked: str | None = None
    correct: NDArray[np.bool_] | None = field(default=None, repr=False)

    @classmethod
    def perplexity(cls, title: str, nats: tuple[float, float | None, float | None], n: int) -> Figure:
        """From nats a token with the ends of their interval; without a number if they are beyond any perplexity."""
        try:
            value, low, high = (None if one is None else math.exp(one) for one in nats)
        except OverflowError:
            return cls(title=title, value=None, why=f"{nats[0]:.0f} nats a token are beyond any perplexity")
        return cls(title=title, value=value, low=low, high=high, n=n)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, without the answers."""
        if self.value is None:
            return {"title": self.title, "missing": f"{self.text}: {self.why}"}
        return {"title": self.title, "value": self.value, "low": self.low, "high": self.high, "n": self.n}

    def __str__(self) -> str:
        if self.value is None:
            return self.text
        scale, form = (100, ".1f") if self.unit == "%" else (1, ".4g")
        if self.low is None or self.high is None:
            return format(scale * self.value, form)
        low, high = (format(scale * end, form) for end in (self.low, self.high))
        return f"{format(scale * self.value, form)} [{low}, {high}]"
