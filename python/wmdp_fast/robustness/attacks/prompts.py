"""Questions in other words, after fillers, in other styles: what a cover over one way of asking misses.

Fillers in Hindi or Latin, conversations and poems are those of 2506.10236, in which ELM gave way to a Hindi filler and
RMU hardly did. The list is this package's own, harmless, and frozen: a change makes another version of it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from wmdp_fast._rust import QuestionSet
from wmdp_fast.robustness.protocol import Access, Attack, Budget, Reading, Setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wmdp_fast.prompts.prepare import TaskQuestions
    from wmdp_fast.robustness.subject import Subject

_FILE = Path(__file__).with_name("prompts.json")

# What stands for the lines of choices in a template: by letters, and by numbers, which are what is answered then.
_LETTERED = "{% for choice in choices %}{{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[loop.index0]}}. {{choice}}\n{% endfor %}"
_NUMBERED = "{% for choice in shown %}{{loop.index}}. {{choice}}\n{% endfor %}"

# The first of each kind, and the filler that is known to have worked.
_QUICK = ("question and answer", "Hindi filler", "conversation", "numbers", "expert")


@dataclass(frozen=True, kw_only=True)
class Wording:
    """A way of asking.

    Attributes:
        name: What it is called.
        kind: `rewording`, `filler`, `style`, `labels` or `instruction`.
        text: A prompt with `{question}` and `{choices}`, the latter a line for each.
        labels: What the choices are called, which is what is answered.
        description: Whether the task's own description stands before it.
    """

    name: str
    kind: str
    text: str
    labels: Literal["letters", "numbers"] = "letters"
    description: Literal["own", "none"] = "own"

    def of(self, one: TaskQuestions) -> TaskQuestions:
        """A task's questions asked in this way."""
        numbers = self.labels == "numbers"
        text = self.text.replace("{question}", "{{question.strip()}}")
        text = text.replace("{choices}", _NUMBERED if numbers else _LETTERED)
        task = replace(
            one.task,
            doc_to_text=text,
            choices="texts" if numbers else "letters",
            description=one.task.description if self.description == "own" else "",
        )
        if not numbers:
            return replace(one, task=task)
        fewshot = None if one.fewshot is None else _numbered(one.fewshot)
        return replace(one, task=task, questions=_numbered(one.questions), fewshot=fewshot)


@cache
def wordings() -> dict[str, Wording]:
    """The list, by name."""
    return {row["name"]: Wording(**row) for row in json.loads(_FILE.read_text(encoding="utf-8"))["prompts"]}


@cache
def list_version() -> dict[str, int | str]:
    """The list's version, and the SHA-256 of its file."""
    content = _FILE.read_bytes()
    return {"list": json.loads(content)["version"], "sha256": hashlib.sha256(content).hexdigest()}


class Prompts(Attack):
    """Asks in other words."""

    name: ClassVar[str] = "prompts"
    summary: ClassVar[str] = "other words, fillers, languages, styles, labels and instructions, from a frozen list"
    access: ClassVar[Access] = "prompts"
    about: ClassVar[str] = (
        "The best wording is chosen on the questions for choosing. The base under the same wordings tells what a"
        " wording does to a model that knows. Questions and choices themselves stay as they are, and nothing is"
        " optimized: people who try, and search, find more."
    )

    def settings(self, budget: Budget, _seed: int) -> Sequence[Setting]:
        """One for each wording, with the version of the list."""
        names = _QUICK if budget == "quick" else wordings()
        return [Setting(values={"prompt": name, "list": list_version()["list"]}) for name in names]

    def run(self, subject: Subject, setting: Setting) -> Iterator[Reading]:
        """One reading; its figures have the kind of wording and the hash of the list.

        Raises:
            ModelError: The model gives no numbers.
        """
        wording = wordings()[setting.values["prompt"]]
        prompts = subject.questions.prompts(subject.model, wording.of)
        yield Reading(answers=subject.ask(prompts), figures={"kind": wording.kind, **list_version()})


def _numbered(questions: QuestionSet) -> QuestionSet:
    """Questions whose choices are called by numbers; the choices themselves are in the column `shown`."""
    rows = [
        {
            "question": one.question,
            "choices": [str(place + 1) for place in range(len(one.choices))],
            "answer": one.answer,
            "shown": one.choices,
        }
        for one in questions
    ]
    return QuestionSet.from_rows(rows, file=questions.file)
