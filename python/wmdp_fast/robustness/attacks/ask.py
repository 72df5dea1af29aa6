"""No attack: the questions as they are. What every attack is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wmdp_fast.robustness.subject import Subject


class Ask(Attack):
    """Asks."""

    name: ClassVar[str] = "ask"
    summary: ClassVar[str] = "no attack: the questions as they are, and what else the model can do"
    access: ClassVar[Access] = "prompts"

    def settings(self, _budget: Budget, _seed: int) -> Sequence[Setting]:
        """One."""
        return [Setting(values={})]

    def run(self, subject: Subject, _setting: Setting) -> Iterator[Reading]:
        """One reading, with the utility that attacks are measured by."""
        yield Reading(answers=subject.ask(), utility=subject.utility())
