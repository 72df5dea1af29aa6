"""What an attack is, to the suite that runs it.

"Unlearned" is a claim about attackers with a budget. An attack is one of them: it changes what a model is asked, looks
inside it, or changes its weights, and asks the questions again. It decides nothing. The suite gives every model the
same settings (the unlearned one, the one before unlearning, and one that never learned), chooses among them on the
questions for choosing, and reports on the others.

An attack yields readings: what is answered to all questions, after a setting was tried or at a step of it. It is given
the questions for choosing (`Subject.questions.choosing`) to take examples or targets from; that the others are never
among what it learns from is up to it. The model is to be left as it was found (`Subject.restored`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from wmdp_fast.robustness.answers import Answers
    from wmdp_fast.robustness.subject import Subject

Access = Literal["prompts", "activations", "weights"]
"""What an attacker needs: to ask, to see activations too, or to change weights."""

Budget = Literal["quick", "standard", "full"]
"""How many settings are tried: minutes on a tiny model or for a first look; what papers do; everything."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What an attack is run with.

    Attributes:
        values: By name, as JSON has them; a seed among them if something is drawn. They tell one setting from another.
        null: Whether this is a control: the same recipe on what cannot bring the knowledge back (unrelated text,
            shuffled labels, random directions). It is reported beside the attack and never chosen.
    """

    values: Mapping[str, Any]
    null: bool = False


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a model under attack answers.

    Attributes:
        answers: To all questions, in their order.
        step: After how many steps, of an attack that has them.
        utility: What else the model can do at that moment, as `Subject.utility` gives it; None where the attack cannot
            change it, as one that only asks or looks.
        figures: Whatever else was measured, as JSON has it: an accuracy by layer, a loss.
    """

    answers: Answers
    step: int | None = None
    utility: Mapping[str, float] | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)


class Attack(Protocol):
    """An attack.

    A subclass needs the class variables, `settings` and `run`; what else it does not define is as said here. It is made
    without arguments.

    Attributes:
        name: What commands, records and tables call it.
        summary: What it does, in a line.
        access: What an attacker needs for it.
        about: What is to be known of its numbers: sources, what they do not show.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    access: ClassVar[Access]
    about: ClassVar[str] = ""

    @abstractmethod
    def settings(self, budget: Budget, seed: int) -> Sequence[Setting]:
        """What is tried, in order, the controls among them: the same for every model.

        Args:
            budget: How much.
            seed: Of all that is drawn.
        """

    def why_not(self, _subject: Subject, _setting: Setting, /) -> str | None:
        """Why a setting cannot be run on a model: a corpus or the original model is missing. None if it can."""
        return None

    def cost(self, _subject: Subject, _setting: Setting, /) -> float:
        """About how much a setting costs, in readings of all questions; for an estimate before anything runs."""
        return 1.0

    @abstractmethod
    def run(self, subject: Subject, setting: Setting) -> Iterator[Reading]:
        """Runs a setting on a model. The same seed gives the same readings on the same machine.

        Raises:
            ModelError: The model gives no numbers any more, or lacks what is attacked.
        """
