"""What came of running an attack with a setting on a model, and how it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wmdp_fast.robustness.answers import Answers
from wmdp_fast.robustness.protocol import Reading, Setting
from wmdp_fast.runtime import strict_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wmdp_fast.robustness.subject import Role


@dataclass(frozen=True, kw_only=True)
class Run:
    """An attack with a setting on a model.

    Attributes:
        role: Which model.
        attack: The attack's name.
        setting: The setting.
        readings: What was answered; nothing if it failed.
        failed: Why there are no readings, or None. A run that failed is missing: it has no accuracy.
        skipped: Whether it could not be tried at all, for want of a corpus or of the original model.
        seconds: How long it took.
        code: A hash of the attack's file, if it is not one of this package.
    """

    role: Role
    attack: str
    setting: Setting
    readings: tuple[Reading, ...] = ()
    failed: str | None = None
    skipped: bool = False
    seconds: float = 0.0
    code: str | None = None

    @property
    def key(self) -> str:
        """Tells it from any other run of the same suite."""
        return strict_json.dumps([self.role, self.attack, dict(self.setting.values), self.setting.null, self.code])

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "role": self.role,
            "attack": self.attack,
            "setting": dict(self.setting.values),
            "null": self.setting.null,
            "seconds": self.seconds,
            **({} if self.code is None else {"code": self.code}),
            **({} if self.failed is None else {"failed": self.failed, "skipped": self.skipped}),
            "readings": [_reading_to_json(one) for one in self.readings],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Run:
        """From what `to_json` gave."""
        return cls(
            role=found["role"],
            attack=found["attack"],
            setting=Setting(values=found["setting"], null=found["null"]),
            readings=tuple(_reading_from_json(one) for one in found["readings"]),
            failed=found.get("failed"),
            skipped=found.get("skipped", False),
            seconds=found["seconds"],
            code=found.get("code"),
        )


def _reading_to_json(reading: Reading) -> dict[str, Any]:
    return {
        **({} if reading.step is None else {"step": reading.step}),
        **({} if reading.utility is None else {"utility": dict(reading.utility)}),
        **({"figures": dict(reading.figures)} if reading.figures else {}),
        "answers": reading.answers.to_json(),
    }


def _reading_from_json(found: Mapping[str, Any]) -> Reading:
    return Reading(
        answers=Answers.from_json(found["answers"]),
        step=found.get("step"),
        utility=found.get("utility"),
        figures=found.get("figures", {}),
    )
